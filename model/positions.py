"""Sine positions of pixels (Vaswani et al.; the two-axis form of DETR)."""

import math

import torch
from torch import Tensor


def sine_positions(
    height: int,
    width: int,
    channels: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Fixed embedding of every pixel, row by row: half of the channels for y, then those for x.

    Row i of H stands at (i + 1) / (H + 1e-6) of a full circle, the same for columns; the
    frequencies fall from 1 to 1 / 10000, sine and cosine in turn.
    Returns [height * width, channels], -1..1. The computation is in float32.
    """
    of_axis = channels // 2
    even = torch.arange(0, of_axis, 2, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (even / of_axis)

    def axis(length: int) -> Tensor:
        place = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = (place / (length + 1e-6) * (2 * math.pi))[:, None] / frequency
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(dtype)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width).expand(height, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1)
