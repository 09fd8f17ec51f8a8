"""Maskige: class-agnostic masks of a frame, merged to one label map and painted as a picture.

A Maskige is a function of two small things, the label map and the palette A, so only the label map
is kept and the colouring X(c) = cA (paper, section 3.1) happens when it is read. The overlap rule
is the public code's: masks are ranked by area, the smallest first, and a pixel shows the smallest
mask that covers it. One byte a pixel leaves room for 255 masks. The public code wraps around beyond
that and gives large masks the numbers of small ones; here the 255 smallest masks are kept and the
number left out is reported.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .mask_settings import MOST_MASKS, PALETTE

_PAIRS = 1 << 14
"""Pairs of pixels that `colour` looks up at once; what that needs fits into a core's own cache."""

_BLOCK_BYTES = 1 << 22
"""Working memory of `merge`; about the size of a core's share of the last cache level."""


@dataclass(frozen=True)
class Merged:
    """The masks of one frame as a label map.

    label_map: [H, W] uint8; r + 1 where the mask of rank r is the smallest one there, 0 where none
    lies.  order: [min(K, 255)] int64, order[r] is the index of the mask that got rank r.
    left_out: how many masks beyond the smallest 255 have no place in the map.
    """

    label_map: Tensor
    order: Tensor
    left_out: int


def merge(masks: Tensor) -> Merged:
    """Merge overlapping masks: smallest area on top, equal areas in the given order.

    masks: [K, H, W] bool, K may be 0; empty masks keep their rank.  Works on any device with a few
    MiB beside the masks themselves.  Raises ValueError for other shapes or types.
    """
    if masks.ndim != 3 or masks.dtype != torch.bool:
        raise ValueError(f"masks must be [K, H, W] bool, not {list(masks.shape)} {masks.dtype}")
    count, height, width = masks.shape
    order = mask_areas(masks).argsort(stable=True)[:MOST_MASKS]
    # The weight of rank r is 255 - r: the largest weight at a pixel belongs to the smallest mask
    # there. Masks left out weigh nothing.
    weights = masks.new_zeros(count, dtype=torch.uint8)
    weights[order] = torch.arange(255, 255 - len(order), -1, device=masks.device).to(torch.uint8)
    heaviest = masks.new_zeros((height, width), dtype=torch.uint8)
    rows = max(1, _BLOCK_BYTES // max(1, count * width))
    for top in range(0, height if count else 0, rows):
        block = masks[:, top : top + rows].view(torch.uint8) * weights[:, None, None]
        heaviest[top : top + rows] = block.amax(dim=0)
    # In bytes 0 - (255 - r) is r + 1, and 0 stays 0.
    return Merged(0 - heaviest, order, count - len(order))


def label_map(masks: Tensor) -> Tensor:
    """Label map of a frame's masks: [K, H, W] bool -> [H, W] uint8, as `merge` describes."""
    return merge(masks).label_map


def mask_areas(masks: Tensor) -> Tensor:
    """Pixels of each mask: [K, H, W] bool -> [K] int64."""
    # Columns are added up in bytes, which is fifty times faster than in wide integers; a byte holds
    # the sum of 255 rows.
    bits = masks.view(torch.uint8)
    columns = [rows.sum(dim=1, dtype=torch.uint8) for rows in bits.split(255, dim=1)]
    return torch.stack([sums.sum(dim=1) for sums in columns]).sum(dim=0)


def colour(label_map: Tensor, palette: Tensor) -> Tensor:
    """Maskige of a label map: X(c) = cA for one-hot c (paper, section 3.1).

    label_map: [..., H, W] uint8.  palette: A, [256, 3] uint8, the colour of each label.
    Returns [..., 3, H, W] uint8, on the device of the label map; in memory a pixel's colours lie
    side by side, four bytes a pixel.
    Raises ValueError for a palette of another shape or a label map of another type.
    """
    if tuple(palette.shape) != (256, 3):
        raise ValueError(f"a palette is [256, 3], not {list(palette.shape)}")
    if label_map.dtype != torch.uint8:
        raise ValueError(f"a label map is uint8, not {label_map.dtype}")
    # A colour and an unused byte make one word, so that a pixel is one look-up and not three.
    words = F.pad(palette.to(label_map.device), (0, 1)).view(torch.int32).flatten()
    if label_map.device.type == "cpu":
        painted = torch.from_numpy(_look_up(words.numpy(), label_map.numpy().ravel()))
    else:
        painted = words.index_select(0, label_map.flatten().int())
    return painted.view(torch.uint8).view(*label_map.shape, 4)[..., :3].movedim(-1, -3)


def _look_up(words: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """words[labels], two pixels at a time: [256] int32, [N] uint8 -> [N] int32.

    In numpy: PyTorch would divide this among its threads and wait for them, which takes ten times
    as long where other threads (a loader's) keep the cores busy.
    """
    painted = np.empty(labels.size, np.int32)
    even = labels.size & ~1
    every_pair = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    words_of_pair = words[every_pair].view(np.int64)
    pairs, targets = labels[:even].view(np.uint16), painted[:even].view(np.int64)
    for start in range(0, pairs.size, _PAIRS):
        block = slice(start, start + _PAIRS)
        # Every index is inside; "clip" only keeps numpy from buffering the result.
        words_of_pair.take(pairs[block], out=targets[block], mode="clip")
    painted[even:] = words[labels[even:]]
    return painted


def reference_palette() -> Tensor:
    """The palette of the published Maskiges, `mask_settings.PALETTE`: [256, 3] uint8, RGB."""
    return torch.tensor(PALETTE, dtype=torch.uint8)
