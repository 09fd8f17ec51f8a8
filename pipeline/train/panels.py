"""Pictures of a few clips as a network sees them, made while they are evaluated."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from ..media.images import Pixels
from ..painting import paint
from .loader import ClipReader, StoredBatch
from .processes import Processes

SHOWN = 4
"""Clips, the same at every evaluation, spread evenly over the split."""


class Panels:
    """Of a split's clips some that this process evaluates."""

    def __init__(self, reader: ClipReader, together: Processes) -> None:
        mine = reader.labelled[together.rank :: together.count]
        places = np.linspace(0, len(mine) - 1, min(SHOWN, len(mine))).round().astype(int)
        rows = (reader.rows[mine[place]] for place in places)
        self._pictures = {reader.plan.clips[row]: np.zeros((0, 0, 3), np.uint8) for row in rows}

    def seen(self, clip: StoredBatch, scores: Tensor) -> None:
        """As `measure` tells of each clip."""
        name = clip.clips[0]
        if name in self._pictures:
            predicted = scores.argmax(1).byte().cpu()
            self._pictures[name] = panel(clip, predicted.numpy())

    def pictures(self) -> Iterable[tuple[str, Pixels]]:
        """Clips and their panels, when all are evaluated."""
        return self._pictures.items()


def panel(clip: StoredBatch, predicted: Pixels) -> Pixels:
    """A column for each frame that a clip has; below each other the frames, with the truth over
    them, and with the prediction, [3 * H, T * W, 3].

    clip: a batch of one.  predicted: [T, H, W] classes.
    """
    there = clip.present[0].numpy()
    frames = clip.frames[0].movedim(1, -1).numpy()[there]
    labels = clip.labels[0].numpy()[there]
    rows = (frames, paint(frames, labels), paint(frames, predicted[there]))
    return np.concatenate([np.concatenate([*row], axis=1) for row in rows])
