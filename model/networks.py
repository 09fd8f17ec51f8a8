"""Networks by name. To add one: a file with its settings, network, criterion and presets, and an
entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .combo import Combo
from .criterion import Criterion
from .interface import Network, NetworkCriterion
from .presets import PRESETS, TRAINING
from .settings import ComboSettings, NetworkSettings


@dataclass(frozen=True)
class NetworkKind:
    """What the trainer must know of a network. All are made from its settings alone."""

    settings: type[NetworkSettings]
    presets: Mapping[str, Any]
    """Name -> settings; a name's last part, as in combo-r50-s4, is the data set that it is for."""
    training: Mapping[str, Mapping[str, Any]]
    """Preset -> training settings that are not the data set's; presets without any may be left out.
    """
    build: Callable[[Any, bool], Network]
    """The network; True: with what its encoders learned on ImageNet, by timm."""
    criterion: Callable[[Any], NetworkCriterion]


NETWORKS: dict[str, NetworkKind] = {
    "combo": NetworkKind(ComboSettings, PRESETS, TRAINING, Combo, Criterion),
}
