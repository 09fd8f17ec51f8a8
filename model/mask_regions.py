"""Geometry of many masks at once: stability, boxes, holes and islands.

These are the steps of segment-anything's automatic mask generator (its `utils/amg`), for whole
stacks of masks instead of one after another, and without OpenCV or run-length codes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

_LABEL_BYTES = 1 << 28
"""Working memory of the connected components."""

_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = True
"""Neighbours for labelling a stack: all eight in a mask, none in the masks before and after."""


def stability(logits: Tensor, threshold: float, offset: float) -> Tensor:
    """IoU of each mask cut at threshold + offset with itself cut at threshold - offset.

    logits: [K, H, W] float.  Returns [K] float32, NaN where even the larger mask is empty.
    """
    inner = _count_above(logits, threshold + offset)
    outer = _count_above(logits, threshold - offset)
    return inner.float() / outer.float()


def _count_above(logits: Tensor, threshold: float) -> Tensor:
    # Comparing into floats is several times faster than into booleans on a CPU. A row's sum is
    # exact, and so is the sum of the rows' whole numbers in double precision.
    above = torch.empty_like(logits)
    torch.gt(logits, threshold, out=above)
    return above.sum(dim=-1).sum(dim=-1, dtype=torch.float64)


def logit_boxes(logits: Tensor, threshold: float) -> Tensor:
    """Boxes of the masks `logits > threshold`: [K, H, W] -> [K, 4], as `mask_boxes`."""
    return _boxes(logits.amax(dim=2) > threshold, logits.amax(dim=1) > threshold)


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks.

    masks: [K, H, W] bool.  Returns [K, 4] int64, (x0, y0, x1, y1) of the outermost pixels
    themselves, inclusive; zeros for an empty mask.
    """
    return _boxes(masks.any(dim=2), masks.any(dim=1))


def _boxes(rows: Tensor, columns: Tensor) -> Tensor:
    """rows: [K, H] bool, which rows a mask reaches; columns: [K, W] bool."""
    top, bottom = _first_and_last(rows)
    left, right = _first_and_last(columns)
    return torch.stack([left, top, right, bottom], dim=-1) * rows.any(dim=1, keepdim=True)


def _first_and_last(reached: Tensor) -> tuple[Tensor, Tensor]:
    numbers = reached.to(torch.uint8)
    return numbers.argmax(dim=1), reached.shape[1] - 1 - numbers.flip(1).argmax(dim=1)


def remove_small_regions(masks: Tensor, min_area: int) -> tuple[Tensor, Tensor]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels (8-connected).

    Where all islands of a mask are small, its largest one stays. Everything outside a mask counts
    as a hole, so that a mask which leaves out a few pixels only becomes full.

    masks: [K, H, W] bool.  Returns the masks on the same device, and [K] bool, which of them
    changed (an island or hole was found, as the public code counts it).
    """
    count, height, width = masks.shape
    at_once = max(1, _LABEL_BYTES // (height * width * 8))
    cleaned, changed = torch.empty_like(masks), masks.new_zeros(count)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        filled, had_holes = _fill_holes(masks[part].cpu().numpy(), min_area)
        kept, had_islands = _drop_islands(filled, min_area)
        cleaned[part] = torch.from_numpy(kept)
        changed[part] = torch.from_numpy(had_holes | had_islands)
    return cleaned, changed


def _components(masks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels [K, H, W], from 1 on, and the pixels of each label, nothing for label 0."""
    labels = np.empty(masks.shape, dtype=np.int32)
    ndimage.label(masks, structure=_IN_PLANE, output=labels)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def _fill_holes(
    masks: NDArray[np.bool_], min_area: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    labels, sizes = _components(~masks)
    small = (sizes < min_area) & (sizes > 0)
    if not small.any():
        return masks, np.zeros(len(masks), dtype=bool)
    holes = np.take(small, labels)
    return masks | holes, _in_any_pixel(holes)


def _drop_islands(
    masks: NDArray[np.bool_], min_area: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    labels, sizes = _components(masks)
    small = (sizes < min_area) & (sizes > 0)
    if not small.any():
        return masks, np.zeros(len(masks), dtype=bool)
    changed = _in_any_pixel(np.take(small, labels))
    keep = sizes >= max(min_area, 1)
    for mask in np.flatnonzero(changed & ~_in_any_pixel(np.take(keep, labels))):
        keep[_largest(labels[mask], sizes)] = True
    return np.take(keep, labels), changed


def _in_any_pixel(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[K, H, W] -> [K]."""
    return np.asarray(masks.any(axis=(1, 2)), dtype=np.bool_)


def _largest(labels: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """The label of a mask's largest island.

    Of islands of one size the public code takes the one that OpenCV numbers first. OpenCV scans
    blocks of two by two pixels, row by row, which is not the order of the first pixels.
    """
    rows, columns = np.nonzero(labels)
    here = labels[rows, columns]
    block = (rows // 2) * labels.shape[1] + columns // 2
    return int(here[np.lexsort((block, -sizes[here]))[0]])
