"""Deformable attention's sampling on a GPU: two Triton kernels, for `sample_levels`.

A program makes some output rows, each of one query and one head, and reads the four corners of each
of their points; nothing between input and output is written to memory. The backward direction reads
the corners once more and adds up what they get with atomic operations, whose order, and therefore
last bits, differ from run to run: `torch.use_deterministic_algorithms(True)` takes plain PyTorch.

Pixels, borders and numbers that are none are as in `deformable_attention`, against which tests hold
the kernels, in float64, in Triton's interpreter.
"""

# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

ROWS = 4
"""Output rows a program of one warp makes. On an H100 the best of 1 to 8 warps and 4 to 64 rows,
of one head or of all: 0.93 of the time of 32 rows and 4 warps."""


@triton.jit
def _axis(place, length):
    """A coordinate in 0..1 -> its pixel, the share of the next one, and whether moving counts."""
    pixel = place * length - 0.5
    free = (pixel >= -1) & (pixel <= length)
    pixel = tl.clamp(pixel, -1.0, length.to(pixel.dtype), propagate_nan=tl.PropagateNan.ALL)
    corner = tl.floor(pixel)
    return corner.to(tl.int32), pixel - corner, free


@triton.jit
def _rows(
    rows, value_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A program's rows among all, which of them there are, what of [ROWS, CHANNELS] there is, and
    where each row's head begins in the values, and in the rows.
    """
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    there = row < rows
    wide = there[:, None] & (channel < WIDTH)[None, :]
    pixels = batch * value_stride + (row % HEADS)[:, None] * WIDTH + channel[None, :]
    row = batch * rows + row
    return row, there, wide, pixels, row[:, None] * WIDTH + channel[None, :]


@triton.jit
def _forward(
    value, maps, locations, weights, out, value_stride, rows,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, there, wide, pixels, places = _rows(rows, value_stride, HEADS, WIDTH, CHANNELS, ROWS)
    exact = locations.dtype.element_ty
    total = tl.zeros((ROWS, CHANNELS), dtype=exact)
    for level in range(LEVELS):
        height, width = tl.load(maps + 3 * level), tl.load(maps + 3 * level + 1)
        first = tl.load(maps + 3 * level + 2)
        for point in tl.static_range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            x, right, _ = _axis(tl.load(locations + 2 * place, mask=there, other=0), width)
            y, lower, _ = _axis(tl.load(locations + 2 * place + 1, mask=there, other=0), height)
            weight = tl.load(weights + place, mask=there, other=0)
            for down in tl.static_range(2):
                for across in tl.static_range(2):
                    column, line = x + across, y + down
                    share = (right if across else 1 - right) * (lower if down else 1 - lower)
                    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
                    offset = (first + line * width + column).to(tl.int64) * (HEADS * WIDTH)
                    seen = tl.load(
                        value + pixels + offset[:, None], mask=wide & inside[:, None], other=0
                    ).to(exact)
                    total += (share * weight)[:, None] * seen
    tl.store(out + places, total, mask=wide)


@triton.jit
def _backward(
    gradient, value, maps, locations, weights, of_value, of_locations, of_weights,
    value_stride, rows,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, there, wide, pixels, places = _rows(rows, value_stride, HEADS, WIDTH, CHANNELS, ROWS)
    exact = locations.dtype.element_ty
    given = tl.load(gradient + places, mask=wide, other=0).to(exact)
    for turn in range(LEVELS):
        level = (turn + tl.program_id(0)) % LEVELS  # neighbours add to other maps: 0.96 of the time
        height, width = tl.load(maps + 3 * level), tl.load(maps + 3 * level + 1)
        first = tl.load(maps + 3 * level + 2)
        for point in tl.static_range(POINTS):
            place = (row * LEVELS + level) * POINTS + point
            x, right, free_x = _axis(tl.load(locations + 2 * place, mask=there, other=0), width)
            y, lower, free_y = _axis(
                tl.load(locations + 2 * place + 1, mask=there, other=0), height
            )
            weight = tl.load(weights + place, mask=there, other=0)
            of_weight = tl.zeros((ROWS, CHANNELS), dtype=exact)
            of_x = tl.zeros((ROWS, CHANNELS), dtype=exact)
            of_y = tl.zeros((ROWS, CHANNELS), dtype=exact)
            for down in tl.static_range(2):
                for across in tl.static_range(2):
                    column, line = x + across, y + down
                    of_column = right if across else 1 - right
                    of_line = lower if down else 1 - lower
                    inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
                    offset = (first + line * width + column).to(tl.int64) * (HEADS * WIDTH)
                    where = pixels + offset[:, None]
                    mask = wide & inside[:, None]
                    seen = tl.load(value + where, mask=mask, other=0).to(exact)
                    of_weight += (of_column * of_line)[:, None] * seen
                    of_x += (of_line if across else -of_line)[:, None] * seen
                    of_y += (of_column if down else -of_column)[:, None] * seen
                    tl.atomic_add(
                        of_value + where,
                        (of_column * of_line * weight)[:, None] * given,
                        mask=mask,
                        sem="relaxed",
                    )
            tl.store(of_weights + place, tl.sum(of_weight * given, axis=1), mask=there)
            of_x = tl.sum(of_x * given, axis=1) * weight * width * free_x
            of_y = tl.sum(of_y * given, axis=1) * weight * height * free_y
            tl.store(of_locations + 2 * place, of_x, mask=there)
            tl.store(of_locations + 2 * place + 1, of_y, mask=there)


def _launch(kernel: Any, arrays: tuple[Tensor, ...], value: Tensor, locations: Tensor) -> None:
    batch, queries, heads, levels, points, _ = locations.shape
    width = value.shape[3]
    rows = queries * heads
    with torch.cuda.device_of(value):  # Triton starts kernels on the current device
        kernel[(triton.cdiv(rows, ROWS), batch)](
            *arrays,
            0 if value.shape[0] == 1 else value.stride(0),
            rows,
            HEADS=heads,
            LEVELS=levels,
            POINTS=points,
            WIDTH=width,
            CHANNELS=triton.next_power_of_2(width),
            ROWS=ROWS,
            num_warps=1,
        )


@library.custom_op("combo::sample_levels", mutates_args=())
def sample(value: Tensor, maps: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` of contiguous tensors: value [N, S, heads, d], N may be 1; maps [levels, 3]
    int32, `Levels.maps`; locations and weights float32 or float64, in which the sums are made.

    Returns [N * Lq * heads, d] in value's dtype.
    """
    out = value.new_empty(locations.shape[:3].numel(), value.shape[3])
    _launch(_forward, (value, maps, locations, weights, out), value, locations)
    return out


@sample.register_fake
def _(value: Tensor, maps: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    del maps, weights
    batch, queries, heads = locations.shape[:3]
    return value.new_empty(batch * queries * heads, value.shape[3])


@library.custom_op("combo::sample_levels_backward", mutates_args=())
def gradients(
    gradient: Tensor, value: Tensor, maps: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of value, locations and weights; that of value in the dtype of the sums."""
    of_value = torch.zeros(value.shape, dtype=locations.dtype, device=value.device)
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    arrays = (gradient, value, maps, locations, weights, of_value, of_locations, of_weights)
    _launch(_backward, arrays, value, locations)
    return of_value, of_locations, of_weights


@gradients.register_fake
def _(
    gradient: Tensor, value: Tensor, maps: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del gradient, maps
    of_value = torch.empty(value.shape, dtype=locations.dtype, device=value.device)
    return of_value, torch.empty_like(locations), torch.empty_like(weights)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, maps, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = gradients(
        gradient.contiguous(), value, maps, locations, weights
    )
    return of_value.to(value.dtype), None, of_locations, of_weights


sample.register_autograd(_differentiate, setup_context=_remember)
