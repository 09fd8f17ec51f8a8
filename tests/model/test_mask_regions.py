"""Regions, boxes and stability of stacks of masks, against one mask after another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from combo.model.mask_regions import logit_boxes, mask_boxes, remove_small_regions, stability

stacks = st.tuples(
    st.integers(0, 5), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6)
).map(lambda v: np.random.default_rng(v[3]).random(v[:3]) < (v[3] % 9 + 1) / 10)


@hypothesis_settings(max_examples=150)
@given(masks=stacks, min_area=st.integers(1, 30))
def test_small_regions_go_from_a_stack_as_from_each_mask(
    masks: NDArray[np.bool_], min_area: int
) -> None:
    cleaned, changed = remove_small_regions(torch.from_numpy(masks), min_area)
    assert cleaned.shape == masks.shape
    for before, after, flag in zip(masks, cleaned.numpy(), changed.tolist(), strict=True):
        expected, touched = without_small_regions(before, min_area)
        np.testing.assert_array_equal(after, expected)
        assert flag == touched


def without_small_regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """One region after another, as the public code describes it."""
    eight = np.ones((3, 3))
    filled = mask.copy()
    holes, count = ndimage.label(~mask, eight)
    small_holes = [i for i in range(1, count + 1) if (holes == i).sum() < min_area]
    for hole in small_holes:
        filled[holes == hole] = True
    islands, count = ndimage.label(filled, eight)
    regions = [islands == i for i in range(1, count + 1)]
    large = [region for region in regions if region.sum() >= min_area]
    if not large and regions:
        # The first in the order of OpenCV's blocks of two by two pixels.
        large = [max(regions, key=lambda r: (r.sum(), [-v for v in first_block(r)]))]
    kept = np.any(large, axis=0) if large else np.zeros_like(mask)
    return kept, bool(small_holes) or any(r.sum() < min_area for r in regions)


def first_block(region: NDArray[np.bool_]) -> tuple[int, int]:
    return min((int(y) // 2, int(x) // 2) for y, x in np.argwhere(region))


def test_of_equally_small_islands_the_one_that_opencv_numbers_first_stays() -> None:
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, 0, 4] = mask[0, 1, 0] = True
    cleaned, changed = remove_small_regions(mask, 5)
    assert cleaned[0].nonzero().tolist() == [[1, 0]]
    assert changed.tolist() == [True]


@hypothesis_settings(max_examples=100)
@given(masks=stacks)
def test_boxes_hold_the_outermost_pixels(masks: NDArray[np.bool_]) -> None:
    expected = []
    for mask in masks:
        y, x = np.nonzero(mask)
        expected.append([x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0])
    stack = torch.from_numpy(masks)
    boxes = mask_boxes(stack)
    assert boxes.tolist() == expected
    assert torch.equal(logit_boxes(stack.float(), 0.5), boxes)


def test_stability_counts_pixels_between_the_cuts_and_is_nan_for_nothing() -> None:
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]], [[-3.0, -3.0], [-3.0, -3.0]]])
    scores = stability(logits, threshold=0.0, offset=1.0)
    assert scores[0] == pytest.approx(1 / 3)
    assert scores[1].isnan()
