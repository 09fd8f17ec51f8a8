"""A batch's losses and gradients, from as many parts as the memory wants.

Losses are divided by what belongs to the whole batch: gradients of the parts add up to the batch's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...model.interface import NetworkCriterion
from . import processes
from .loader import Batch
from .presets import TrainSettings


def add_gradients(
    network: nn.Module,
    criterion: NetworkCriterion,
    batch: Batch,
    settings: TrainSettings,
    scaler: torch.amp.GradScaler,
    *,
    values: Tensor,
    divisors: Tensor,
    points: Sequence[torch.Generator],
) -> tuple[list[str], Tensor]:
    """Forward and backward of this process's share; each parameter then has its gradient, scaled.

    values, divisors, points: as `NetworkCriterion.forward` takes them, of the share.
    Returns the names of the losses, and "total"; and what they are, weighted, without gradient.
    """
    device, dtype = batch.frames.device, settings.dtype
    sums, names = torch.zeros((), device=device), list[str]()
    for first in range(0, len(points), settings.micro_batch):
        last = first + settings.micro_batch
        part = batch.part(first, last)
        with processes.parts(network, last=last >= len(points)):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                out = network(part.frames, part.maskige, part.sound, part.present)
            losses = criterion(
                out,
                part.labels,
                annotated=part.annotated,
                values=values[first:last],
                divisors=divisors,
                draws=points[first:last],
            )
            scaler.scale(losses.total).backward()
        names = [*losses, "total"]
        sums = sums + torch.cat([losses.stacked, losses.total[None]]).detach()
    return names, sums
