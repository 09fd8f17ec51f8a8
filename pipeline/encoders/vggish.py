"""VGGish, and VGGish whitened and quantised as AudioSet published it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .encoder import Encoder, misfit

if TYPE_CHECKING:
    from torch import Tensor

    from .encoder import Encode


def _open(weights: Mapping[str, Path], device: str, memory_limit: int | None) -> "Encode":
    from ...model.vggish import PATCH_BYTES, VGGish, Whitening, embed
    from ..state_files import load_state

    try:
        network = VGGish.from_state(load_state(weights["vggish"])).to(device)
        whitening = None
        if "vggish-pca" in weights:
            whitening = Whitening.from_state(load_state(weights["vggish-pca"])).to(device)
    except (RuntimeError, ValueError) as error:
        raise misfit(error) from None

    # On a CPU larger batches leave the caches; on a GPU smaller ones leave it idle.
    usual = 16 if device == "cpu" else 256
    at_once = usual if memory_limit is None else max(1, min(usual, memory_limit // PATCH_BYTES))

    def encode(patches: "Tensor") -> "Tensor":
        embeddings = embed(network, patches.to(device), at_once)
        return (embeddings if whitening is None else whitening(embeddings)).cpu()

    return encode


VGGISH = Encoder(_open, ("vggish",))
VGGISH_PCA = Encoder(_open, ("vggish", "vggish-pca"))
