"""A data set before anything is computed of it, so that wrong labels are seen on the first day."""

from dataclasses import replace

import numpy as np
from PIL import Image

from ..errors import MediaError
from ..jobs.plan import PlannedSplit
from ..layouts import Clip
from ..media.images import Pixels
from ..media.labels import LABEL_IGNORED, LabelRule, read_label
from ..media.pictures import read_frames
from ..painting import paint
from ..preprocess.audio import rule_of
from .clips import FRAMES, TRUTH, Panel, classes_in, columns, hearing
from .files import Files

LONG_SIDE = 224
"""Pixels of a picture's longer side; larger ones are made smaller."""


class RawClips:
    """The clips of a split as its files are."""

    def __init__(self, there: PlannedSplit) -> None:
        self.there = there
        self.files = Files(there.clips, limits=there.manifest.limits)
        audio = there.manifest.stages.audio
        rule = rule_of(audio, there.rules.sound_rule)
        self.audio = {**audio.model_dump(), "windows": rule}
        self.rule: LabelRule = there.rules.label_rule(there.manifest.root(there.where.data_set))

    def panel(self, clip: Clip) -> Panel:
        """Frames, labels and sound of a clip. Raises MediaError: its frames cannot be read."""
        if clip.problem is not None:
            raise MediaError(clip.name, clip.problem)
        spoken_of, shown = columns(len(clip.frames), self.there.plan.seconds_per_frame)
        pictures = read_frames([clip.frames[t] for t in shown], limits=self.files.limits)
        frames = np.stack([_small(picture, Image.Resampling.BILINEAR) for picture in pictures])
        labels = np.full(frames.shape[:3], LABEL_IGNORED, np.uint8)
        notes: list[str] = []
        for place, t in enumerate(shown):
            try:
                labels[place] = self._label(clip, t, pictures[place].shape[:2])
            except MediaError as error:
                notes.append(str(error))
        rows = {FRAMES: frames}
        if (labels != LABEL_IGNORED).any():
            rows[TRUTH] = paint(frames, labels)
        else:
            notes.append("no frame shown has a label")
        panel = Panel(clip.name, rows, classes=classes_in(labels, self.there.plan.classes))
        heard = hearing(panel, self.files, clip.name, self.audio, spoken_of)
        return replace(heard, notes=tuple(notes))

    def _label(self, clip: Clip, t: int, shape: tuple[int, ...]) -> Pixels:
        path = clip.labels[t]
        if path is None:
            return np.full(1, LABEL_IGNORED, np.uint8)
        classes, size = len(self.there.plan.classes), (shape[0], shape[1])
        label = read_label(
            path, self.rule, classes, size, limits=self.files.limits, frame=clip.frames[t]
        )
        return _small(label, Image.Resampling.NEAREST)

    def tile(self, clip: Clip) -> tuple[Panel, str]:
        """One frame of a clip, the middle one that has a label, and what is wrong with the clip.

        Raises MediaError: it cannot be read.
        """
        labelled = [t for t, label in enumerate(clip.labels) if label is not None]
        chosen = labelled or list(range(len(clip.frames)))
        if clip.problem is not None or not chosen:
            raise MediaError(clip.name, clip.problem or "no frame in it")
        t = chosen[len(chosen) // 2]
        (picture,) = read_frames([clip.frames[t]], limits=self.files.limits)
        frame = _small(picture, Image.Resampling.BILINEAR)
        if not labelled:
            return Panel(clip.name, {FRAMES: frame[None]}), "no label"
        label = self._label(clip, t, picture.shape[:2])
        rows = {FRAMES: frame[None], TRUTH: paint(frame, label)[None]}
        found = classes_in(label, self.there.plan.classes)
        says = ", ".join(found.values()) if found else "background alone"
        return Panel(clip.name, rows, classes=found), says


def _small(picture: Pixels, how: Image.Resampling) -> Pixels:
    """A picture [H,W(,3)] made smaller until it fits."""
    height, width = picture.shape[:2]
    shrink = min(1.0, LONG_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return np.array(Image.fromarray(picture).resize(size, how))
