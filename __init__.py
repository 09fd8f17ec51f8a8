"""COMBO: which pixels make the sound that is heard? (Cooperation Does Matter, CVPR 2024)"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline.api import Combo, open_store, predict

__version__ = "0.1.0"

__all__ = ["Combo", "__version__", "open_store", "predict"]


def __getattr__(name: str) -> object:
    """The library, imported when it is first used: `combo --help` needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .pipeline import api

    return getattr(api, name)
