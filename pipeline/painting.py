"""Masks painted over frames: one way of doing it, for sheets, reports and videos."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .media.images import Pixels
from .media.labels import LABEL_IGNORED


def _colours() -> NDArray[np.uint8]:
    """The colours of AVSBench's classes, those of PASCAL VOC: the bits of a class's number, lowest
    first, become the highest bits of red, green and blue in turn. [256, 3]."""
    classes = np.arange(256)[:, None]
    bits = [((classes >> (3 * k + np.arange(3))) & 1) << (7 - k) for k in range(3)]
    found = np.sum(bits, axis=0).astype(np.uint8)
    found[LABEL_IGNORED] = 255
    return found


COLOURS = _colours()
"""[256, 3] uint8, the colour of each class; white for pixels without a label."""


def paint(frame: Pixels, labels: Pixels) -> Pixels:
    """A frame with its classes painted over it, half transparent, each with a border.

    frame: [..., H, W, 3] uint8 RGB.  labels: [..., H, W] uint8, or bool for one object; class 0 is
    the background and stays as it is, 255 is "no label" and becomes white. Returns the frame's
    shape, a copy.
    """
    labels = labels.astype(np.uint8, copy=False)
    painted = frame.copy()
    over = labels > 0
    painted[over] = (frame[over] >> 1) + (COLOURS[labels[over]] >> 1)
    painted[_borders(labels) & over] = (255, 255, 255)
    return painted


@dataclass(frozen=True)
class Paint:
    """Labels made ready to be painted over many frames of their size, as `paint` paints one.

    Only the box around what is labelled is touched.
    """

    box: tuple[slice, slice]
    halved: NDArray[np.uint8]
    """[h,w,1]: 1 where a frame's values are halved."""
    kept: NDArray[np.uint8]
    """[h,w,1]: 255 where anything of the frame stays."""
    added: Pixels

    @classmethod
    def of(cls, labels: Pixels) -> "Paint | None":
        """labels: [H, W] uint8. None where there is nothing but background."""
        rows, columns = np.flatnonzero(labels.any(1)), np.flatnonzero(labels.any(0))
        if not len(rows):
            return None
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = labels[box]
        over, border = inside > 0, _borders(labels)[box] & (inside > 0)
        added = np.where(over[..., None], COLOURS[inside] >> 1, 0).astype(np.uint8)
        added[border] = 255
        kept = np.where(border, 0, 255).astype(np.uint8)
        return cls(box, over[..., None].astype(np.uint8), kept[..., None], added)

    def over(self, frame: Pixels) -> Pixels:
        """A copy of a frame [H, W, 3] with the labels over it."""
        painted = frame.copy()
        part = painted[self.box]
        part[:] = ((part >> self.halved) & self.kept) + self.added
        return painted


def _borders(labels: Pixels) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour, or whose left or upper one, is of another class."""
    found = np.zeros(labels.shape, bool)
    for axis in (-1, -2):
        differs = np.diff(labels.astype(np.int16), axis=axis) != 0
        near = np.moveaxis(found, axis, -1)
        near[..., 1:] |= np.moveaxis(differs, axis, -1)
        near[..., :-1] |= np.moveaxis(differs, axis, -1)
    return found
