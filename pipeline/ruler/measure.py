"""A network over a split with several sounds, in one pass over the pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...model.interface import Network
from ...model.metrics import ObjectMetrics, SemanticMetrics, foreground
from ..errors import ComboError
from ..train.evaluate import Evaluation, as_json
from ..train.loader import Batch, ClipReader, StoredBatch
from .sounds import FITTING, Sounds

OnClip = Callable[[str, StoredBatch, Tensor], None]


@dataclass(frozen=True)
class Group:
    """Mean scores of a category's clips, or of a class in the frames it counts in; 0..1."""

    m_j: float
    m_f: float
    count: int


@dataclass(frozen=True)
class Measured:
    """A network's scores with one sound.

    segmented: share of the labelled frames' pixels that are not called background.  unchanged:
    share of them with the same class as with the right sound; None where that was not heard.
    classes: of semantic labels, those seen.  categories: where the clips' are known.
    without_sound: labelled clips for which there was no such sound.
    """

    evaluation: Evaluation
    segmented: float
    unchanged: float | None
    classes: Mapping[str, Group]
    categories: Mapping[str, Group]
    without_sound: int = 0

    def as_json(self) -> dict[str, Any]:
        """As `combo evaluate --json` prints it."""
        clips = self.evaluation.clips.items()
        told = {
            **as_json(self.evaluation),
            "clips_without_such_a_sound": self.without_sound,
            "segmented_pixels": round(self.segmented, 6),
            "unchanged_pixels": None if self.unchanged is None else round(self.unchanged, 6),
            "per_clip": {name: _scores(j, f) for name, (j, f) in clips},
        }
        for name, groups, of in (
            ("per_category", self.categories, "clips"),
            ("per_class", self.classes, "frames"),
        ):
            told[name] = {
                key: {**_scores(group.m_j, group.m_f), of: group.count}
                for key, group in groups.items()
            }
        return told


def _scores(m_j: float, m_f: float | None) -> dict[str, float | None]:
    return {"M_J": round(m_j, 6), "M_F": None if m_f is None else round(m_f, 6)}


@dataclass
class _Tally:
    """What is counted with one sound."""

    sound: str
    metrics: ObjectMetrics | SemanticMetrics
    names: list[str] = field(default_factory=list)
    without: int = 0
    pixels: int = 0
    segmented: int = 0
    same: int = 0

    def add(
        self, clip: StoredBatch, scores: Tensor, labels: Tensor, right: Tensor | None
    ) -> Tensor:
        """Count a clip's labelled frames. right: their classes with the right sound.

        scores: [T,K,H,W].  Returns their classes [T,H,W].
        """
        self.metrics.update(scores, labels, audible=self.sound in FITTING)
        self.names.append(clip.clips[0])
        classes = _classes(scores)
        self.pixels += classes.numel()
        self.segmented += int(classes.count_nonzero())
        if right is not None:
            self.same += int((classes == right).count_nonzero())
        return classes


@torch.inference_mode()
def measure_sounds(
    network: Network,
    reader: ClipReader,
    device: torch.device,
    sounds: Sequence[str] = ("right",),
    categories: Mapping[str, str] | None = None,
    on_clip: OnClip = lambda *_: None,
) -> dict[str, Measured]:
    """Run a network over a split, one clip at a time; with one sound, what `measure` gives.

    sounds: names of `sounds.MEANINGS`.  categories: clip -> category, "" where it has none.
    on_clip: gets the sound, each clip (on the CPU) and its scores [T,K,H,W].
    Raises ComboError for a split without any label, for sounds that it does not have, and for
    scores that are not numbers.
    """
    if not reader.labelled:
        raise ComboError(f"no frame of {reader.split} has a label; see combo status")
    network.eval()
    known = categories or {}
    names = [reader.plan.clips[int(row)] for row in reader.rows]
    hear = Sounds(reader, sounds, [known.get(name, "") for name in names])
    number_of_classes = len(reader.plan.classes)
    tallies = {
        sound: _Tally(
            sound,
            ObjectMetrics() if number_of_classes == 2 else SemanticMetrics(number_of_classes),
        )
        for sound in sorted(sounds, key=lambda name: name != "right")
    }
    batches = reader.batches([place] for place in reader.labelled)
    for number, clip in enumerate(batches):
        on_device = clip.to(device)
        counted = clip.present[0] & clip.annotated[0]
        labels = on_device.labels[0][counted]
        right: Tensor | None = None
        for tally in tallies.values():
            sound = hear.of(tally.sound, number)
            if sound is None:
                tally.without += 1
                continue
            scores = _run(network, on_device, sound.to(device))
            classes = tally.add(clip, scores[counted], labels, right)
            if tally.sound == "right":
                right, tally.same = classes, tally.pixels
            on_clip(tally.sound, clip, scores.cpu())
    return {name: _measured(tallies[name], reader, known, "right" in tallies) for name in sounds}


def _run(network: Network, clip: Batch, sound: Tensor) -> Tensor:
    """A clip's scores with a sound, [T,K,H,W]. Raises ComboError where they are not numbers."""
    out = network(clip.frames, clip.maskige, sound, clip.present)
    scores = network.scores(out)[0].float()
    if not bool(torch.isfinite(scores).all()):
        raise ComboError(f"the network's scores of clip {clip.clips[0]} are not numbers")
    return scores


def _classes(scores: Tensor) -> Tensor:
    """Each pixel's class as the metrics see it: [T,K,H,W] -> [T,H,W]."""
    return foreground(scores) > 0.5 if scores.shape[1] == 2 else scores.argmax(1)


def _measured(
    tally: _Tally, reader: ClipReader, categories: Mapping[str, str], right: bool
) -> Measured:
    result = tally.metrics.result()
    main = result.protocols["avsbench"]
    clips = {n: (s.M_J, s.M_F) for n, s in zip(tally.names, result.clips, strict=True)}
    evaluation = Evaluation(
        sound=tally.sound,
        m_j=main.M_J,
        m_f=main.M_F or 0.0,
        protocols={name: (s.M_J, s.M_F) for name, s in result.protocols.items()},
        false_positive_rate=result.false_positive_rate,
        clips=clips,
        left_out=len(reader.left_out),
        without_labels=len(reader) - len(reader.labelled),
    )
    return Measured(
        evaluation,
        tally.segmented / tally.pixels,
        tally.same / tally.pixels if right else None,
        by_class(tally.metrics, reader.plan.classes),
        by_category(clips, categories),
        tally.without,
    )


def by_class(metrics: ObjectMetrics | SemanticMetrics, names: Sequence[str]) -> dict[str, Group]:
    """Each class that was seen, over the frames it counts in; nothing for objects."""
    if isinstance(metrics, ObjectMetrics):
        return {}
    j, f, count = (each.tolist() for each in metrics.per_class())
    found = zip(names, j, f, count, strict=True)
    return {name: Group(j, f, int(count)) for name, j, f, count in found if count}


def by_category(
    clips: Mapping[str, tuple[float, float | None]], categories: Mapping[str, str]
) -> dict[str, Group]:
    """The mean over the clips of each category that is known."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, (j, f) in clips.items():
        if category := categories.get(name):
            found.setdefault(category, []).append((j, f or 0.0))
    return {
        name: Group(
            sum(j for j, _ in scores) / len(scores),
            sum(f for _, f in scores) / len(scores),
            len(scores),
        )
        for name, scores in sorted(found.items())
    }
