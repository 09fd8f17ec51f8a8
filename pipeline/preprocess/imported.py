"""Imports: what the public COMBO code has computed already, taken into the store.

An import is a stage like the others: planned, resumed, recorded, and a variant of its own, whose
settings say from which kind of tree it came and what its owner noted of it (which network, which
level: the pictures do not tell). Frames are imported by the frames stage itself, from other files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...model.mask_settings import PALETTE
from ..devices import Place
from ..errors import MediaError
from ..imports import IMPORTED, settings_of
from ..layouts import Clip
from ..media.labels import read_painted
from ..media.limits import USUAL, Limits
from ..media.pictures import Fit, fit_label, frame_files
from ..store import ArraySpec, Variant
from .stage import Description, Outcome, Worker, attempt, combined_digest

VERSION = 1


def describe(
    size: tuple[int, int], fit: Fit, frames_per_clip: int, tree: str = "", note: str = ""
) -> Description:
    """Imported Maskiges. tree: the kind of tree.  note: its owner's words."""
    return Description(
        "maskige",
        IMPORTED,
        VERSION,
        {"size": list(size), "fit": fit, **settings_of("maskige", tree, note)},
        (ArraySpec("label_map", (frames_per_clip, *size), "uint8"),),
        {"palette": PALETTE},
    )


@dataclass(frozen=True)
class ImportedMaskigeStage:
    """Painted Maskiges back to label maps: at the stored size, painting them gives the picture.

    Pictures of another size go the labels' way (nearest) to the stored one, as in the public code.
    Arrays a clip: label_map [T,H,W] uint8. How many masks a frame had, the pictures do not tell.
    """

    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    tree: str = ""
    note: str = ""
    limits: Limits = USUAL

    def variant(self) -> Variant:
        return describe(self.size, self.fit, self.frames_per_clip, self.tree, self.note).variant()

    @property
    def has_network(self) -> bool:
        return False

    def inputs(self, clip: Clip) -> list[Path]:
        return frame_files(clip.frames)

    def open(self, place: Place) -> Worker:
        del place  # reading one clip is not worth dividing
        palette = np.array(PALETTE, np.uint8)
        return lambda clips: self._run(clips, palette)

    def _run(self, clips: Sequence[Clip], palette: np.ndarray) -> list[Outcome]:
        return [attempt(clip, lambda clip: self._clip(clip, palette)) for clip in clips]

    def _clip(self, clip: Clip, palette: np.ndarray) -> Outcome:
        digests: dict[Path, str] = {}
        label_map = np.zeros((self.frames_per_clip, *self.size), np.uint8)
        first: tuple[int, ...] = ()
        for t, path in enumerate(clip.frames):
            assert isinstance(path, Path)
            read = read_painted(path, palette, digests, self.limits)
            first = first or read.shape
            if read.shape != first:
                raise MediaError(path, f"not {first[1]}x{first[0]} pixels as the clip's first")
            label_map[t] = fit_label(read, self.size, self.fit)
        return Outcome({"label_map": label_map}, inputs=combined_digest(digests.values()))
