"""Maskiges of a clip's frames, kept as label maps (one byte a pixel) and coloured when read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...model.mask_settings import PALETTE
from ..devices import Place
from ..errors import MediaError
from ..generators import generator
from ..generators.generator import Generate, LabelMap
from ..identity import recorded
from ..layouts import Clip
from ..manifest import MaskigeSettings
from ..media.images import Pixels
from ..media.limits import USUAL, Limits
from ..media.pictures import Fit, fit_frame, fit_label, frame_files, read_frames
from ..store import ArraySpec, Variant
from .stage import Description, Outcome, Worker, attempt, combined_digest, read_as

VERSION = 1


def describe(
    settings: MaskigeSettings,
    size: tuple[int, int],
    fit: Fit,
    frames_per_clip: int,
    reading: int = 1,
) -> Description:
    """Maskiges by the settings' generator, at a size. Raises ComboError for an unknown one."""
    made = generator(settings.generator)
    own = settings.own(made.section)
    return Description(
        "maskige",
        settings.generator,
        VERSION,
        {
            "generator": settings.generator,
            "at": settings.at,
            "size": list(size),
            "fit": fit,
            **recorded(own),
            **made.facts(own, settings),
            **read_as(reading),
        },
        (
            ArraySpec("label_map", (frames_per_clip, *size), "uint8"),
            ArraySpec("masks", (frames_per_clip,), "uint32"),
            ArraySpec("left_out", (frames_per_clip,), "uint32"),
        ),
        {"palette": PALETTE},
        () if made.weights is None else (made.weights,),
    )


@dataclass(frozen=True)
class MaskigeStage:
    """Makes masks on each frame and merges them.

    Masks are made on the frame at its own size, and the label map then goes the labels' way
    (nearest) to the stored size; or on the frame at the stored size (`at: stored`).
    Arrays a clip: label_map [T,H,W] uint8; masks, left_out [T] uint32: how many masks a frame had,
    and how many of them beyond the smallest 255 have no place in the map.
    weights: file and digest by catalogue name.
    """

    settings: MaskigeSettings
    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    weights: Mapping[str, tuple[Path, str]]
    limits: Limits = USUAL
    reading: int = 1

    def variant(self) -> Variant:
        size, length = self.size, self.frames_per_clip
        described = describe(self.settings, size, self.fit, length, self.reading)
        return described.variant({name: digest for name, (_, digest) in self.weights.items()})

    @property
    def has_network(self) -> bool:
        return bool(self.weights)

    def inputs(self, clip: Clip) -> list[Path]:
        return frame_files(clip.frames)

    def open(self, place: Place) -> Worker:
        generate = self.generate(place)
        return lambda clips: self._run(clips, generate)

    def generate(self, place: Place) -> Generate:
        """The generator, with its weights loaded."""
        made = generator(self.settings.generator)
        file = self.weights[made.weights][0] if made.weights else None
        return made.open(self.settings.own(made.section), self.settings, file, place)

    def label_maps(self, frames: Sequence[Pixels], generate: Generate, of: str) -> list[LabelMap]:
        """Label maps of frames [H,W,3] of any size, at the stored size. of: their clip's name."""
        if self.settings.at == "stored":
            frames = [fit_frame(frame, self.size, self.fit) for frame in frames]
        try:
            found = generate(frames)
        except MemoryError as error:
            height, width = frames[0].shape[:2]
            raise MediaError(of, f"frames of {width} x {height}: {error}") from error
        return [
            replace(each, label_map=fit_label(each.label_map, self.size, self.fit))
            for each in found
        ]

    def _run(self, clips: Sequence[Clip], generate: Generate) -> list[Outcome]:
        return [attempt(clip, lambda clip: self._clip(clip, generate)) for clip in clips]

    def _clip(self, clip: Clip, generate: Generate) -> Outcome:
        digests: dict[Path, str] = {}
        found = self.label_maps(read_frames(clip.frames, digests, self.limits), generate, clip.name)
        arrays = {
            "label_map": np.zeros((self.frames_per_clip, *self.size), np.uint8),
            "masks": np.zeros(self.frames_per_clip, np.uint32),
            "left_out": np.zeros(self.frames_per_clip, np.uint32),
        }
        for t, each in enumerate(found):
            arrays["label_map"][t] = each.label_map
            arrays["masks"][t], arrays["left_out"][t] = each.masks, each.left_out
        return Outcome(arrays, inputs=combined_digest(digests.values()))
