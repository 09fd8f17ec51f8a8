"""Sound encoders by name.

To add one, write a module that makes its `Encoder` and name it in ENCODERS; modules import what is
heavy where they compute.
"""

from collections.abc import Mapping

from ..errors import unknown
from .encoder import Encoder
from .mel_stats import MEL_STATS
from .torchvggish import TORCHVGGISH
from .vggish import VGGISH, VGGISH_PCA

ENCODERS: Mapping[str, Encoder] = {
    "vggish": VGGISH,
    "vggish-pca": VGGISH_PCA,
    "torchvggish": TORCHVGGISH,
    "mel-stats": MEL_STATS,
}


def encoder(name: str) -> Encoder:
    """The encoder of that name. Raises ComboError."""
    if name not in ENCODERS:
        raise unknown(f"no sound encoder {name!r}", name, ENCODERS, "stages.audio.encoder may be")
    return ENCODERS[name]
