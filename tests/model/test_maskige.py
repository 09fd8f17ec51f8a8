"""Masks become a Maskige as in the published data sets, number for number."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from combo.model.maskige import colour, label_map, mask_areas, merge, reference_palette

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "maskige" / "maskige.npz")
SETS = [str(name) for name in GOLDEN["names"]]
UNSTABLE = "k40_ties_224"  # sorted by an unstable sort in the reference
WRAPPED = "k300_disjoint_360x640"  # more masks than a byte can number


def golden(name: str, part: str) -> Tensor:
    return torch.from_numpy(GOLDEN[f"{name}.{part}"])


def masks_of(name: str) -> Tensor:
    width = int(golden(name, "shape")[2])
    return torch.from_numpy(np.unpackbits(GOLDEN[f"{name}.masks_packed"], axis=-1)[..., :width] > 0)


def resize(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """As label images and label maps are resized to the stored size."""
    picture = Image.fromarray(labels.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture))


def painted_one_by_one(masks: Tensor, order: list[int]) -> Tensor:
    """The rule in its plainest form: each mask fills what the smaller ones left free."""
    free = torch.zeros(masks.shape[1:], dtype=torch.int32)
    for rank, index in enumerate(order):
        free[(free == 0) & masks[index]] = rank + 1
    return free


def areas_order(masks: Tensor) -> list[int]:
    return masks.sum((1, 2)).argsort(stable=True).tolist()


small_masks = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.integers(0, 12), st.integers(1, 20), st.integers(1, 20)).map(
        lambda shape: torch.from_numpy(np.random.default_rng(seed).random(shape) < 0.3)
    )
)


@pytest.mark.golden
@pytest.mark.parametrize("name", [name for name in SETS if name not in (UNSTABLE, WRAPPED)])
def test_merged_masks_are_the_published_label_maps_and_pictures(name: str) -> None:
    merged = merge(masks_of(name))
    palette = reference_palette()
    assert merged.left_out == 0
    assert merged.order.tolist() == golden(name, "area_order_reference").tolist()
    assert torch.equal(merged.label_map, golden(name, "ss_index"))
    assert torch.equal(colour(merged.label_map, palette), golden(name, "ss_rgb").movedim(-1, 0))
    resized = resize(merged.label_map, (224, 224))
    assert torch.equal(resized, golden(name, "s4_index"))
    assert torch.equal(colour(resized, palette), golden(name, "s4_rgb").movedim(-1, 0))


def test_masks_of_equal_area_keep_the_order_they_came_in() -> None:
    masks = masks_of(UNSTABLE)
    areas = masks.sum((1, 2))
    merged = merge(masks)
    assert torch.equal(merged.order, areas.argsort(stable=True))
    assert torch.equal(merged.label_map.int(), painted_one_by_one(masks, merged.order.tolist()))
    # The reference differs from that in the order of ties only.
    reference = golden(UNSTABLE, "area_order_reference").long()
    assert torch.equal(areas[reference], areas[merged.order])
    assert not torch.equal(reference, merged.order)
    in_reference_order = painted_one_by_one(masks, reference.tolist())
    assert torch.equal(in_reference_order, golden(UNSTABLE, "ss_index").int())


def test_beyond_255_masks_the_smallest_stay_and_the_rest_is_reported() -> None:
    masks = masks_of(WRAPPED)
    merged = merge(masks)
    ranks = painted_one_by_one(masks, areas_order(masks))
    assert merged.left_out == 45
    assert merged.order.tolist() == golden(WRAPPED, "area_order_reference")[:255].tolist()
    assert torch.equal(merged.label_map.int(), ranks.where(ranks <= 255, 0))
    # Where the public code had not yet wrapped around, it agrees.
    kept = ranks <= 255
    assert torch.equal(merged.label_map[kept], golden(WRAPPED, "ss_index")[kept])
    assert torch.equal(golden(WRAPPED, "ss_index")[~kept].int(), ranks[~kept] - 256)


def test_masks_left_out_lie_below_all_others() -> None:
    masks = torch.zeros(257, 1, 300, dtype=torch.bool)
    masks[torch.arange(255), 0, torch.arange(255)] = True
    masks[255:] = True
    masks[256, 0, 0] = False  # 299 pixels: smaller than the one before it, still left out
    merged = merge(masks)
    assert merged.left_out == 2
    assert merged.label_map.squeeze().tolist() == [*range(1, 256), *[0] * 45]


def test_a_frame_without_masks_is_uncovered_everywhere() -> None:
    merged = merge(torch.zeros(0, 6, 4, dtype=torch.bool))
    assert merged.label_map.shape == (6, 4)
    assert not merged.label_map.any()
    assert merged.left_out == 0
    picture = colour(resize(merged.label_map, (224, 224)), reference_palette())
    assert torch.equal(picture, torch.from_numpy(GOLDEN["k0.s4_rgb"]).movedim(-1, 0))


@given(masks=small_masks)
def test_merging_equals_painting_the_masks_one_by_one(masks: Tensor) -> None:
    merged = merge(masks)
    assert torch.equal(merged.label_map.int(), painted_one_by_one(masks, areas_order(masks)))


@given(masks=small_masks)
def test_how_the_masks_lie_in_memory_changes_nothing(masks: Tensor) -> None:
    turned = masks.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(label_map(turned), label_map(masks))
    assert torch.equal(label_map(masks.repeat_interleave(2, dim=2)[..., ::2]), label_map(masks))


def test_a_tall_frame_is_merged_in_blocks_without_seams() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand((40, 1500, 700), generator=generator) < 0.02
    assert torch.equal(mask_areas(masks), masks.sum((1, 2)))
    assert torch.equal(label_map(masks).int(), painted_one_by_one(masks, areas_order(masks)))


def test_other_types_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        merge(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="K, H, W"):
        merge(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="uint8"):
        colour(torch.zeros(3, 3), reference_palette())
    with pytest.raises(ValueError, match=r"\[256, 3\]"):
        colour(torch.zeros(3, 3, dtype=torch.uint8), reference_palette()[:150])


def test_the_palette_is_the_published_one() -> None:
    assert torch.equal(reference_palette(), torch.from_numpy(GOLDEN["palette_rgb_256"]))


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_colouring_is_a_product_with_the_palette(shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    palette = torch.randint(0, 256, (256, 3), generator=generator).to(torch.uint8)
    one_hot = torch.nn.functional.one_hot(labels.long(), 256)
    product = (one_hot @ palette.long()).movedim(-1, -3)
    assert torch.equal(colour(labels, palette).long(), product)


def test_a_part_of_a_label_map_is_coloured_as_in_the_whole() -> None:
    labels = torch.arange(254, dtype=torch.uint8).view(2, 127)
    whole = colour(labels, reference_palette())
    for rows, columns in ((slice(1, 2), slice(0, 127)), (slice(0, 2), slice(3, 100, 5))):
        part = colour(labels[rows, columns], reference_palette())
        assert torch.equal(part, whole[:, rows, columns])
