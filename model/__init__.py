"""The networks of COMBO, its losses and metrics: tensors in, tensors out."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .combo import Combo, ComboOutput, Prediction
    from .criterion import Criterion
    from .interface import Losses, Network, NetworkCriterion
    from .networks import NETWORKS, NetworkKind
    from .optimiser import parameter_groups
    from .presets import PRESETS, preset
    from .settings import ComboSettings, NetworkSettings

__all__ = [
    "NETWORKS",
    "PRESETS",
    "Combo",
    "ComboOutput",
    "ComboSettings",
    "Criterion",
    "Losses",
    "Network",
    "NetworkCriterion",
    "NetworkKind",
    "NetworkSettings",
    "Prediction",
    "parameter_groups",
    "preset",
]

_HOMES = {
    "Combo": "combo",
    "ComboOutput": "combo",
    "ComboSettings": "settings",
    "Criterion": "criterion",
    "Losses": "interface",
    "NETWORKS": "networks",
    "Network": "interface",
    "NetworkCriterion": "interface",
    "NetworkKind": "networks",
    "NetworkSettings": "settings",
    "PRESETS": "presets",
    "Prediction": "combo",
    "parameter_groups": "optimiser",
    "preset": "presets",
}


def __getattr__(name: str) -> object:
    """Import a name's module when it is first used: whoever wants the palette needs no timm."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
