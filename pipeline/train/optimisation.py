"""AdamW and its learning rate, as the paper and the public code have them."""

import torch

from ...model.interface import Network
from .presets import TrainSettings


def optimiser_of(network: Network, settings: TrainSettings) -> torch.optim.AdamW:
    """A group for each learning rate and decay; `initial_lr` is that without the schedule."""
    groups = network.parameter_groups(
        settings.learning_rate, settings.weight_decay, settings.backbone_lr_factor
    )
    return torch.optim.AdamW([{**group, "initial_lr": group["lr"]} for group in groups], fused=True)


def learning_rate_factor(settings: TrainSettings, iteration: int) -> float:
    """Polynomial decay to 0, after a linear warm-up (the public code has none).

    Iterations are batches seen, as in the public code: a step that is skipped is one, too. So the
    rate ends at 0 with the last batch, and asks nothing of the device.
    """
    factor = (1 - iteration / settings.iterations) ** settings.power
    return factor * min(1.0, (iteration + 1) / max(1, settings.warmup))


def set_learning_rate(
    optimiser: torch.optim.Optimizer, settings: TrainSettings, iteration: int
) -> None:
    """That of the step after so many iterations."""
    factor = learning_rate_factor(settings, iteration)
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
