"""How a mask is painted over pictures: tinted, with an outline; everything else as it is."""

from dataclasses import dataclass

import numpy as np

from ..media.images import Pixels
from .masks import colours

TINT, OUTLINE = 0.5, 1.0
"""Shares of a class's colour inside a mask, and on its edge."""


@dataclass(frozen=True)
class Paint:
    """A mask made ready to be painted over many pictures of its size.

    Only the box around what is masked is touched.
    """

    box: tuple[slice, slice]
    kept: np.ndarray
    """[h,w,1] uint16: 256ths of the picture that stay."""
    added: np.ndarray
    """[h,w,3] uint16: 256ths of a colour's values that come on top."""

    @classmethod
    def of(cls, mask: Pixels) -> "Paint | None":
        """mask: [H,W] uint8, classes. None where there is nothing but background."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside = mask[box]
        share = np.where(inside > 0, round(256 * TINT), 0)
        edge = _edge(inside, max(1, round(min(mask.shape) / 300)))
        share[edge] = round(256 * OUTLINE)
        kept, colour = 256 - share[..., None], colours()[inside].astype(np.uint16)
        return cls(box, kept.astype(np.uint16), (colour * share[..., None]).astype(np.uint16))

    def over(self, picture: Pixels) -> Pixels:
        """A copy of a picture [H,W,3] with the mask over it."""
        painted = picture.copy()
        part = painted[self.box]
        part[:] = (part * self.kept + self.added) >> 8
        return painted


def _edge(mask: Pixels, width: int) -> np.ndarray:
    """Pixels of a class within `width` of another one, or of the background."""
    edge = np.zeros(mask.shape, bool)
    padded = np.pad(mask, width)
    height, wide = mask.shape
    for by in range(1, width + 1):
        for down, across in ((by, 0), (-by, 0), (0, by), (0, -by)):
            there = padded[width + down :, width + across :][:height, :wide]
            edge |= there != mask
    return edge & (mask > 0)
