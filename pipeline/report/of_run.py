"""What there is to say of a run: how it went, what it scores with each sound, where it is good."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...model.interface import Network
from ...model.metrics import SemanticMetrics
from ..media.labels import LABEL_IGNORED
from ..train.evaluate import (
    Evaluation,
    SoundCondition,
    measure,
    open_run,
    open_split,
    other_clips,
)
from ..train.loader import ClipReader, StoredBatch
from ..train.run_folder import RunData, RunFolder
from .clips import Panel, StoredClips
from .files import Files, files_of
from .predicted import places_of, predict, with_prediction

SOUNDS: tuple[SoundCondition, ...] = ("right", "swapped", "silent")
SHOWN = 4
"""Best clips, and worst, that are shown."""

SWAPPED = "prediction, swapped sound"

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Iterations and values."""


@dataclass(frozen=True)
class Sort:
    """Clips of one category, or a class: M_J and M_F, 0..1, over `count` clips, or frames."""

    name: str
    m_j: float
    m_f: float
    count: int


@dataclass(frozen=True)
class RunLooks:
    """A run. settings, data: as its folder has them.  curves: kind -> name -> curve.
    evaluations: by sound.  sorts: categories of clips, or classes.  confusion: [K,K] pixels, truth
    down, prediction across; None for two classes.  worst, best: clips as the network sees them.
    """

    path: Path
    settings: Mapping[str, Any]
    data: RunData
    curves: Mapping[str, Mapping[str, Curve]]
    split: str
    reader: ClipReader
    files: Files
    evaluations: Mapping[SoundCondition, Evaluation]
    sorts: list[Sort]
    confusion: NDArray[np.int64] | None
    worst: list[Panel] = field(default_factory=list[Panel])
    best: list[Panel] = field(default_factory=list[Panel])

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def right(self) -> Evaluation:
        return self.evaluations["right"]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reader.plan.classes

    @property
    def categories_of_clips(self) -> dict[str, str]:
        """Clip -> its category, or ""."""
        return {name: self.files.category(name) for name in self.right.clips}

    @property
    def told(self) -> str:
        """What its folder says of it, but for what each clip did."""
        splits = {
            name: {k: v for k, v in split.items() if k != "left_out"}
            for name, split in self.data["splits"].items()
        }
        told = {"settings": self.settings, "data": {**self.data, "splits": splits}}
        return json.dumps(told, indent=1)


def look_at_run(
    path: Path,
    split: str,
    device: torch.device,
    store: Path | None = None,
    manifest: Path | None = None,
    on_clip: Callable[[], None] = lambda: None,
) -> RunLooks:
    """Evaluate a run's best network with each sound and gather what is told.

    store: where it lies now, as for `open_split`.  manifest: where the data set lies, in place of
    what the store and the run say.  on_clip: called for each clip and sound. Raises ComboError.
    """
    run = RunFolder(path)
    settings, data = run.settings(), run.data()
    reader = open_split(run, split, store)
    also = Path(data["manifest"]) if "manifest" in data else None
    files = files_of(reader.split, manifest, also)
    network = open_run(run, device)
    confusions = Confusions(len(reader.plan.classes))
    evaluations: dict[SoundCondition, Evaluation] = {}
    for sound in sounds_of(reader):

        def seen(clip: StoredBatch, scores: Tensor, sound: SoundCondition = sound) -> None:
            if sound == "right":
                confusions.add(clip, scores)
            on_clip()

        evaluations[sound] = measure(network, reader, device, sound=sound, on_clip=seen)
    right = evaluations["right"]
    worst, best = extremes(right, SHOWN)
    clips = StoredClips(reader.split, files, reader.choice.frames)
    return RunLooks(
        path,
        settings.as_dict(),
        data,
        curves(run),
        split,
        reader,
        files,
        evaluations,
        confusions.sorts(reader.plan.classes) or categories(right, files),
        confusions.pixels if confusions.metrics else None,
        _panels(worst, network, device, reader, clips),
        _panels(best, network, device, reader, clips),
    )


def run_work(path: Path, split: str, store: Path | None = None) -> int:
    """How many clips `look_at_run` evaluates, each sound counted."""
    reader = open_split(RunFolder(path), split, store)
    return len(reader.labelled) * len(sounds_of(reader))


def sounds_of(reader: ClipReader) -> tuple[SoundCondition, ...]:
    """The sounds a split is evaluated with: those of one clip cannot be swapped."""
    return tuple(s for s in SOUNDS if s != "swapped" or len(reader) > 1)


def curves(run: RunFolder) -> dict[str, dict[str, Curve]]:
    """The numbers of metrics.jsonl: kind of entry -> name -> curve. What is no number is left out.

    A line that a kill cut off is dropped, as it is when training goes on.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    lines = run.metrics.read_bytes().splitlines() if run.metrics.exists() else []
    for line in lines:
        try:
            entry = json.loads(line)
            iteration, kind = float(entry.pop("iteration")), str(entry.pop("kind"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in entry.items():
            if isinstance(value, int | float):
                found.setdefault(kind, {}).setdefault(name, []).append((iteration, float(value)))
    return {
        kind: {name: _curve(points) for name, points in named.items()}
        for kind, named in found.items()
    }


def _curve(points: list[tuple[float, float]]) -> Curve:
    both = np.array(points, np.float64)
    return both[:, 0], both[:, 1]


class Confusions:
    """Which class is taken for which, over the labelled frames; nothing for two classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.metrics = SemanticMetrics(classes) if classes > 2 else None
        self.pixels = np.zeros((classes, classes), np.int64)

    def add(self, clip: StoredBatch, scores: Tensor) -> None:
        """One clip. scores: [T,K,H,W], on the CPU."""
        if self.metrics is None:
            return
        frames = clip.annotated[0] & clip.present[0]
        predicted = scores[frames].argmax(1).to(torch.uint8)
        labels = clip.labels[0][frames]
        self.metrics.add(predicted, labels)
        counts = labels != LABEL_IGNORED
        cells = labels[counts].long() * self.classes + predicted[counts].long()
        found = torch.bincount(cells, minlength=self.classes**2)
        self.pixels += found.view(self.classes, self.classes).numpy()

    def sorts(self, names: tuple[str, ...]) -> list[Sort]:
        """Each class that was seen, over the frames it counts in."""
        if self.metrics is None:
            return []
        j, f, count = (each.tolist() for each in self.metrics.per_class())
        found = zip(names, j, f, count, strict=True)
        return [Sort(name, j, f, int(count)) for name, j, f, count in found if count]


def categories(evaluation: Evaluation, files: Files) -> list[Sort]:
    """The mean over the clips of each category; none where the data set has no categories."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, (j, f) in evaluation.clips.items():
        if category := files.category(name):
            found.setdefault(category, []).append((j, f or 0.0))
    sorts: list[Sort] = []
    for name, scores in sorted(found.items()):
        j, f = (sum(each) / len(scores) for each in zip(*scores, strict=True))
        sorts.append(Sort(name, j, f, len(scores)))
    return sorts


def extremes(evaluation: Evaluation, count: int) -> tuple[list[str], list[str]]:
    """The clips with the lowest M_J, lowest first, and with the highest, highest first."""
    ranked = sorted(evaluation.clips, key=lambda name: evaluation.clips[name][0])
    count = min(count, len(ranked) // 2)
    return ranked[: max(count, 1)], ranked[::-1][:count]


def _panels(
    names: list[str],
    network: Network,
    device: torch.device,
    reader: ClipReader,
    clips: StoredClips,
) -> list[Panel]:
    found: list[Panel] = []
    for place in places_of(reader, names):
        batch = reader.read([place])
        present, panel = batch.present[0].numpy(), clips.panel(int(reader.rows[place]))
        panel = with_prediction(panel, predict(network, batch, device), present, clips)
        if len(reader) > 1:
            other = int(other_clips(len(reader))[place])
            batch = replace(batch, sound=reader.sound([other]))
            predicted = predict(network, batch, device)
            panel = with_prediction(panel, predicted, present, clips, SWAPPED)
        found.append(panel)
    return found
