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
from ..media.labels import LABEL_IGNORED
from ..train.elsewhere import open_run_for
from ..train.evaluate import Evaluation, by_category, measure_sounds, open_split
from ..train.loader import ClipReader, StoredBatch
from ..train.run_folder import RunData, RunFolder
from ..train.sounds import other_clips
from .clips import Panel, StoredClips
from .files import Files, files_of
from .predicted import places_of, predict, with_prediction

SOUNDS = ("right", "swapped", "silent")
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
    evaluations: Mapping[str, Evaluation]
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
    network = open_run_for(run, reader, device)
    confusions = Confusions(len(reader.plan.classes))

    def seen(sound: str, clip: StoredBatch, scores: Tensor) -> None:
        if sound == "right":
            confusions.add(clip, scores.cpu())
        on_clip()

    evaluations = measure_sounds(network, reader, device, sounds_of(reader), {}, seen)
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
        sorts(right, files),
        confusions.pixels if right.classes else None,
        _panels(worst, network, device, reader, clips),
        _panels(best, network, device, reader, clips),
    )


def run_work(path: Path, split: str, store: Path | None = None) -> int:
    """How many clips `look_at_run` evaluates, each sound counted."""
    reader = open_split(RunFolder(path), split, store)
    return len(reader.labelled) * len(sounds_of(reader))


def sounds_of(reader: ClipReader) -> tuple[str, ...]:
    """The sounds a split is evaluated with: those of one clip cannot be swapped."""
    return tuple(s for s in SOUNDS if s != "swapped" or len(reader) > 1)


def curves(run: RunFolder) -> dict[str, dict[str, Curve]]:
    """The numbers of metrics.jsonl: kind of entry -> name -> curve. What is no number is left out.

    A line that a kill cut off is dropped, as it is when training goes on.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    lines = run.metrics.read_bytes().splitlines() if run.metrics.is_file() else []
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
    """Which class is taken for which, in pixels of the labelled frames: [truth, prediction]."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.pixels = np.zeros((classes, classes), np.int64)

    def add(self, clip: StoredBatch, scores: Tensor) -> None:
        """One clip. scores: [T,K,H,W], on the CPU."""
        frames = clip.annotated[0] & clip.present[0]
        predicted, labels = scores[frames].argmax(1), clip.labels[0][frames]
        counts = labels != LABEL_IGNORED
        cells = labels[counts].long() * self.classes + predicted[counts]
        found = torch.bincount(cells, minlength=self.classes**2)
        self.pixels += found.view(self.classes, self.classes).numpy()


def sorts(evaluation: Evaluation, files: Files) -> list[Sort]:
    """The classes that were seen; of objects the categories, where the data set has any."""
    categories = {name: files.category(name) for name in evaluation.clips}
    found = evaluation.classes or by_category(evaluation, categories)
    return [Sort(name, *scores) for name, scores in found.items()]


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
