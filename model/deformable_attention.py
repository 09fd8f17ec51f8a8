"""Multi-scale deformable attention (Zhu et al., Deformable DETR, section 4.1).

In plain PyTorch here; on GPUs the sampling is that of `sampling_kernels`.

Bilinear sampling is linear in the value rows: each output row is a weighted sum of four rows for
every sampled point. All levels together are therefore one `embedding_bag`, which never writes the
sampled vectors to memory. The maps get a border of zeros first, so that points outside need no
masks, and what follows from the sampling points is computed again in the backward direction rather
than kept. Side by side on a CPU (5 frames of 7, 14 and 28 squared pixels, 8 heads, 4 points) one
`grid_sample` a level takes five times as long forward and a third longer backward.
"""

import importlib.util
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .levels import Levels, Shapes

_HAS_TRITON = importlib.util.find_spec("triton") is not None
"""It comes with PyTorch for NVIDIA's GPUs. A GPU without it is served by plain PyTorch."""


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


def _places(levels: Levels, locations: Tensor) -> Tensor:
    """x and y of every point in pixels of the bordered maps, [2, N, Lq, numbers of a vector]."""
    xy = locations.flatten(2, 4).movedim(-1, 0)
    return (
        torch.empty(xy.shape, dtype=xy.dtype, device=xy.device)
        .copy_(xy)
        .mul_(levels.size)
        .add_(0.5)
    )


def _corners(levels: Levels, places: Tensor, shared: bool) -> _Corners:
    """places: of `_places`, which become what is left of them."""
    batch = places.shape[1]
    integer = torch.int32 if batch * levels.rows < 2**31 else torch.int64
    # Beyond the border every share falls on zeros.
    places = places.clamp_(levels.zero, levels.far)
    # A diverged network's NaN must come out as NaN, not as a row number.
    corner = places.floor().clamp_(max=levels.size).nan_to_num_(0.0)
    across, down = corner.to(integer).mul_(levels.step).unbind()
    row = across.add_(down).add_(levels.start)
    if not shared:
        first = torch.arange(0, batch * levels.rows, levels.rows, dtype=integer, device=row.device)
        row.add_(first[:, None, None])
    heads = levels.heads
    below = row + levels.step[1, 0, 0]
    index = torch.stack([row, row + heads, below, below + heads], dim=-1)
    right, lower = places.sub_(corner).unbind()
    return _Corners(row, index, right, lower)


def _bordered_maps(rows: Tensor, levels: Levels) -> list[Tensor]:
    """[N * S' * heads, d], S' all pixels with borders -> views [N, H + 2, W + 2, heads, d]."""
    pixels = rows.view(-1, levels.rows // levels.heads, levels.heads, rows.shape[1])
    maps, first = [], 0
    for h, w in levels.bordered:
        maps.append(pixels.narrow(1, first, h * w).unflatten(1, (h, w)))
        first += h * w
    return maps


def _with_borders(value: Tensor, levels: Levels) -> Tensor:
    """[N, S, heads, d] -> rows [N * S' * heads, d], zeros around each level."""
    rows = value.new_zeros(value.shape[0] * levels.rows, value.shape[3])
    maps = value.split([h * w for h, w in levels.shapes], dim=1)
    for size, level, place in zip(levels.shapes, maps, _bordered_maps(rows, levels), strict=True):
        place[:, 1:-1, 1:-1] = level.unflatten(1, size)
    return rows


def _without_borders(rows: Tensor, levels: Levels) -> Tensor:
    """The reverse: [N * S' * heads, d] -> [N, S, heads, d]."""
    maps = _bordered_maps(rows, levels)
    return torch.cat([level[:, 1:-1, 1:-1].flatten(1, 2) for level in maps], dim=1)


def _sum_of_rows(rows: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """out[b] = sum over k of shares[b, k] * rows[index[b, k]]."""
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=shares)


def _gradient_of_rows(
    grad: Tensor, upper_left: Tensor, shares: Tensor, rows: int, levels: Levels
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
    heads = levels.heads
    upper[heads:] += upper_right[:-heads]
    lower[heads:] += lower_right[:-heads]
    maps = (_bordered_maps(part, levels) for part in (upper, lower))
    for of_upper, of_lower in zip(*maps, strict=True):
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
            warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)")
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
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, levels: Levels
    ) -> Tensor:
        """Arguments of `sample_levels`, float32 or better. Returns [N * Lq * heads, d]."""
        rows = _with_borders(value, levels)
        ctx.save_for_backward(rows, locations, weights)
        ctx.levels, ctx.shared = levels, value.shape[0] == 1
        corners = _corners(levels, _places(levels, locations), ctx.shared)
        shares = corners.shares(weights.flatten(2))
        return _sum_of_rows(rows, _bags(corners.index, levels.heads), _bags(shares, levels.heads))

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, locations, weights = ctx.saved_tensors
        levels: Levels = ctx.levels
        grad, heads = grads[0].contiguous(), levels.heads
        places = _places(levels, locations)
        # Where the border stops a point, moving it changes nothing.
        moves = (places >= 0) & (places <= levels.far)
        corners = _corners(levels, places, ctx.shared)
        flat = weights.flatten(2)
        of_value = of_locations = of_weights = None
        if ctx.needs_input_grad[0]:
            shares = _bags(corners.shares(flat), heads)
            of_rows = _gradient_of_rows(grad, corners.upper_left, shares, len(rows), levels)
            of_value = _without_borders(of_rows, levels)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_shares = _gradient_of_shares(grad, rows, _bags(corners.index, heads))
            upper_left, upper_right, lower_left, lower_right = of_shares.view_as(
                corners.index
            ).unbind(dim=-1)
            upper_step, lower_step = upper_right - upper_left, lower_right - lower_left
            upper = upper_left + corners.right * upper_step
            down = lower_left + corners.right * lower_step - upper
            of_weights = (upper + corners.lower * down).view_as(weights)
            across = upper_step + corners.lower * (lower_step - upper_step)
            of_places = torch.stack([across, down]).mul_(flat).mul_(levels.size).mul_(moves)
            of_locations = of_places.movedim(0, -1).reshape(locations.shape)
        return of_value, of_locations, of_weights, None


def sample_levels(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples from several feature levels.

    value: [N, S, heads, d], the levels' pixels in row-major order one level after another,
    S = sum of H * W; N may be 1 for values shared by all queries' batches.
    locations: [N, Lq, heads, levels, points, 2] as (x, y), 0..1 from edge to edge of a map
    (`align_corners=False`); outside of it the maps are zero.
    weights: [N, Lq, heads, levels, points].
    Returns [N, Lq, heads * d] in value's dtype; the sums are made in float32 or better.
    Raises ValueError when S is not the sum of the levels' sizes.
    """
    if value.shape[1] != levels.pixels:
        raise ValueError(f"{value.shape[1]} value rows for levels {list(levels.shapes)}")
    exact = torch.promote_types(value.dtype, torch.float32)
    locations, weights = locations.to(exact), weights.to(exact)
    if value.is_cuda and _HAS_TRITON and not torch.are_deterministic_algorithms_enabled():
        from .sampling_kernels import sample

        summed = sample(
            value.contiguous(), levels.maps, locations.contiguous(), weights.contiguous()
        )
    else:
        summed = _Sample.apply(value.to(exact), locations, weights, levels)
    return summed.reshape(*locations.shape[:2], -1).to(value.dtype)


def _softmax(logits: Tensor) -> Tensor:
    """[N, Lq, heads, k] -> the same in float32 at least, softmax over k.

    A CPU takes a tenth of the time when the rows lie side by side instead of one after another.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    columns = logits.flatten(0, 1).permute(1, 2, 0).softmax(dim=1, dtype=exact)
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

    def sees(self, shapes: Shapes, device: torch.device | None = None) -> Levels:
        """What to hand to `forward` for maps of these sizes."""
        return Levels.of(shapes, self.heads, self.points, device)

    def project_values(self, values: Tensor) -> Tensor:
        """[N, S, embed_dim] -> [N, S, heads, embed_dim / heads], once for many query batches."""
        return self.value_proj(values).unflatten(-1, (self.heads, -1))

    def forward(self, query: Tensor, reference: Tensor, values: Tensor, levels: Levels) -> Tensor:
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
            offsets = offsets / levels.offset_size
        elif reference.shape[-1] == 4:
            offsets = offsets * self._spread(reference[..., 2:] * (0.5 / self.points))
        else:
            raise ValueError(f"reference of {reference.shape[-1]} numbers: 2 or 4 are known")
        locations = (self._spread(reference[..., :2]) + offsets).unflatten(-1, (*grid, 2))
        weights = _softmax(self.attention_weights(query).unflatten(-1, (self.heads, -1)))
        weights = weights.unflatten(-1, (self.levels, self.points))
        return self.output_proj(sample_levels(values, levels, locations, weights))

    def _spread(self, of_levels: Tensor) -> Tensor:
        """[..., levels, 2] -> [..., heads * levels * points * 2], as offsets are ordered."""
        every = of_levels[..., None, :, None, :]
        every = every.expand(*of_levels.shape[:-2], self.heads, -1, self.points, -1)
        return every.flatten(-4)
