"""Sound encoders by name: log-mel patches in, 128 numbers a patch out.

To add one, write a function that opens it and name it in ENCODERS, with the weights it needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ComboError

if TYPE_CHECKING:
    from torch import Tensor

    Encode = Callable[[Tensor], Tensor]
    """[N, 96, 64] log-mel patches -> [N, 128]."""


@dataclass(frozen=True)
class Encoder:
    """weights: catalogue names of what it needs.
    open: (weights' files by name, device of the network, memory limit in bytes) -> the function.
    """

    weights: tuple[str, ...]
    open: "Callable[[Mapping[str, Path], str, int | None], Encode]"


def encoder(name: str) -> Encoder:
    """The encoder of that name. Raises ComboError."""
    if name not in ENCODERS:
        raise ComboError(
            f"no sound encoder {name!r}; stages.audio.encoder may be {', '.join(ENCODERS)}"
        )
    return ENCODERS[name]


def _mel_stats(weights: Mapping[str, Path], device: str, memory_limit: int | None) -> "Encode":
    from ...model.vggish import mel_statistics

    del weights, device, memory_limit
    return mel_statistics


def _vggish(weights: Mapping[str, Path], device: str, memory_limit: int | None) -> "Encode":
    from ...model.vggish import PATCH_BYTES, VGGish, Whitening, embed
    from ..weights import load_state

    try:
        network = VGGish.from_state(load_state(weights["vggish"])).to(device)
        whitening = None
        if "vggish-pca" in weights:
            whitening = Whitening.from_state(load_state(weights["vggish-pca"])).to(device)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ComboError(
            f"the VGGish weights do not fit: {reason}; see combo weights verify"
        ) from None

    # On a CPU larger batches leave the caches; on a GPU smaller ones leave it idle.
    usual = 16 if device == "cpu" else 256
    at_once = usual if memory_limit is None else max(1, min(usual, memory_limit // PATCH_BYTES))

    def encode(patches: "Tensor") -> "Tensor":
        embeddings = embed(network, patches.to(device), at_once)
        return (embeddings if whitening is None else whitening(embeddings)).cpu()

    return encode


ENCODERS: Mapping[str, Encoder] = {
    "vggish": Encoder(("vggish",), _vggish),
    "vggish-pca": Encoder(("vggish", "vggish-pca"), _vggish),
    "mel-stats": Encoder((), _mel_stats),
}
