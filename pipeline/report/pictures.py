"""Pictures and sounds as `data:` addresses, which a page carries within itself."""

import base64
import io

import numpy as np
from PIL import Image

from ..media.images import Pixels
from .sound import Heard, spectrogram, wav

SEAM = (128, 128, 128)
QUALITY = 80


def strip(frames: Pixels, exact: bool = False) -> str:
    """Frames [T,H,W,3] side by side, as an image. exact: every pixel as it is, for flat colours.

    Each frame takes the same share of the width, a thin seam at its right end included, so that a
    place in the picture is a moment of the clip.
    """
    seamed = frames.copy()
    seamed[:-1, :, -2:] = SEAM
    return image(np.concatenate([*seamed], axis=1), exact)


def image(pixels: Pixels, exact: bool = False) -> str:
    """A picture [H,W,3] as WebP, which every browser of these years shows."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=exact, quality=QUALITY, method=4)
    return address("image/webp", file.getvalue())


def sound(heard: Heard) -> tuple[str, str]:
    """A spectrogram, and the sound itself."""
    return image(spectrogram(heard)), address("audio/wav", wav(heard))


def address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
