"""Frames and labels of a clip, at the size they are stored in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..layouts import Clip
from ..limits import USUAL, Limits
from ..media import (
    Fit,
    LabelRule,
    fit_frame,
    fit_label,
    frame_files,
    read_frames,
    read_label,
)
from ..store import LABEL_IGNORED, ArraySpec, Variant
from .stage import Outcome, Place, Worker, attempt, combined_digest, make_variant

VERSION = 1


@dataclass(frozen=True)
class FramesStage:
    """Reads, checks and fits frames and labels.

    Arrays a clip: frames [T,H,W,3] uint8 RGB, labels [T,H,W] uint8 (255: ignored or not annotated),
    present [T] (the clip has this frame), annotated [T] (the frame has a label image).
    """

    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    label_rule: LabelRule
    classes: int
    imported: tuple[str, str] | None = None
    """Of clips whose frames somebody else has resized: tree and note, see `imported`."""
    limits: Limits = USUAL

    def variant(self) -> Variant:
        frames, (height, width) = self.frames_per_clip, self.size
        name = f"{height}x{width}-{self.fit}"
        settings: dict[str, Any] = {"size": list(self.size), "fit": self.fit}
        if self.imported is not None:
            tree, note = self.imported
            name += "-imported"
            settings |= {"source": "imported", "tree": tree, "note": note}
        return make_variant(
            "frames",
            name,
            VERSION,
            settings,
            (
                ArraySpec("frames", (frames, height, width, 3), "uint8"),
                ArraySpec("labels", (frames, height, width), "uint8", LABEL_IGNORED),
                ArraySpec("present", (frames,), "uint8"),
                ArraySpec("annotated", (frames,), "uint8"),
            ),
            attributes={"label_rule": self.label_rule, "classes": self.classes},
        )

    @property
    def has_network(self) -> bool:
        return False

    def open(self, place: Place) -> Worker:
        del place  # reading and resizing one clip is not worth dividing
        return self._run

    def inputs(self, clip: Clip) -> list[Path]:
        return [*frame_files(clip.frames), *(label for label in clip.labels if label is not None)]

    def _run(self, clips: Sequence[Clip]) -> list[Outcome]:
        return [attempt(clip, self._clip) for clip in clips]

    def _clip(self, clip: Clip) -> Outcome:
        digests: dict[Path, str] = {}
        shape = (self.frames_per_clip, *self.size)
        frames = np.zeros((*shape, 3), np.uint8)
        labels = np.full(shape, LABEL_IGNORED, np.uint8)
        present = np.zeros(self.frames_per_clip, np.uint8)
        annotated = np.zeros(self.frames_per_clip, np.uint8)
        pictures = read_frames(clip.frames, digests, self.limits)
        for t, (picture, path) in enumerate(zip(pictures, clip.labels, strict=True)):
            frames[t] = fit_frame(picture, self.size, self.fit)
            present[t] = 1
            if path is not None:
                label = read_label(
                    path, self.label_rule, self.classes, picture.shape, digests, self.limits
                )
                labels[t] = fit_label(label, self.size, self.fit)
                annotated[t] = 1
        return Outcome(
            {"frames": frames, "labels": labels, "present": present, "annotated": annotated},
            inputs=combined_digest(digests.values()),
        )
