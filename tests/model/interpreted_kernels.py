"""The kernels against plain PyTorch, run line by line on the CPU.

Not collected: `test_sampling_kernels` runs it in a process whose Triton interprets.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from combo.model import sampling_kernels as kernels
from combo.model.deformable_attention import sample_levels
from combo.model.levels import Levels

SHAPES = [(3, 5), (6, 4), (1, 1)]


def problem(
    dtype: torch.dtype, batch: int = 2, shared: bool = False, queries: int = 7, width: int = 3
) -> list[Tensor]:
    """Value, locations and weights; a third of the points lie outside or near the border."""
    generator = torch.Generator().manual_seed(queries)
    size, heads, points = sum(h * w for h, w in SHAPES), 2, 3
    exact = torch.promote_types(dtype, torch.float32)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=exact)

    grid = (batch, queries, heads, len(SHAPES), points)
    value = draw(1 if shared else batch, size, heads, width).to(dtype)
    return [value, draw(*grid, 2) * 1.6 - 0.3, draw(*grid)]


def both(problem: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and gradients, of plain PyTorch and of the kernels."""
    value, locations, _ = problem
    levels = Levels.of(SHAPES, value.shape[2], locations.shape[4])
    results: list[list[Tensor]] = []
    for by_kernels in (False, True):
        value, locations, weights = inputs = [each.clone().requires_grad_() for each in problem]
        if by_kernels:
            out = kernels.sample(value, levels.maps, locations, weights)
            out = out.view(*locations.shape[:2], -1)
        else:
            out = sample_levels(value, levels, locations, weights)
        up = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        results.append([out, *torch.autograd.grad(out, inputs, up)])
    return zip(*results, strict=True)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"shared": True, "batch": 3},
        {"queries": kernels.ROWS + 1, "width": 8},  # of two heads: three programs, one not full
        {"queries": 1, "batch": 1},
    ],
)
def test_the_kernels_give_the_numbers_of_plain_pytorch(shape: dict[str, int]) -> None:
    for plain, ours in both(problem(torch.float64, **shape)):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_sum_in_float32_whatever_the_values_are(dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps
    for plain, ours in both(problem(dtype)):
        assert ours.dtype == plain.dtype
        noise = max(rounding, 1e-6) if ours.dtype == dtype else 1e-5
        torch.testing.assert_close(
            ours.float(), plain.float(), rtol=2 * noise, atol=2 * noise * float(plain.abs().max())
        )


def test_points_on_the_border_and_beyond_any_map_are_as_in_plain_pytorch() -> None:
    value, locations, weights = problem(torch.float64)
    odd = torch.tensor([0.0, 1.0, -1e30, 1e30, float("inf"), -0.5 / 5, 1 + 0.5 / 5, 0.5])
    locations = odd.to(locations)[torch.arange(locations.numel()) % len(odd)].view_as(locations)
    for plain, ours in both([value, locations, weights]):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_place_that_is_no_number_is_not_hidden() -> None:
    value, locations, weights = problem(torch.float64)
    locations[1, 3, 1, 0, 0, 0] = float("nan")
    levels = Levels.of(SHAPES, 2, 3)
    out = kernels.sample(value, levels.maps, locations, weights).view(2, 7, 2, 3)
    assert out.isnan().any(3).nonzero().tolist() == [[1, 3, 1]]
