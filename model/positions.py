"""Where pixels are: their centres, and sine positions (Vaswani et al.; the two-axis form of DETR).

All maps of a forward at once: they share the arithmetic, and each length of a side is worked out
once.
"""

import math

import torch
from torch import Tensor

from .levels import Shapes
from .transfers import send


def _axes(shapes: Shapes, device: torch.device | None) -> tuple[dict[int, slice], Tensor, Tensor]:
    """Each length of a side -> its part of two float32 vectors: 1 to the length, and the length."""
    lengths = sorted({length for shape in shapes for length in shape})
    parts: dict[int, slice] = {}
    first = 0
    for length in lengths:
        parts[length] = slice(first, first + length)
        first += length
    rows = [
        [float(place) for length in lengths for place in range(1, length + 1)],
        [float(length) for length in lengths for _ in range(length)],
    ]
    places, of = send(
        torch.tensor(rows), torch.device("cpu") if device is None else device
    ).unbind()
    return parts, places, of


def sine_positions(
    shapes: Shapes, channels: int, device: torch.device | None = None
) -> list[Tensor]:
    """Fixed embeddings of every pixel, row by row: half of the channels for y, then those for x.

    Row i of H stands at (i + 1) / (H + 1e-6) of a full circle, the same for columns; the
    frequencies fall from 1 to 1 / 10000, sine and cosine in turn.
    Returns of each map (H, W) [H * W, channels] float32, -1..1.
    """
    of_axis = channels // 2
    parts, places, lengths = _axes(shapes, device)
    even = torch.arange(0, of_axis, 2, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (even / of_axis)
    angle = (places / (lengths + 1e-6) * (2 * math.pi))[:, None] / frequency
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    def of_map(height: int, width: int) -> Tensor:
        y = waves[parts[height]][:, None].expand(-1, width, -1)
        x = waves[parts[width]].expand(height, -1, -1)
        return torch.cat([y, x], dim=2).flatten(0, 1)

    return [of_map(*shape) for shape in shapes]


def pixel_centres(shapes: Shapes, device: torch.device | None = None) -> Tensor:
    """Centres of all maps' pixels as (x, y) in 0..1 of their map: [S, 2] float32, row by row."""
    parts, places, lengths = _axes(shapes, device)
    centre = (places - 0.5) / lengths
    pairs = [
        torch.stack([centre[parts[w]].expand(h, w), centre[parts[h]][:, None].expand(h, w)], dim=-1)
        for h, w in shapes
    ]
    return torch.cat([of_map.flatten(0, 1) for of_map in pairs])
