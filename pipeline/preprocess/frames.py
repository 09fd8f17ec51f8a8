"""Frames and labels of a clip, at the size they are stored in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import Place
from ..imports import IMPORTED, settings_of
from ..layouts import Clip
from ..media.labels import LABEL_IGNORED, LabelRule, read_label
from ..media.limits import USUAL, Limits
from ..media.pictures import (
    Fit,
    fit_frame,
    fit_label,
    frame_files,
    read_frames,
)
from ..store import ArraySpec, Variant
from .stage import Description, Outcome, Worker, attempt, combined_digest, read_as

VERSION = 1
BINARY = 2
"""Classes of a data set whose labels are masks: background and object."""


def describe(
    size: tuple[int, int],
    fit: Fit,
    frames_per_clip: int,
    label_rule: LabelRule | None = None,
    classes: int = 0,
    imported: tuple[str, str] | None = None,
    reading: int = 1,
) -> Description:
    """Frames and labels of a size.

    label_rule, classes: what the data set's folder says; none when it is not asked.
    imported: of clips whose frames somebody else has resized, tree and note (see `imported`).
    reading: the layout's.
    """
    height, width = size
    label = f"{height}x{width}-{fit}"
    settings: dict[str, Any] = {"size": list(size), "fit": fit, **read_as(reading)}
    if imported is not None:
        label += f"-{IMPORTED}"
        settings |= settings_of("frames", *imported)
    if label_rule not in (None, "binary" if classes == BINARY else "index"):
        settings["label_rule"] = label_rule  # elsewhere it follows from the classes, in the plan
    return Description(
        "frames",
        label,
        VERSION,
        settings,
        (
            ArraySpec("frames", (frames_per_clip, height, width, 3), "uint8"),
            ArraySpec("labels", (frames_per_clip, height, width), "uint8", LABEL_IGNORED),
            ArraySpec("present", (frames_per_clip,), "uint8"),
            ArraySpec("annotated", (frames_per_clip,), "uint8"),
        ),
        {"label_rule": label_rule, "classes": classes},
    )


@dataclass(frozen=True)
class FramesStage:
    """Reads, checks and fits frames and labels.

    Arrays a clip: frames [T,H,W,3] uint8 RGB, labels [T,H,W] uint8 (255: ignored or not annotated),
    present [T] (the clip has this frame), annotated [T] (the frame has a label
    image that labels at least one of its pixels).
    """

    size: tuple[int, int]
    fit: Fit
    frames_per_clip: int
    label_rule: LabelRule
    classes: int
    imported: tuple[str, str] | None = None
    limits: Limits = USUAL
    reading: int = 1

    def variant(self) -> Variant:
        labels = self.label_rule, self.classes
        return describe(
            self.size, self.fit, self.frames_per_clip, *labels, self.imported, self.reading
        ).variant()

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
                rule, shape = self.label_rule, picture.shape[:2]
                label = read_label(
                    path, rule, self.classes, shape, digests, self.limits, clip.frames[t]
                )
                labels[t] = fit_label(label, self.size, self.fit)
                annotated[t] = (labels[t] != LABEL_IGNORED).any()
        return Outcome(
            {"frames": frames, "labels": labels, "present": present, "annotated": annotated},
            inputs=combined_digest(digests.values()),
        )
