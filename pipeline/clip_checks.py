"""CRC-32C of each clip of an array: what whoever reads a clip holds against what came back.

Computed of the values in memory (C order, as the store has them) before they are written, so that
it holds from end to end: it tells another clip's bytes, a fill value where a file is missing, and
another type of number. Written as eight hex digits a clip, one string an array; the strings of
units in order make that of a split. Processors compute CRC-32C at ten gigabytes a second.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

DIGITS = 8


def crc32c(data: Any) -> int:
    """Of a buffer, such as a flat array of bytes."""
    import google_crc32c

    return google_crc32c.value(data)


def clip_check(clip: np.ndarray) -> int:
    """The check of one clip."""
    return crc32c(np.ascontiguousarray(clip).reshape(-1).view(np.uint8))


def clip_checks(arrays: Mapping[str, np.ndarray], clips: int) -> dict[str, str]:
    """The checks of the first `clips` clips of arrays, name -> text."""
    return {
        name: "".join(f"{clip_check(array[clip]):0{DIGITS}x}" for clip in range(clips))
        for name, array in arrays.items()
    }


def parse_checks(text: str, clips: int) -> np.ndarray:
    """Checks as numbers, [clips] uint32. Raises ValueError where the text is not so many."""
    data = bytes.fromhex(text)
    if len(text) != DIGITS * clips or 2 * len(data) != len(text):
        raise ValueError(f"checks of {len(text) / DIGITS:g} clips, not {clips}")
    return np.frombuffer(data, ">u4").astype(np.uint32)
