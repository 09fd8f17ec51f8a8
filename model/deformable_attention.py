"""Multi-scale deformable attention in plain PyTorch (Zhu et al., Deformable DETR, section 4.1).

Bilinear sampling is linear in the value rows: each output row is a weighted sum of four rows for
every sampled point. All levels together are therefore one `embedding_bag`, which never writes the
sampled vectors to memory. The maps get a border of zeros first, so that points outside need no
masks, and what follows from the sampling points is computed again in the backward direction rather
than kept. Side by side on a CPU (5 frames of 7, 14 and 28 squared pixels, 8 heads, 4 points) one
`grid_sample` a level takes five times as long forward and a third longer backward.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Grid:
    """The bordered maps as every sampled number sees its own: vectors of [heads * levels * points].

    Arithmetic on them is an order faster than on [heads, levels, points] against [levels, 1].
    """

    width: Tensor
    """Pixels, without the border; `height` the same."""
    height: Tensor
    start: Tensor
    """int: row of the level's first pixel, for this head."""
    stride: Tensor
    """int: rows from one line of the map to the next."""
    heads: int
    rows: int
    """Of one batch entry, all heads together."""

    @classmethod
    def of(cls, shapes: Shapes, locations: Tensor, integer: torch.dtype) -> "_Grid":
        heads, _, points = locations.shape[2:5]
        device = locations.device
        firsts = [0]
        for h, w in shapes:
            firsts.append(firsts[-1] + (h + 2) * (w + 2))
        sizes = torch.tensor(
            [[float(h), float(w)] for h, w in shapes], dtype=locations.dtype, device=device
        )
        first = torch.tensor(firsts[:-1], dtype=integer, device=device) * heads
        head = torch.arange(heads, dtype=integer, device=device)[:, None, None]
        height, width = sizes.unbind(dim=1)
        stride = (width.to(integer) + 2) * heads

        def spread(of_levels: Tensor) -> Tensor:
            return of_levels[:, None].expand(heads, -1, points)

        return cls(
            spread(width).flatten(),
            spread(height).flatten(),
            (spread(first) + head).flatten(),
            spread(stride).flatten(),
            heads,
            firsts[-1] * heads,
        )

    def place(self, locations: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of every point in pixels of the bordered maps, [N, Lq, numbers of a vector]."""
        x, y = (part.flatten(2) for part in locations.unbind(dim=-1))
        return x * self.width + 0.5, y * self.height + 0.5


@dataclass(frozen=True)
class _Corners:
    """Where every sampled point falls: the four rows around it, and how far it is from each."""

    upper_left: Tensor
    """[N, Lq, heads * levels * points] int."""
    index: Tensor
    """[N, Lq, heads * levels * points, 4] int: upper left, upper right, lower left, lower right."""
    right: Tensor
    """[N, Lq, heads * levels * points]: 0 at the left column, 1 at the right one."""
    lower: Tensor
    """The same from the upper to the lower row."""

    def shares(self, weights: Tensor) -> Tensor:
        """How much of each corner enters the sum; weights as `right`, returns shape of `index`."""
        lower = weights * self.lower
        upper = weights - lower
        upper_right, lower_right = upper * self.right, lower * self.right
        return torch.stack(
            [upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1
        )


def _bags(corners: Tensor, heads: int) -> Tensor:
    """[N, Lq, heads * k, 4] -> [N * Lq * heads, k * 4]: what one output row is made of."""
    return corners.flatten(2).unflatten(2, (heads, -1)).flatten(0, 2)


def _integer(shapes: Shapes, locations: Tensor) -> torch.dtype:
    rows = sum((h + 2) * (w + 2) for h, w in shapes)
    return torch.int32 if locations.shape[0] * locations.shape[2] * rows < 2**31 else torch.int64


def _corners(grid: _Grid, locations: Tensor, integer: torch.dtype, shared: bool) -> _Corners:
    x, y = grid.place(locations)
    # Beyond the border every share falls on zeros.
    nothing = torch.zeros((), dtype=locations.dtype, device=locations.device)
    x, y = x.clamp_(nothing, grid.width + 1), y.clamp_(nothing, grid.height + 1)
    # A diverged network's NaN must come out as NaN, not as a row number.
    left = x.floor().clamp_(max=grid.width).nan_to_num_(0.0)
    top = y.floor().clamp_(max=grid.height).nan_to_num_(0.0)

    row = top.to(integer).mul_(grid.stride).add_(left.to(integer).mul_(grid.heads))
    row.add_(grid.start)
    if not shared:
        batch = torch.arange(len(row), dtype=integer, device=row.device) * grid.rows
        row.add_(batch[:, None, None])
    below = row + grid.stride
    index = torch.stack([row, row + grid.heads, below, below + grid.heads], dim=-1)
    return _Corners(row, index, x.sub_(left), y.sub_(top))


def _bordered_levels(rows: Tensor, heads: int, shapes: Shapes) -> list[Tensor]:
    """[N * S' * heads, d], S' all pixels with borders -> views [N, H + 2, W + 2, heads, d]."""
    bordered = [(h + 2, w + 2) for h, w in shapes]
    pixels = rows.view(-1, sum(h * w for h, w in bordered), heads, rows.shape[1])
    levels, first = [], 0
    for h, w in bordered:
        levels.append(pixels.narrow(1, first, h * w).unflatten(1, (h, w)))
        first += h * w
    return levels


def _with_borders(value: Tensor, shapes: Shapes) -> Tensor:
    """[N, S, heads, d] -> rows [N * S' * heads, d], zeros around each level."""
    batch, _, heads, width = value.shape
    pixels = sum((h + 2) * (w + 2) for h, w in shapes)
    rows = value.new_zeros(batch * pixels * heads, width)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for size, level, place in zip(
        shapes, levels, _bordered_levels(rows, heads, shapes), strict=True
    ):
        place[:, 1:-1, 1:-1] = level.unflatten(1, size)
    return rows


def _without_borders(rows: Tensor, heads: int, shapes: Shapes) -> Tensor:
    """The reverse: [N * S' * heads, d] -> [N, S, heads, d]."""
    levels = _bordered_levels(rows, heads, shapes)
    return torch.cat([level[:, 1:-1, 1:-1].flatten(1, 2) for level in levels], dim=1)


def _sum_of_rows(rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """out[b] = sum over k of shares[b, k] * rows[index[b, k]]."""
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=shares)


def _gradient_of_rows(
    grad: Tensor, upper_left: Tensor, shares: Tensor, rows: int, heads: int, shapes: Shapes
) -> Tensor:
    """[rows, d]: the same kind of sum the other way round, once the entries are sorted by row.

    PyTorch's own backward of `embedding_bag` adds one bag after another. Of a point's four corners
    only the upper left one is sorted, a quarter of the numbers: what all four give is first
    gathered there, and then moved one pixel to the right and one line down.
    """
    by_row, point = upper_left.flatten().sort()
    bag = point.div(len(point) // len(grad), rounding_mode="trunc")
    every_row = torch.arange(rows, dtype=by_row.dtype, device=by_row.device)
    first = torch.searchsorted(by_row, every_row)
    upper, upper_right, lower, lower_right = (
        F.embedding_bag(bag, grad, first, mode="sum", per_sample_weights=of_corner.contiguous())
        for of_corner in shares.view(-1, 4).index_select(0, point).unbind(dim=1)
    )
    upper[heads:] += upper_right[:-heads]
    lower[heads:] += lower_right[:-heads]
    levels = (_bordered_levels(part, heads, shapes) for part in (upper, lower))
    for of_upper, of_lower in zip(*levels, strict=True):
        of_upper[:, 1:] += of_lower[:, :-1]
    return upper


def _gradient_of_shares(grad: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """[b, k]: product of grad[b] and rows[index[b, k]].

    On a CPU this is a dense product looked at in few places, for which PyTorch has a kernel three
    times as fast as its backward of `embedding_bag`; a compiler knows the latter only.
    """
    bags, entries = index.shape
    bag = torch.arange(bags + 1, dtype=index.dtype, device=index.device)
    if index.device.type == "cpu" and not torch.compiler.is_compiling():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            places = torch.sparse_csr_tensor(
                bag.long() * entries,
                index.flatten().long(),
                grad.new_zeros(bags * entries),
                size=(bags, len(rows)),
                check_invariants=False,
            )
        torch.sparse.sampled_addmm(places, grad, rows.T, out=places)
        return places.values().view(bags, entries)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, rows, index.flatten(), bag[:-1] * entries, bag[:-1].repeat_interleave(entries), 0
    )
    return products.view(bags, entries)


class _Sample(torch.autograd.Function):
    """Weighted bilinear samples; what follows from locations and weights is not kept but redone."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
    ) -> Tensor:
        """Arguments of `sample_levels`, float32 or better. Returns [N * Lq * heads, d]."""
        rows = _with_borders(value, shapes)
        ctx.save_for_backward(rows, locations, weights)
        ctx.shapes, ctx.shared = shapes, value.shape[0] == 1
        integer, heads = _integer(shapes, locations), locations.shape[2]
        grid = _Grid.of(shapes, locations, integer)
        corners = _corners(grid, locations, integer, ctx.shared)
        shares = corners.shares(weights.flatten(2))
        return _sum_of_rows(rows, _bags(corners.index, heads), _bags(shares, heads))

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, locations, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        integer, heads = _integer(ctx.shapes, locations), locations.shape[2]
        grid = _Grid.of(ctx.shapes, locations, integer)
        corners = _corners(grid, locations, integer, ctx.shared)
        flat = weights.flatten(2)
        of_value = of_locations = of_weights = None
        if ctx.needs_input_grad[0]:
            shares = _bags(corners.shares(flat), heads)
            of_rows = _gradient_of_rows(
                grad, corners.upper_left, shares, len(rows), heads, ctx.shapes
            )
            of_value = _without_borders(of_rows, heads, ctx.shapes)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_shares = _gradient_of_shares(grad, rows, _bags(corners.index, heads))
            of_shares = of_shares.view_as(corners.index)
            upper_left, upper_right, lower_left, lower_right = of_shares.unbind(dim=-1)
            upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
            upper = upper_left + corners.right * upper_step
            down = lower_left + corners.right * lower_step - upper
            of_weights = (upper + corners.lower * down).view_as(weights)
            along_x = upper_step + corners.lower * (lower_step - upper_step)
            x, y = grid.place(locations)
            # Where the border stopped a point, moving it changes nothing.
            along_x = along_x * flat * grid.width * ((x >= 0) & (x <= grid.width + 1))
            along_y = down * flat * grid.height * ((y >= 0) & (y <= grid.height + 1))
            of_locations = torch.stack([along_x, along_y], dim=-1).view_as(locations)
        return of_value, of_locations, of_weights, None


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
    summed = _Sample.apply(value.to(exact), locations.to(exact), weights.to(exact), shapes)
    return summed.reshape(*locations.shape[:2], -1).to(value.dtype)


def _softmax(logits: Tensor) -> Tensor:
    """[N, Lq, heads, k] -> the same, softmax over k.

    A CPU takes a tenth of the time when the rows lie side by side instead of one after another.
    """
    columns = logits.flatten(0, 1).permute(1, 2, 0).softmax(dim=1)
    return columns.permute(2, 0, 1).contiguous().unflatten(0, logits.shape[:2])


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
        offsets = self.sampling_offsets(query).to(reference.dtype)
        if reference.shape[-1] == 2:
            size = torch.tensor(
                [(w, h) for h, w in shapes], dtype=reference.dtype, device=reference.device
            )
            offsets = offsets / self._spread(size)
        elif reference.shape[-1] == 4:
            offsets = offsets * self._spread(reference[..., 2:] * (0.5 / self.points))
        else:
            raise ValueError(f"reference of {reference.shape[-1]} numbers: 2 or 4 are known")
        locations = (self._spread(reference[..., :2]) + offsets).unflatten(-1, (*grid, 2))
        weights = _softmax(self.attention_weights(query).unflatten(-1, (self.heads, -1)))
        weights = weights.unflatten(-1, (self.levels, self.points))
        return self.output_proj(sample_levels(values, shapes, locations, weights))

    def _spread(self, of_levels: Tensor) -> Tensor:
        """[..., levels, 2] -> [..., heads * levels * points * 2], as offsets are ordered."""
        every = of_levels[..., None, :, None, :]
        every = every.expand(*of_levels.shape[:-2], self.heads, -1, self.points, -1)
        return every.flatten(-4)
