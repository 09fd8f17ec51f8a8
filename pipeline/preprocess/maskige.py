"""Maskiges of a clip's frames, kept as label maps (one byte a pixel) and coloured when read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MediaError
from ..layouts import Clip
from ..limits import USUAL, Limits
from ..manifest import Manifest, MaskigeSettings
from ..media import Fit, fit_frame, fit_label, frame_files, read_frames
from ..store import ArraySpec, Variant
from ..weights import resolve
from .generators import Generate, generator
from .stage import Outcome, Place, Worker, attempt, combined_digest, make_variant

VERSION = 1


@dataclass(frozen=True)
class MaskigeStage:
    """Makes masks on each frame and merges them.

    Masks are made on the frame at its own size, and the label map then goes the labels' way
    (nearest) to the stored size; or on the frame at the stored size (`at: stored`).
    Arrays a clip: label_map [T,H,W] uint8; masks, left_out [T] uint32: how many masks a frame had,
    and how many of them beyond the smallest 255 have no place in the map.
    """

    settings: MaskigeSettings
    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    weights: Path | None = None
    digest: str = ""
    limits: Limits = USUAL

    @classmethod
    def make(
        cls, manifest: Manifest, size: tuple[int, int], fit: Fit, frames_per_clip: int
    ) -> "MaskigeStage":
        """The stage as the manifest wants it. Raises ComboError for missing weights."""
        settings = manifest.stages.maskige
        name = generator(settings.generator).weights
        if name is None:
            return cls(settings, size, fit, frames_per_clip, limits=manifest.limits)
        weights, digest = resolve(name, manifest)
        return cls(settings, size, fit, frames_per_clip, weights, digest, manifest.limits)

    def variant(self) -> Variant:
        from ...model.maskige import reference_palette

        own = generator(self.settings.generator)
        shape = (self.frames_per_clip, *self.size)
        return make_variant(
            "maskige",
            self.settings.generator,
            VERSION,
            {
                "generator": self.settings.generator,
                "at": self.settings.at,
                "size": list(self.size),
                "fit": self.fit,
                **own.settings(self.settings),
            },
            (
                ArraySpec("label_map", shape, "uint8"),
                ArraySpec("masks", (self.frames_per_clip,), "uint32"),
                ArraySpec("left_out", (self.frames_per_clip,), "uint32"),
            ),
            weights={} if own.weights is None else {own.weights: self.digest},
            attributes={"palette": reference_palette().tolist()},
        )

    @property
    def has_network(self) -> bool:
        return self.weights is not None

    def inputs(self, clip: Clip) -> list[Path]:
        return frame_files(clip.frames)

    def open(self, place: Place) -> Worker:
        generate = generator(self.settings.generator).open(self.settings, self.weights, place)
        return lambda clips: self._run(clips, generate)

    def _run(self, clips: Sequence[Clip], generate: Generate) -> list[Outcome]:
        return [attempt(clip, lambda clip: self._clip(clip, generate)) for clip in clips]

    def _clip(self, clip: Clip, generate: Generate) -> Outcome:
        digests: dict[Path, str] = {}
        frames = read_frames(clip.frames, digests, self.limits)
        if self.settings.at == "stored":
            frames = [fit_frame(frame, self.size, self.fit) for frame in frames]
        try:
            found = generate(frames)
        except MemoryError as error:
            height, width = frames[0].shape[:2]
            raise MediaError(clip.name, f"frames of {width} x {height}: {error}") from error
        arrays = {
            "label_map": np.zeros((self.frames_per_clip, *self.size), np.uint8),
            "masks": np.zeros(self.frames_per_clip, np.uint32),
            "left_out": np.zeros(self.frames_per_clip, np.uint32),
        }
        for t, each in enumerate(found):
            arrays["label_map"][t] = fit_label(each.label_map, self.size, self.fit)
            arrays["masks"][t], arrays["left_out"][t] = each.masks, each.left_out
        return Outcome(arrays, inputs=combined_digest(digests.values()))
