"""Felzenszwalb and Huttenlocher's graph segmentation: segments instead of masks, no weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...model.mask_settings import CONFIG, MOST_MASKS
from ..devices import Place
from ..media.images import Pixels
from .generator import Arithmetic, Generate, Generator, LabelMap


@dataclass(frozen=True, config=CONFIG)
class FelzenszwalbSettings:
    """scikit-image's parameters."""

    scale: Annotated[float, Field(gt=0, le=1e9)] = 200.0
    """Larger: larger segments."""
    sigma: Annotated[float, Field(ge=0, le=1000)] = 0.8
    """Of the Gaussian that smooths the frame first, in pixels."""
    min_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 60
    """Smallest segment, in pixels."""


def merge_segments(segments: np.ndarray) -> LabelMap:
    """The Maskige rule for segments that do not overlap: ranks by area, the smallest first.

    segments: [H,W] integers from 0, each value one segment. Gives what
    `combo.model.maskige.merge` gives for the segments' masks, without making them.
    """
    areas = np.bincount(segments.ravel())
    kept = areas.argsort(kind="stable")[:MOST_MASKS]
    ranks = np.zeros(len(areas), np.uint8)
    ranks[kept] = np.arange(1, len(kept) + 1)
    return LabelMap(ranks[segments], len(areas), len(areas) - len(kept))


def _open(
    own: FelzenszwalbSettings, arithmetic: Arithmetic, weights: Path | None, place: Place
) -> Generate:
    from skimage.segmentation import felzenszwalb

    del arithmetic, weights, place

    def generate(frames: Sequence[Pixels]) -> list[LabelMap]:
        return [
            merge_segments(
                felzenszwalb(frame, scale=own.scale, sigma=own.sigma, min_size=own.min_size)
            )
            for frame in frames
        ]

    return generate


FELZENSZWALB = Generator("felzenszwalb", FelzenszwalbSettings, _open)
