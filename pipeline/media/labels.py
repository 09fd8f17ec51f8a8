"""Label images as class maps, and painted Maskiges as label maps: what was drawn, or refused.

A label that is read as something else poisons training and nobody sees it. So a value counts as it
is stored, not as it is shown; a file whose format changes values is refused or, where two values
are so far apart as a mask's, parted at half; and a label drawn on a picture that its program showed
as it is stored is turned with the picture.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MediaError
from .images import (
    AS_STORED,
    IS_LOSSY,
    SIXTEEN_BIT_MODES,
    Pixels,
    open_image,
    orientation,
    rgb,
    size_of,
    turned,
)
from .limits import USUAL, Limits
from .pictures import FrameSource

LABEL_IGNORED = 255
"""The label of pixels that count nowhere: marked so, or not annotated."""

LabelRule = Literal["binary", "index"]

_SIDES_CHANGE = (5, 6, 7, 8)
"""EXIF orientations of pictures that are shown as high as they are stored wide."""


def read_label(
    path: Path,
    rule: LabelRule,
    classes: int,
    shape: tuple[int, ...] | None = None,
    digests: dict[Path, str] | None = None,
    limits: Limits = USUAL,
    frame: FrameSource | None = None,
) -> Pixels:
    """One label image as a class map, [H,W] uint8 in 0..classes-1, or 255: without a label.

    rule "binary": AVSBench-object's value // 255, so 255 is the object and all else background; of
    a lossy file (JPEG), values from 128 up. Bilevel, grey and palette files are told apart by their
    pixels; an alpha that varies is the mask where there is but one colour, and must otherwise say
    the same as the colours. rule "index": the value is the class, as it is stored, and 255 none.
    shape: the frame's; its first two numbers must be the label's. frame: where it is from. A label
    is turned as its own EXIF orientation says; one that fits the frame's picture only as that is
    stored is turned with it.
    Raises MediaError naming the file: unreadable, a value outside the range, a class map in a lossy
    file, a mask that marks something but nowhere with 255, an alpha that says something else than
    the colours, another size than its frame.
    """
    with open_image(path, digests, limits) as image:
        turn = orientation(image)
        # Its width is the picture's height: drawn on the picture as it is stored?
        if shape is not None and shape[0] != shape[1] and image.size == tuple(shape[:2]):
            turn = _orientation_of(frame, limits) if turn == 1 else turn
        upright = turned(image, turn)
        values = _binary(upright, path) if rule == "binary" else stored_classes(upright, path)
    if shape is not None and values.shape != tuple(shape[:2]):
        raise MediaError(
            path, f"label of {size_of(values)} pixels, but its frame has {shape[1]}x{shape[0]}"
        )
    labelled = values if rule == "binary" else values[values != LABEL_IGNORED]
    low, top = (int(labelled.min()), int(labelled.max())) if labelled.size else (0, 0)
    if top >= classes or low < 0:
        wrong = top if top >= classes else low
        raise MediaError(path, f"label value {wrong} is outside 0..{classes - 1}")
    return values.astype(np.uint8)


def read_painted(
    path: Path,
    palette: NDArray[np.uint8],
    digests: dict[Path, str] | None = None,
    limits: Limits = USUAL,
) -> Pixels:
    """A Maskige's picture as the label map it was painted from, [H,W] uint8: palette[map] is it.

    palette: [256,3], RGB.  Of a palette picture the stored indices are taken where they are painted
    alike; an index beyond the file's own palette is the grey (i,i,i), as the public code reads it
    (later Pillows read black). Otherwise a colour becomes the lowest index that has it.
    Raises MediaError naming the file: unreadable, or a colour that no index paints.
    """
    with open_image(path, digests, limits) as image:
        if image.mode != "P":
            return _indices_of(rgb(image, path), palette, path)
        stored = np.array(image)
        own = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours[: len(own)] = own
    used = np.unique(stored)
    if np.array_equal(colours[used], palette[used]):
        return stored
    return _indices_of(colours[stored], palette, path)


def _binary(image: Image.Image, path: Path) -> NDArray[np.integer]:
    """0 and 1 of an object's mask, by its colours or, where there is but one, its alpha."""
    coloured = image.mode in ("1", "RGB", "RGBA", "LA", "CMYK", "YCbCr")
    values = np.asarray(image.convert("L") if coloured else image)
    if image.mode == "P" and not (values == 255).any():
        values = np.asarray(image.convert("L"))
    if values.ndim != 2 or int(values.max()) > 255:
        raise MediaError(path, f"mask of mode {image.mode}, expected 8 bits a pixel")
    alpha, over_one_colour = varying_alpha(image)
    if alpha is None:
        return _halves(values, image, path)
    if over_one_colour:
        return _halves(alpha, image, path)
    mask = _halves(values, image, path)
    demand_nothing_hidden(mask, alpha, path)
    return mask


def varying_alpha(image: Image.Image) -> tuple[Pixels | None, bool]:
    """The alpha of an opened picture in which it varies, [H,W] uint8, else None; and whether there
    is but one colour, so that it is the mask."""
    if not image.has_transparency_data:
        return None, False
    pixels = np.asarray(image.convert("RGBA"))
    alpha, colours = pixels[..., 3], pixels[..., :3]
    varies = bool((alpha != alpha[0, 0]).any())
    return (alpha if varies else None), bool((colours == colours[0, 0]).all())


def demand_nothing_hidden(mask: NDArray[np.generic], alpha: Pixels, path: Path) -> None:
    """Raise MediaError for a mask that marks what its alpha hides."""
    if mask[alpha == 0].any():
        raise MediaError(
            path, "mask whose white is transparent, save it as a grey PNG without transparency"
        )


def _halves(values: NDArray[np.integer], image: Image.Image, path: Path) -> NDArray[np.integer]:
    """value // 255, as the benchmark has it; what went through a lossy file is parted at half."""
    top = int(values.max())
    lossy = image.info[IS_LOSSY]
    if 0 < top < (128 if lossy else 255):
        # value // 255 would read such a mask, 0 and 1 say, as nothing but background
        raise MediaError(path, f"mask whose largest value is {top}: the object must be 255")
    return (values >= 128).astype(np.uint8) if lossy else values // 255


def stored_classes(image: Image.Image, path: Path) -> NDArray[np.integer]:
    """The class of each pixel of an opened class map, [H,W]: its value as it is stored.

    Raises MediaError for a lossy file, and for colours.
    """
    if image.info[IS_LOSSY]:
        raise MediaError(path, f"class map in a lossy file ({image.info[IS_LOSSY]}), save as PNG")
    if image.mode not in ("1", "L", "P", *SIXTEEN_BIT_MODES):
        raise MediaError(path, f"label image of mode {image.mode}, expected a class index a pixel")
    if image.mode == "P":
        return np.asarray(image)
    stored, shown, inverted = image.info[AS_STORED]
    values = (np.asarray(image).astype(np.int64) * stored + shown // 2) // shown
    return stored - values if inverted else values


def _orientation_of(frame: FrameSource | None, limits: Limits) -> int:
    if not isinstance(frame, Path):
        return 1
    with open_image(frame, None, limits) as image:
        turn = orientation(image)
    return turn if turn in _SIDES_CHANGE else 1


def _indices_of(pixels: Pixels, palette: NDArray[np.uint8], path: Path) -> Pixels:
    """The lowest index of each pixel's colour, [H,W] uint8."""
    weights = np.array([1 << 16, 1 << 8, 1], np.uint32)
    known, lowest = np.unique(palette @ weights, return_index=True)
    colours = pixels @ weights
    places = np.searchsorted(known, colours).clip(max=len(known) - 1)
    strange = known[places] != colours
    if strange.any():
        row, column = np.argwhere(strange)[0].tolist()
        colour = tuple(pixels[row, column].tolist())
        raise MediaError(
            path,
            f"no label is painted {colour}, which {int(strange.sum())} pixels are "
            f"(the first in row {row}, column {column})",
        )
    return lowest[places].astype(np.uint8)
