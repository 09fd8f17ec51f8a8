"""What a sound encoder is: windows of sound in, some numbers a window out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ComboError

if TYPE_CHECKING:
    from torch import Tensor

    FrontEnd = Callable[[Tensor, int], Tensor]
    """Windows [W, samples] of one sound, and how many to compute at once -> patches [W, ...]."""

    Encode = Callable[[Tensor], Tensor]
    """Patches [N, ...] of a unit's sounds -> [N, width] float32, on the CPU."""

LOG_MEL = (96, 64)
"""Shape of the log-mel patches that AVSBench-object holds in `audio_log_mel`."""


def log_mel() -> "FrontEnd":
    """The log-mel patches of `combo.model.vggish`."""
    from ...model.vggish import LogMel

    return LogMel()


@dataclass(frozen=True)
class Encoder:
    """An encoder, and how sound is cut for it. Defaults: as for VGGish.

    open: (weights' files by name, device of the network, memory limit in bytes) -> the function.
    weights: catalogue names of what it needs.  width: numbers a window.  rate: samples per second.
    window, stride: samples of a window, and between neighbouring ones of the consecutive kind.
    front_end: makes what turns windows into patches of the shape `patch`; runs on the CPU, in
    several threads.  window_bytes: its working memory for each window that it computes at once.
    """

    open: "Callable[[Mapping[str, Path], str, int | None], Encode]"
    weights: tuple[str, ...] = ()
    width: int = 128
    rate: int = 16_000
    window: int = 15_600
    stride: int = 15_360
    front_end: "Callable[[], FrontEnd]" = log_mel
    patch: tuple[int, ...] = LOG_MEL
    window_bytes: int = 3 << 20


def misfit(error: Exception) -> ComboError:
    """What is said of VGGish weights that the network does not take."""
    reason = " ".join(str(error).split())
    return ComboError(f"the VGGish weights do not fit: {reason}; see combo weights verify")
