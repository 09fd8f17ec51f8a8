"""Saved masks against a data set's labels, by the metrics that networks are evaluated with.

A mask is scored at its own size: the label is brought to that, as it is when frames are stored.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ComboError, MediaError
from .jobs.plan import PlannedSplit, fit_of
from .layouts import Clip
from .media.images import Pixels
from .media.labels import LABEL_IGNORED, LabelRule, read_label
from .media.pictures import Fit, fit_label
from .protocols import as_json
from .saved_masks import SavedMasks, Values

NAMED = 5


@dataclass(frozen=True)
class Scored:
    """What saved masks score.

    protocols: by name -> M_J, M_F, 0..1.  clips: name -> M_J, M_F.  missing: clips and frames that
    have a label and no mask.  without_labels: clips that say nothing.  left_out: clip -> reason.
    """

    protocols: dict[str, tuple[float, float | None]]
    false_positive_rate: float | None
    clips: dict[str, tuple[float, float | None]]
    missing: list[str]
    without_labels: int
    left_out: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Under the names of `combo evaluate --json`."""
        return {
            **as_json(self.protocols, self.false_positive_rate),
            "clips": len(self.clips),
            "clips_left_out": len(self.left_out),
            "clips_without_labels": self.without_labels,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class _Wanted:
    """A clip of which masks are scored, and its frames that have a label and a mask."""

    clip: Clip
    frames: tuple[int, ...]


def score(
    there: PlannedSplit,
    root: Path,
    allow_missing: bool = False,
    on_clip: Callable[[], None] = lambda: None,
) -> Scored:
    """Score the masks below a folder against the labels of a split.

    allow_missing: leave out frames without a mask, which make the numbers those of another split.
    Raises ComboError: masks missing, of another kind than the labels, or unreadable.
    """
    from ..model.metrics import ObjectMetrics, SemanticMetrics

    clips = list(there.clips)
    left_out = {clip.name: clip.problem for clip in clips if clip.problem is not None}
    labelled = [(c, _labelled(c)) for c in clips if c.problem is None]
    masks = SavedMasks.below(root, [clip.name for clip in clips])
    masks.demand_frames_of({clip.name: len(clip.frames) for clip in clips})
    missing: list[str] = []
    wanted: list[_Wanted] = []
    for clip, frames in labelled:
        lacking = masks.missing(clip.name, frames)
        if lacking and lacking == frames:
            missing.append(clip.name)
        else:
            missing += [f"frame {n} of {clip.name}" for n in lacking]
        if present := tuple(n for n in frames if n not in lacking):
            wanted.append(_Wanted(clip, present))
    if missing and not allow_missing:
        raise ComboError(
            f"{root}: no mask of {named(missing)} of {there.where}; "
            "add them, or score what is there with --allow-missing"
        )
    if not wanted:
        raise ComboError(f"no labelled frame of {there.where} has a mask in {root}")
    classes, limits = len(there.plan.classes), there.manifest.limits
    of_objects = classes == 2
    asked = [(each.clip.name, each.frames) for each in wanted]
    scale = masks.scale(asked, limits) if of_objects else 1.0
    metrics = ObjectMetrics() if of_objects else SemanticMetrics(classes)
    read = _Reader(there, masks)
    names: list[str] = []
    for each, (values, labels) in zip(wanted, _ahead(read, wanted), strict=True):
        path = masks.root / each.clip.name
        add = _add_object if of_objects else _add_classes
        says = (labels != LABEL_IGNORED).any(axis=(1, 2))  # an image of nothing else is no label
        if says.any():
            add(metrics, values[says], labels[says], scale, path)
            names.append(each.clip.name)
        on_clip()
    if not names:
        raise ComboError(f"no labelled frame of {there.where} has a mask in {root}")
    result = metrics.result()
    return Scored(
        protocols={name: (s.M_J, s.M_F) for name, s in result.protocols.items()},
        false_positive_rate=result.false_positive_rate,
        clips={n: (s.M_J, s.M_F) for n, s in zip(names, result.clips, strict=True)},
        missing=missing,
        without_labels=sum(not frames for _, frames in labelled) + len(wanted) - len(names),
        left_out=left_out,
    )


class _Reader:
    """Masks and labels of one clip."""

    def __init__(self, there: PlannedSplit, masks: SavedMasks) -> None:
        self.masks, self.limits = masks, there.manifest.limits
        data_set, split = there.where.data_set, there.where.split
        self.fit: Fit = fit_of(there.manifest, data_set, split)
        self.rule: LabelRule = there.rules.label_rule(there.manifest.root(data_set))
        self.classes = len(there.plan.classes)

    def __call__(self, wanted: _Wanted) -> tuple[Values, Pixels]:
        """[T,H,W] or [T,K,H,W], and labels [T,H,W] of their size."""
        clip = wanted.clip
        values = self.masks.read(clip.name, wanted.frames, self.limits, self.classes == 2)
        size = (int(values.shape[-2]), int(values.shape[-1]))
        labels: list[Pixels] = []
        for n in wanted.frames:
            path = clip.labels[n]
            assert path is not None
            label = read_label(
                path, self.rule, self.classes, limits=self.limits, frame=clip.frames[n]
            )
            labels.append(fit_label(label, size, self.fit))
        return values, np.stack(labels)


def _ahead(read: _Reader, wanted: Sequence[_Wanted]) -> Iterator[tuple[Values, Pixels]]:
    """What `read` gives of each, in order; a few at once, so that memory stays flat."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(wanted)
        waiting: list[Future[tuple[Values, Pixels]]] = [
            pool.submit(read, each) for each in islice(rest, 2 * workers)
        ]
        while waiting:
            made = waiting.pop(0).result()
            waiting += [pool.submit(read, each) for each in islice(rest, 1)]
            yield made


def _add_object(metrics: Any, values: Values, labels: Pixels, scale: float, path: Path) -> None:
    import torch

    if values.ndim != 3:
        raise MediaError(path, "scores of classes, where the labels are of objects")
    probability = values.astype(np.float32) / np.float32(scale)
    low, top = float(probability.min()), float(probability.max())
    if not (low >= 0 and top <= 1):
        raise MediaError(
            path, f"values from {low:g} to {top:g}, no probabilities; save them after the sigmoid"
        )
    metrics.add(torch.from_numpy(probability), torch.from_numpy(labels))


def _add_classes(metrics: Any, values: Values, labels: Pixels, scale: float, path: Path) -> None:
    import torch

    del scale
    if values.ndim == 4:
        if values.shape[1] != metrics.classes or not np.isfinite(values).all():
            raise MediaError(
                path,
                f"scores of {values.shape[1]} classes, or that are no numbers, where the labels "
                f"have {metrics.classes} classes, background the first",
            )
        values = values.argmax(1)
    low, top = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or top >= metrics.classes:
        raise MediaError(
            path,
            f"values up to {top:g}, where the labels have classes 0..{metrics.classes - 1}; object "
            "masks are scored against a data set with object labels, as --data s4",
        )
    metrics.add(torch.from_numpy(values.astype(np.uint8)), torch.from_numpy(labels))


def _labelled(clip: Clip) -> list[int]:
    return [n for n, label in enumerate(clip.labels) if label is not None]


def named(missing: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(missing) - NAMED
    return ", ".join(missing[:NAMED]) + (f" and {more} more" if more > 0 else "")
