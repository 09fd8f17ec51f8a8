"""Mean and deviation of each mel band: a sound encoder without weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .encoder import Encoder

if TYPE_CHECKING:
    from .encoder import Encode


def _open(weights: Mapping[str, Path], device: str, memory_limit: int | None) -> "Encode":
    from ...model.vggish import mel_statistics

    del weights, device, memory_limit
    return mel_statistics


MEL_STATS = Encoder(_open)
