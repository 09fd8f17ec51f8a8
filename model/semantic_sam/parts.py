"""Work on tokens in parts, so that what a layer widens never exists for a whole image.

A hidden layer is four to eight times as wide as its tokens. Made for a photograph of twelve
megapixels it takes gigabytes; made for a few thousand tokens at a time it stays in a CPU's cache,
which is also faster. The parts' numbers are the whole's.
"""

from collections.abc import Iterator

from torch import Tensor

CPU_BYTES = 1 << 24
GPU_BYTES = 1 << 28
"""Bytes of the widest thing that is made at once."""


def parts(tokens: Tensor, width: int, fewest: int = 1) -> Iterator[slice]:
    """Slices of tokens [N, C] to work on one after another.

    width: numbers that the work makes of each token at its widest moment.  fewest: tokens a part
    has at least, where every part costs something of its own.
    """
    budget = CPU_BYTES if tokens.device.type == "cpu" else GPU_BYTES
    size = max(1, fewest, budget // (4 * width))
    for start in range(0, len(tokens), size):
        yield slice(start, start + size)
