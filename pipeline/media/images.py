"""Image files, opened so that whatever is wrong with one is a `MediaError` that names it.

Only regular files of a bounded size are opened at all, and pixels are decoded when the picture's
size is known to be bounded too. What a label must know of its file (the values as they are stored,
whether the format is lossy) is asked before decoding, which forgets it.
"""

import hashlib
import io
import re
import struct
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import MediaError, reason_of
from .limits import Limits
from .regular_files import read_whole

Pixels = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF", "HEIF")
"""Image formats that are tried, whatever the file's name; the others may start helper programs."""

_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")
"""Formats whose pixels need not be what was drawn. WebP and TIFF may be, and tell."""

MAX_ASPECT = 256
"""Beyond it, scaling the short side up to the stored size would take gigabytes."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""

_ORIENTATION = 0x0112

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


AS_STORED, IS_LOSSY = "combo-as-stored", "combo-is-lossy"
"""Entries of an opened image's `info`, see `_as_stored` and `_is_lossy`."""


@contextmanager
def open_image(
    path: Path, digests: dict[Path, str] | None, limits: Limits
) -> Generator[Image.Image]:
    """An opened image with its pixels loaded; what the body finds wrong is a MediaError too."""
    data = read_whole(path, int(limits.bytes))
    if digests is not None:
        digests[path] = hashlib.sha256(data).hexdigest()
    _know_heif()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise MediaError(
                    path,
                    f"image of {width}x{height} pixels, more than limits.pixels ({limits.pixels})",
                )
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise MediaError(path, f"image of {width}x{height} pixels is too narrow to be one")
            image.info[AS_STORED] = _as_stored(image)
            image.info[IS_LOSSY] = _is_lossy(image, data)
            image.load()
            yield image
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(path, "not an image, or damaged at its start") from error
    except Image.DecompressionBombError as error:
        raise MediaError(path, f"image of more than limits.pixels ({limits.pixels})") from error
    except Exception as error:
        # Pillow's decoders raise whatever damaged bytes lead them into.
        raise MediaError(path, f"damaged image ({reason_of(error)})") from error


def orientation(image: Image.Image) -> int:
    """EXIF's number of the way in which a picture is stored, 1 where it is upright or untold."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # a damaged EXIF block says nothing, and the picture is shown as it is stored
    return value if value in _TURNS else 1


def turned(image: Image.Image, stored: int) -> Image.Image:
    """A picture upright that is stored as this `orientation` says."""
    return image if stored == 1 else image.transpose(_TURNS[stored])


def rgb(image: Image.Image, path: Path) -> Pixels:
    """[H,W,3] uint8 of a picture of any mode. Raises MediaError for floating-point pixels."""
    if image.mode == "F":
        raise MediaError(path, "image of floating-point pixels, expected 8 or 16 bits")
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MediaError(path, "image of more than 16 bits")
        grey = (values >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def size_of(array: Pixels | NDArray[np.integer]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _as_stored(image: Image.Image) -> tuple[int, int, bool]:
    """Of a grey image that is not decoded yet: the largest value that its file can hold, the value
    that Pillow makes of that, and whether it turns dark and bright round."""
    shown = {"1": 1, "L": 255}.get(image.mode, 0xFFFF)
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if not tiles:
        return shown, shown, False
    codec, arguments = tiles[0].codec_name, tiles[0].args
    arguments = (arguments,) if isinstance(arguments, str) else tuple(arguments or ())
    if codec.startswith("ppm"):
        stored = int(arguments[1]) if len(arguments) > 1 else shown
        return stored, shown, False
    of_raw = re.fullmatch(r"[1L];([124]?)(I?)R?", str(arguments[0])) if arguments else None
    bits, inverted = of_raw.groups() if of_raw else ("", "")
    return 2 ** int(bits) - 1 if bits else shown, shown, bool(inverted)


def _is_lossy(image: Image.Image, data: bytes) -> str:
    """The name of the format where its pixels need not be what was drawn, else ""."""
    kind = image.format or ""
    if kind == "TIFF":
        return "JPEG in TIFF" if "jpeg" in str(image.info.get("compression")) else ""
    if kind != "WEBP":
        return kind if kind in _LOSSY else ""
    place = 12
    while place + 8 <= len(data):
        chunk, length = struct.unpack_from("<4sI", data, place)
        if chunk in (b"VP8 ", b"VP8L", b"ANMF"):
            return "" if chunk == b"VP8L" else "WebP"
        place += 8 + length + length % 2
    return "WebP"


@cache
def _know_heif() -> None:
    """Let Pillow open HEIC."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
