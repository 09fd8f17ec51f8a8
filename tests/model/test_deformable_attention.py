"""Deformable attention against one `grid_sample` a level, and against numeric gradients."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from combo.model.deformable_attention import DeformableAttention, sample_levels
from combo.model.levels import Levels

SHAPES = [(3, 5), (6, 4)]
LEVELS = Levels.of(SHAPES, heads=2, points=3)


def level_by_level(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The definition: sample every level, weigh, add up."""
    n, queries, heads = locations.shape[:3]
    total = 0
    start = 0
    for level, (h, w) in enumerate(shapes):
        maps = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(n * heads, -1, h, w)
        start += h * w
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        total = total + (sampled * weight).sum(dim=3)
    return total.reshape(n, -1, queries).transpose(1, 2)


def levels_of(value: Tensor, shapes: list[tuple[int, int]], points: int = 3) -> Levels:
    return Levels.of(shapes, value.shape[2], points)


def problem(
    shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    size = sum(h * w for h, w in shapes)
    levels = len(shapes)
    locations = draw(2, 7, 2, levels, 3, 2) * 1.6 - 0.3
    return draw(2, size, 2, 3), locations, draw(2, 7, 2, levels, 3)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_all_levels_at_once_equal_one_after_another(
    shapes: list[tuple[int, int]], seed: int
) -> None:
    value, locations, weights = problem(shapes, seed=seed)
    ours = sample_levels(value, levels_of(value, shapes), locations, weights)
    torch.testing.assert_close(ours, level_by_level(value, shapes, locations, weights))


def test_gradients_are_those_of_finite_differences() -> None:
    shapes = [(2, 3), (1, 2)]
    tensors = [tensor[:, :8].requires_grad_() for tensor in problem(shapes)]
    assert torch.autograd.gradcheck(
        lambda value, *others: sample_levels(value, levels_of(value, shapes), *others), tensors
    )


def test_one_set_of_values_serves_many_batches() -> None:
    value, locations, weights = problem(SHAPES)
    shared = sample_levels(value[:1], LEVELS, locations, weights)
    repeated = sample_levels(value[:1].expand(2, -1, -1, -1), LEVELS, locations, weights)
    torch.testing.assert_close(shared, repeated)


def test_a_point_that_is_not_a_number_spoils_only_its_own_query() -> None:
    value, locations, weights = problem(SHAPES, torch.float32)
    clean = sample_levels(value, LEVELS, locations, weights)
    locations[0, 2, 0, 0, 0] = torch.nan
    spoilt = sample_levels(value, LEVELS, locations, weights)
    assert spoilt[0, 2, :3].isnan().all()
    spoilt[0, 2, :3] = clean[0, 2, :3]
    torch.testing.assert_close(spoilt, clean)


def test_points_far_outside_add_nothing() -> None:
    value, locations, weights = problem(SHAPES, torch.float32)
    for far in (-torch.inf, torch.inf, 1e30, -1e9):
        outside = sample_levels(value, LEVELS, locations * 0 + far, weights)
        assert not outside.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_summed_in_float32(dtype: torch.dtype) -> None:
    value, locations, weights = problem(SHAPES, torch.float32)
    half = sample_levels(value.to(dtype), LEVELS, locations, weights)
    exact = sample_levels(value.to(dtype).float(), LEVELS, locations, weights)
    assert half.dtype == dtype
    torch.testing.assert_close(half, exact.to(dtype))


def test_values_that_do_not_fill_the_levels_are_refused() -> None:
    value, locations, weights = problem(SHAPES)
    with pytest.raises(ValueError, match="38"):
        sample_levels(value[:, :-1], LEVELS, locations, weights)


@pytest.mark.parametrize("numbers", [2, 4])
def test_the_module_compiles_and_exports_and_learns(numbers: int) -> None:
    torch.manual_seed(0)
    module = DeformableAttention(24, 2, 2, 3)
    query, values = torch.randn(2, 7, 24), torch.randn(2, 39, 24)
    reference = torch.rand(2, 7, 2, numbers)
    exact = module(query, reference, values, LEVELS)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    ours = compiled(query, reference, values, LEVELS)
    torch.testing.assert_close(ours, exact)
    of_compiled = torch.autograd.grad(ours.square().sum(), list(module.parameters()))
    of_exact = torch.autograd.grad(exact.square().sum(), list(module.parameters()))
    torch.testing.assert_close(of_compiled, of_exact)
    program = torch.export.export(module, (query, reference, values, LEVELS))
    torch.testing.assert_close(program.module()(query, reference, values, LEVELS), exact)


def test_values_can_be_projected_beforehand() -> None:
    module = DeformableAttention(24, 2, 2, 3)
    query, reference, values = torch.randn(2, 7, 24), torch.rand(1, 7, 2, 2), torch.randn(2, 39, 24)
    early = module(query, reference, module.project_values(values), LEVELS)
    torch.testing.assert_close(early, module(query, reference, values, LEVELS))


def test_a_point_moves_by_pixels_and_a_box_by_halves_of_itself() -> None:
    module = DeformableAttention(8, 1, 1, 2)
    seen: list[Tensor] = []
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 2.0]))
        module.value_proj.weight.copy_(torch.eye(8))
        module.output_proj.weight.copy_(torch.eye(8))
        column = torch.arange(10.0).expand(10, 10).reshape(1, 100, 1).expand(-1, -1, 8)
        query = torch.zeros(1, 1, 8)
        for reference in ([0.45, 0.45], [0.45, 0.45, 0.4, 0.2]):
            reference = torch.tensor(reference)[None, None, None]
            seen.append(module(query, reference, column, module.sees([(10, 10)]))[0, 0, 0])
    # Two points, weights one half: the first moves right by one pixel, or by 0.4 / 2 / 2 = 0.1.
    assert seen[0].item() == pytest.approx(4.5)
    assert seen[1].item() == pytest.approx(4.5)


def test_learning_on_a_cpu_warns_of_nothing() -> None:
    program = (
        "import torch; from combo.model.deformable_attention import DeformableAttention as D; "
        "x = torch.randn(1, 6, 8, requires_grad=True); at = torch.rand(1, 6, 1, 2); "
        "d = D(8, 2, 1, 2); d(x, at, x, d.sees([(2, 3)])).sum().backward()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
