"""Targets of label maps, and which query answers for which target.

Background is a class with its own mask, as in the public code: a frame's targets are the distinct
values of its label map, apart from 255.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

IGNORED = 255


@dataclass(frozen=True)
class Targets:
    """The targets of n annotated frames, M in all, frame by frame, classes ascending."""

    frame: Tensor
    """[M] int64: number of the annotated frame."""
    label: Tensor
    """[M] int64: class."""
    masks: Tensor
    """[M, H, W] float32, 0 or 1."""
    slot: np.ndarray
    """[M] int: place among the targets of the same frame."""
    frame_of: np.ndarray
    """`frame` on the CPU."""
    frames: int

    @classmethod
    def of(cls, labels: Tensor, classes: int, device: torch.device) -> "Targets":
        """labels: [n, H, W] integer maps, best on the CPU, where finding their values costs no
        wait for the device. Raises ValueError for a label that is no class and not 255.
        """
        found = [torch.unique(frame).tolist() for frame in labels.cpu()]
        found = [[value for value in frame if value != IGNORED] for frame in found]
        wrong = {value for frame in found for value in frame if not 0 <= value < classes}
        if wrong:
            raise ValueError(f"labels {sorted(wrong)} with {classes} classes")
        frame_of = np.array([i for i, frame in enumerate(found) for _ in frame], dtype=np.int64)
        slot = np.array([j for frame in found for j, _ in enumerate(frame)], dtype=np.int64)
        frame = torch.from_numpy(frame_of).to(device, non_blocking=True)
        label = torch.tensor([v for values in found for v in values], dtype=torch.int64)
        label = label.to(device, non_blocking=True)
        maps = labels.to(device, non_blocking=True)
        masks = (maps[frame] == label[:, None, None]).to(torch.float32)
        return cls(frame, label, masks, slot, frame_of, len(found))


def sample_rows(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of many channels at the same points of a frame; zero outside.

    maps: [n, C, h, w]; points: [n, P, 2] or [1, P, 2] as (x, y) in 0..1. Returns [n, P, C].
    Channels last, a sample is a weighted sum of four rows: for a hundred masks a frame many times
    faster than `grid_sample`.
    """
    n, channels, h, w = maps.shape
    # Of a single frame the reshaped rows would be a view with a stride, five times as slow to add.
    rows = F.pad(maps, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    points = points.expand(n, -1, -1)
    x = (points[..., 0] * w + 0.5).clamp(0, w + 1)
    y = (points[..., 1] * h + 0.5).clamp(0, h + 1)
    left, top = x.floor().clamp(max=w), y.floor().clamp(max=h)
    right_part, lower_part = x - left, y - top
    frame = torch.arange(n, device=maps.device)[:, None] * ((h + 2) * (w + 2))
    corner = frame + (top * (w + 2) + left).long()
    index = torch.stack([corner, corner + 1, corner + w + 2, corner + w + 3], dim=-1)
    shares = torch.stack(
        [
            (1 - lower_part) * (1 - right_part),
            (1 - lower_part) * right_part,
            lower_part * (1 - right_part),
            lower_part * right_part,
        ],
        dim=-1,
    ).to(rows.dtype)
    sampled = F.embedding_bag(
        index.flatten(0, 1), rows, mode="sum", per_sample_weights=shares.flatten(0, 1)
    )
    return sampled.unflatten(0, (n, -1))


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Iterable[Tensor],
    targets: Targets,
    points: Tensor,
    weights: tuple[float, float, float],
) -> np.ndarray:
    """The query of every target in every prediction set: least cost, no query twice in a frame.

    class_logits: [L, n, Q, K + 1]; mask_logits: L times [n, Q, h, w].
    points: [n, P, 2] or [1, P, 2], (x, y) in 0..1, where masks are compared.
    weights: of class probability, binary cross entropy and dice in the cost.
    Returns [L, M] int64; -1 for targets beyond the number of queries. All costs cross to the CPU
    in one transfer.
    """
    layers, n, queries, _ = class_logits.shape
    count = len(targets.slot)
    matched = np.full((layers, count), -1, dtype=np.int64)
    if count == 0:
        return matched
    widest = int(targets.slot.max()) + 1
    device = class_logits.device
    slot = torch.from_numpy(targets.slot).to(device, non_blocking=True)

    # Targets of a frame one after another, [n, widest, P]; unused places stay empty masks.
    truth = targets.masks.new_zeros(n, widest, *targets.masks.shape[1:])
    truth[targets.frame, slot] = targets.masks
    truth = sample_rows(truth, points).transpose(1, 2).contiguous()
    label = torch.zeros(n, widest, dtype=torch.int64, device=device)
    label[targets.frame, slot] = targets.label
    area = truth.sum(dim=2)[:, :, None]

    by_class, by_mask, by_dice = weights
    costs = []
    for classes, masks in zip(class_logits, mask_logits, strict=True):
        probability = classes.float().softmax(dim=-1).transpose(1, 2)
        chosen = probability.gather(1, label[:, :, None].expand(-1, -1, queries))
        x = sample_rows(masks.float(), points)
        inside = x.sigmoid()
        # The binary cross entropy of logit x and target t is softplus(x) - x t, and softplus(x) is
        # the positive part of x less the logarithm of the larger of both probabilities.
        softplus = x.clamp(min=0) - torch.maximum(inside, 1 - inside).log()
        entropy = (softplus.sum(dim=1)[:, None] - truth @ x) / x.shape[1]
        both = truth @ inside
        dice = 1 - (2 * both + 1) / (inside.sum(dim=1)[:, None] + area + 1)
        costs.append(by_mask * entropy - by_class * chosen + by_dice * dice)
    host = torch.stack(costs).cpu().numpy()
    host = np.nan_to_num(host, nan=1e9, posinf=1e9, neginf=-1e9)

    starts = np.searchsorted(targets.frame_of, np.arange(n + 1))
    for frame in range(n):
        first, last = int(starts[frame]), int(starts[frame + 1])
        if first == last:
            continue
        for layer in range(layers):
            target, query = linear_sum_assignment(host[layer, frame, : last - first])
            matched[layer, first + target] = query
    return matched
