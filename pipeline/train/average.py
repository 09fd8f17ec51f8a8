"""The mean of a run's networks, later ones counting more: it often scores better than the last."""

import copy
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...model.interface import Network


class Average:
    """An exponential moving average of a network's parameters, from where the run begins.

    It goes by iterations, like the schedule: a step that is not taken counts, too.
    """

    def __init__(self, network: Network, decay: float) -> None:
        """decay: what is left of the mean after a step, below 1."""
        self._update: Any = get_ema_multi_avg_fn(decay)
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """After each step. Buffers, such as those of frozen norms, stay what they are."""
        mean, now = list(self.network.parameters()), list(network.parameters())
        self._update(mean, now, 0)
