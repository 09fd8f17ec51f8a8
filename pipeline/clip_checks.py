"""What each clip of an array must be: the checksum that ends the clip's chunk in a shard.

That is the lower half of XXH64 of the clip's bytes, with which zstd ends what it compresses (RFC
8878, 3.1.1) and which decoders hold what they decode against. So a reader need hash nothing: once a
clip is decoded, these four bytes of its chunk say which clip it was. To look at them takes some
microseconds where hashing a clip takes hundreds, a third of what reading it takes.

Written as eight hex digits a clip, one string an array; the strings of units in order make that of
a split.
"""

import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DIGITS = 8
MISSING = 2**64 - 1
"""Where a shard's index says that a chunk is, if there is none."""


def clip_check(clip: np.ndarray) -> int:
    """The check of a clip's values."""
    import xxhash

    return xxhash.xxh64_intdigest(np.ascontiguousarray(clip).data) & 0xFFFFFFFF


def clip_checks(arrays: Mapping[str, np.ndarray], clips: int) -> dict[str, str]:
    """The checks of the first `clips` clips of arrays, name -> text."""
    return {
        name: "".join(f"{clip_check(array[clip]):0{DIGITS}x}" for clip in range(clips))
        for name, array in arrays.items()
    }


def parse_checks(text: str, clips: int) -> np.ndarray:
    """Checks as numbers, [clips] int64. Raises ValueError where the text is not so many."""
    data = bytes.fromhex(text)
    if len(text) != DIGITS * clips or 2 * len(data) != len(text):
        raise ValueError(f"checks of {len(text) / DIGITS:g} clips, not {clips}")
    return np.frombuffer(data, ">u4").astype(np.int64)


def checks_in(shard: Path, clips: int) -> np.ndarray:
    """The checksums that stand in a shard, [clips] int64; -1 where there is no such chunk.

    A shard ends with its index, 64 bits for where each chunk begins and how long it is, and the
    index's own checksum of 4 bytes.
    """
    found = np.full(clips, -1)
    try:
        file = os.open(shard, os.O_RDONLY)
    except OSError:
        return found
    try:
        length = 16 * clips + 4
        index = os.pread(file, length, max(os.fstat(file).st_size - length, 0))
        places = struct.iter_unpack("<QQ", index[:-4])
        for clip, (begin, size) in enumerate(places):
            if begin != MISSING:
                found[clip] = int.from_bytes(os.pread(file, 4, begin + size - 4), "little")
    except (OSError, OverflowError, struct.error, IndexError):
        found[:] = -1  # an index that is none; decoders say so
    finally:
        os.close(file)
    return found
