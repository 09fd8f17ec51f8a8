"""One clip as people see it: rows of pictures, a column a frame, and what is heard meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ComboError, MediaError
from ..media.images import Pixels
from ..media.labels import LABEL_IGNORED
from ..painting import paint
from ..source import RowReader, Source, usable
from ..store import VALID, Variant
from .files import Files
from .sound import Heard, hear

MOST_SECONDS, MOST_FRAMES = 20.0, 10
"""Of a clip that are shown: the first seconds, and frames spread evenly over those."""

FRAMES, TRUTH, PREDICTION = "frames", "truth", "prediction"


@dataclass(frozen=True)
class Panel:
    """A clip. rows: name -> [T,H,W,3] uint8, all painted; T is the same in all rows, sizes may
    differ.  heard: None where there is no sound to be had, and `unheard` says why.
    classes: number -> name of those in its labels.  notes: what else is to be said.
    """

    title: str
    rows: Mapping[str, Pixels]
    heard: Heard | None = None
    unheard: str = ""
    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    notes: tuple[str, ...] = ()


def columns(count: int, seconds_per_frame: float) -> tuple[int, list[int]]:
    """Of a clip's frames: how many of the first are spoken of, and which of those are shown."""
    spoken_of = min(count, max(1, int(MOST_SECONDS / seconds_per_frame)))
    shown = np.linspace(0, spoken_of - 1, min(spoken_of, MOST_FRAMES)).round().astype(int)
    return spoken_of, shown.tolist()


def classes_in(labels: Pixels, names: Sequence[str]) -> dict[int, str]:
    """The classes that labels hold, without the background and 255."""
    there: list[int] = np.unique(labels).tolist()
    return {c: names[c] for c in there if c not in (0, LABEL_IGNORED) and c < len(names)}


def hearing(
    panel: Panel, files: Files, name: str, audio: Mapping[str, object], frames: int
) -> Panel:
    """A panel with the clip's sound, or with the reason why there is none."""
    if files.listing is None:
        return replace(panel, unheard=f"the data set's files are not found: {files.why}")
    clip = files.clip(name)
    if clip is None:
        return replace(panel, unheard="the data set has this clip no more")
    try:
        return replace(panel, heard=hear(clip, audio, files.limits, frames))
    except MediaError as error:
        return replace(panel, unheard=str(error))


class StoredClips:
    """The clips of a split of a store, to look at.

    frames: the variant shown; by default the first that is finished, else the first.
    Raises ComboError where the split has no frames at all.
    """

    def __init__(self, source: Source, files: Files, frames: Variant | None = None) -> None:
        self.source, self.files, self.plan = source, files, source.plan()
        there = source.variants("frames")
        if frames is None and not there:
            raise ComboError(f"nothing to show of {source}: it has no frames yet")
        ready = (v for v in there if usable(source, v) is not None)
        self.frames = frames or next(ready, None) or there[0]
        self.maskiges = source.variants("maskige")
        audio = source.variants("audio")
        self.audio: Mapping[str, object] = audio[0].settings if audio else {}
        self._readers: dict[tuple[str, str], RowReader] = {}

    @cached_property
    def shown(self) -> NDArray[np.intp]:
        """Rows of the clips whose frames are there; those with labels and all Maskiges first."""
        there = self.array(self.frames, VALID).astype(bool)
        if not there.any():
            return np.zeros(0, np.intp)
        whole = self.array(self.frames, "annotated").any(1).astype(int)
        for variant in self.maskiges:
            whole += self.array(variant, VALID).astype(int)
        return np.flatnonzero(there)[np.argsort(-whole[there], kind="stable")]

    def array(self, variant: Variant, name: str, rows: Sequence[int] | None = None) -> NDArray:
        """Clips of an array, all by default: [clips, ...]."""
        asked = np.arange(len(self.plan.clips)) if rows is None else np.asarray(rows)
        key = variant.key, name
        if key not in self._readers:
            finished = usable(self.source, variant)
            self._readers[key] = self.source.reader(variant, name, finished)
        found: NDArray = self._readers[key].ask(asked).result()
        return found

    def some(self, count: int) -> list[int]:
        """Rows of clips to show: spread evenly over those that have the most to be seen."""
        rows = np.sort(self.shown[: max(count, len(self.shown) // 2)])
        if not len(rows):
            return []
        places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        return rows[places].tolist()

    def panel(self, row: int) -> Panel:
        """Frames, labels, and Maskiges of every variant of a clip, and its sound."""
        name, notes = self.plan.clips[row], list[str]()
        present = np.flatnonzero(self.array(self.frames, "present", [row])[0])
        spoken_of, shown = columns(len(present), self.plan.seconds_per_frame)
        if len(shown) < len(present):
            notes.append(f"{len(shown)} of {len(present)} frames are shown")
        at = present[shown]
        frames = self.array(self.frames, "frames", [row])[0][at]
        labels = self.array(self.frames, "labels", [row])[0][at]
        rows = {FRAMES: frames}
        for variant in self.maskiges:
            if not self.array(variant, VALID, [row])[0]:
                notes.append(f"no Maskige of {variant.name}: {self.reason(variant, name)}")
                continue
            palette = np.array(variant.attributes["palette"], np.uint8)
            rows[f"Maskige {variant.name}"] = palette[
                self.array(variant, "label_map", [row])[0][at]
            ]
        if (labels != LABEL_IGNORED).any():
            rows[TRUTH] = paint(frames, labels)
        else:
            notes.append("no frame shown has a label")
        classes = classes_in(labels, self.plan.classes)
        panel = Panel(name, rows, classes=classes, notes=tuple(notes))
        return hearing(panel, self.files, name, self.audio, spoken_of)

    def reason(self, variant: Variant, name: str) -> str:
        """Why a variant has nothing of a clip."""
        finished = self.source.finished(variant)
        return (finished and finished.failed.get(name)) or "not made yet"
