"""Multi-scale deformable attention in plain PyTorch (Zhu et al., Deformable DETR, section 4.1).

Bilinear sampling is linear in the value rows: each output row is a weighted sum of four rows for
every sampled point. All levels together are therefore one `embedding_bag`, which never writes the
sampled vectors to memory. The maps get a border of zeros first, so that points outside need no
masks, and what follows from the sampling points is computed again in the backward direction rather
than kept. Side by side on two CPU cores (5 frames of 7, 14 and 28 squared pixels, 8 heads, 4
points) one `grid_sample` a level took five times as long forward and twice as long backward, a
plain gather longer still.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Corners:
    """Where every sampled point falls: the four rows around it, and how far it is from each."""

    index: Tensor
    """[N, Lq, heads, levels, points, 4] int: upper left, upper right, lower left, lower right."""
    right: Tensor
    """[N, Lq, heads, levels, points]: 0 at the left column, 1 at the right one."""
    lower: Tensor
    """The same from the upper to the lower row."""

    def shares(self, weights: Tensor) -> Tensor:
        """How much of each corner enters the sum; shape of `index`."""
        lower = weights * self.lower
        upper = weights - lower
        upper_right, lower_right = upper * self.right, lower * self.right
        return torch.stack(
            [upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1
        )


def _starts(shapes: Shapes) -> list[int]:
    """First row of each level, its border of zeros counted, and the number of rows."""
    starts = [0]
    for h, w in shapes:
        starts.append(starts[-1] + (h + 2) * (w + 2))
    return starts


def _planes(shapes: Shapes, locations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Width and height [levels, 1], then x and y of every point in pixels of the bordered maps."""
    sizes = [[float(h), float(w)] for h, w in shapes]
    size = torch.tensor(sizes, dtype=locations.dtype, device=locations.device)
    height, width = size[:, 0, None], size[:, 1, None]
    return width, height, locations[..., 0] * width + 0.5, locations[..., 1] * height + 0.5


def _corners(shapes: Shapes, locations: Tensor, shared: bool) -> _Corners:
    batch, _, heads, _, _, _ = locations.shape
    device = locations.device
    width, height, x, y = _planes(shapes, locations)
    # Beyond the border every share falls on zeros.
    nothing = torch.zeros((), dtype=locations.dtype, device=device)
    x, y = x.clamp_(nothing, width + 1), y.clamp_(nothing, height + 1)
    # A diverged network's NaN must come out as NaN, not as a row number.
    left = x.floor().clamp_(max=width).nan_to_num_(0.0)
    top = y.floor().clamp_(max=height).nan_to_num_(0.0)

    *starts, rows = _starts(shapes)
    integer = torch.int32 if batch * rows * heads < 2**31 else torch.int64
    start = torch.tensor(starts, dtype=integer, device=device)[:, None]
    stride = width.to(integer) + 2
    row = top.to(integer).mul_(stride).add_(left.to(integer)).add_(start).mul_(heads)
    row.add_(torch.arange(heads, dtype=integer, device=device)[:, None, None])
    if not shared:
        clip = torch.arange(batch, dtype=integer, device=device) * (rows * heads)
        row.add_(clip[:, None, None, None, None])
    step = stride * heads
    corner = torch.stack([step * 0, step * 0 + heads, step, step + heads], dim=-1)
    index = row[..., None] + corner
    return _Corners(index, x.sub_(left), y.sub_(top))


def _sum_of_rows(rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """out[b] = sum over k of shares[b, k] * rows[index[b, k]]."""
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=shares)


def _gradient_of_rows(grad: Tensor, index: Tensor, shares: Tensor, rows: int) -> Tensor:
    """The same kind of sum the other way round, once the entries are sorted by row.

    PyTorch's own backward of `embedding_bag` adds one bag after another.
    """
    by_row, order = index.flatten().sort()
    every_row = torch.arange(rows, dtype=index.dtype, device=index.device)
    return F.embedding_bag(
        order.div(index.shape[1], rounding_mode="trunc"),
        grad,
        torch.searchsorted(by_row, every_row),
        mode="sum",
        per_sample_weights=shares.flatten().index_select(0, order),
    )


def _gradient_of_shares(grad: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """[b, k]: product of grad[b] and rows[index[b, k]]."""
    bags, entries = index.shape
    bag = torch.arange(bags, dtype=index.dtype, device=index.device)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, index.flatten(), bag * entries, bag.repeat_interleave(entries), 0
    )
    return products.view(bags, entries)


class _Sample(torch.autograd.Function):
    """Weighted bilinear samples; what follows from locations and weights is not kept but redone."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes, shared: bool
    ) -> Tensor:
        """rows: [N * S' * heads, d] of the bordered maps. Returns [N * Lq * heads, d]."""
        ctx.save_for_backward(rows, locations, weights)
        ctx.shapes, ctx.shared = shapes, shared
        corners = _corners(shapes, locations, shared)
        shares = corners.shares(weights)
        return _sum_of_rows(
            rows, corners.index.flatten(3).flatten(0, 2), shares.flatten(3).flatten(0, 2)
        )

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, locations, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        corners = _corners(ctx.shapes, locations, ctx.shared)
        index = corners.index.flatten(3).flatten(0, 2)
        of_rows = of_locations = of_weights = None
        if ctx.needs_input_grad[0]:
            shares = corners.shares(weights).flatten(3).flatten(0, 2)
            of_rows = _gradient_of_rows(grad, index, shares, rows.shape[0])
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_shares = _gradient_of_shares(grad, rows, index).view_as(corners.index)
            upper_left, upper_right, lower_left, lower_right = of_shares.unbind(dim=-1)
            upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
            upper = upper_left + corners.right * upper_step
            down = lower_left + corners.right * lower_step - upper
            of_weights = upper + corners.lower * down
            along_x = upper_step + corners.lower * (lower_step - upper_step)
            width, height, x, y = _planes(ctx.shapes, locations)
            # Where the border stopped a point, moving it changes nothing.
            along_x = along_x * weights * width * ((x >= 0) & (x <= width + 1))
            along_y = down * weights * height * ((y >= 0) & (y <= height + 1))
            of_locations = torch.stack([along_x, along_y], dim=-1)
        return of_rows, of_locations, of_weights, None, None


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples from several feature levels.

    value: [N, S, heads, d], the levels' pixels in row-major order one level after another,
    S = sum of H * W; N may be 1 for values shared by all queries' batches.
    shapes: (H, W) of each level.
    locations: [N, Lq, heads, levels, points, 2] as (x, y), 0..1 from edge to edge of a map
    (`align_corners=False`); outside of it the maps are zero.
    weights: [N, Lq, heads, levels, points].
    Returns [N, Lq, heads * d] in value's dtype; the sums are made in float32 or better.
    Raises ValueError when S is not the sum of the levels' sizes.
    """
    sizes = [h * w for h, w in shapes]
    if value.shape[1] != sum(sizes):
        raise ValueError(f"{value.shape[1]} value rows for levels {list(shapes)}")
    exact = torch.promote_types(value.dtype, torch.float32)
    levels = value.to(exact).flatten(2).split(sizes, dim=1)
    bordered = torch.cat(
        [
            F.pad(level.unflatten(1, (h, w)), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
            for level, (h, w) in zip(levels, shapes, strict=True)
        ],
        dim=1,
    )
    rows = bordered.reshape(-1, value.shape[3])
    shared = value.shape[0] == 1
    summed = _Sample.apply(rows, locations.to(exact), weights.to(exact), shapes, shared)
    return summed.reshape(*locations.shape[:2], -1).to(value.dtype)


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its reference point, in every level and head.

    Sub-module names are those of the published checkpoints.
    """

    def __init__(
        self, embed_dim: int = 256, heads: int = 8, levels: int = 4, points: int = 4
    ) -> None:
        """Raises ValueError when embed_dim is not a multiple of heads."""
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"width {embed_dim} is not a multiple of {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(embed_dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(embed_dim, heads * levels * points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h starts looking in direction h of eight, its point p at distance p + 1 pixels."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.points + 1, dtype=torch.float32)
        grid = direction[:, None, None, :] * distance[:, None]
        grid = grid.expand(self.heads, self.levels, self.points, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(grid.flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def project_values(self, values: Tensor) -> Tensor:
        """[N, S, embed_dim] -> [N, S, heads, embed_dim / heads], once for many query batches."""
        return self.value_proj(values).unflatten(-1, (self.heads, -1))

    def forward(self, query: Tensor, reference: Tensor, values: Tensor, shapes: Shapes) -> Tensor:
        """Attended values of every query.

        query: [N, Lq, embed_dim], positions included.
        reference: [N, Lq, levels, 2] points (x, y), or [N, Lq, levels, 4] boxes (centre x,
        centre y, width, height), in 0..1; N may be 1. Offsets count in pixels of a level around
        a point, and in halves of a box (divided by the number of points) around a box.
        values: [N, S, embed_dim], or already projected [N, S, heads, embed_dim / heads].
        Returns [N, Lq, embed_dim]. Raises ValueError for a reference that is neither.
        """
        if values.dim() == 3:
            values = self.project_values(values)
        grid = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*grid, 2)).to(reference.dtype)
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        centre = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 2:
            size = torch.tensor(
                [(w, h) for h, w in shapes], dtype=reference.dtype, device=reference.device
            )
            locations = centre + offsets / size[:, None, :]
        elif reference.shape[-1] == 4:
            half = reference[:, :, None, :, None, 2:] * (0.5 / self.points)
            locations = centre + offsets * half
        else:
            raise ValueError(f"reference of {reference.shape[-1]} numbers: 2 or 4 are known")
        weights = weights.unflatten(-1, (self.levels, self.points))
        return self.output_proj(sample_levels(values, shapes, locations, weights))
