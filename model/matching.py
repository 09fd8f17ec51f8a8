"""Targets of label maps, and which query answers for which target.

Background is a class with its own mask, as in the public code: a frame's targets are the distinct
values of its label map, apart from 255. Which values may occur is known before the forward, from
the stored labels; which are left after augmentation only the device knows, and says it together
with the costs of the matching: the one thing that a step waits for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import IGNORED
from .transfers import fetch, send

PIECES = 16
"""Into how many the points of a product are divided, at most. Of a few targets and many points a
GPU makes one row of blocks a frame, each with all points to add, and leaves most of itself idle."""


@dataclass(frozen=True)
class Targets:
    """The targets of n annotated frames, M in all, frame by frame, classes ascending."""

    frame: Tensor
    """[M] int64: number of the annotated frame."""
    label: Tensor
    """[M] int64: class."""
    slot: Tensor
    """[M] int64: place among the targets of the same frame."""
    masks: Tensor
    """[M, H, W] float32, 0 or 1."""
    frame_of: np.ndarray
    """`frame` on the CPU."""
    slots: int
    """Most targets of a frame."""
    frames: int

    @classmethod
    def of(cls, labels: Tensor, held: np.ndarray, classes: int, device: torch.device) -> "Targets":
        """labels: [n, H, W] integer maps; held: [n, 256] bool, the values that they may have.

        Raises ValueError for a value that is no class and not 255.
        """
        wrong = np.flatnonzero(np.logical_or.reduce(held[:, classes:IGNORED])) + classes
        if len(wrong):
            raise ValueError(f"labels {wrong.tolist()} with {classes} classes")
        held = held[:, :classes]
        frame_of, label = held.nonzero()
        slot = held.cumsum(axis=1)[frame_of, label] - 1
        frame, on_device, place = send(
            torch.from_numpy(np.stack([frame_of, label, slot])), device
        ).unbind()
        masks = (send(labels, device).index_select(0, frame) == on_device[:, None, None]).float()
        slots = int(slot.max(initial=-1)) + 1
        return cls(frame, on_device, place, masks, frame_of, slots, len(held))

    def only(self, present: np.ndarray) -> "Targets":
        """Those of [M] bool; frames keep their numbers."""
        if present.all():
            return self
        kept = send(torch.from_numpy(present.nonzero()[0]), self.frame.device)
        return Targets(
            self.frame[kept], self.label[kept], self.slot[kept], self.masks[kept],
            self.frame_of[present], self.slots, self.frames,
        )  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """Bilinear samples at some points of n frames, of maps of one size; zero outside.

    Channels last, a sample is a weighted sum of four rows: for a hundred masks a frame many times
    faster than `grid_sample`.
    """

    index: Tensor
    """[n * P * 4] int64: rows of the four pixels around a point, point after point."""
    shares: Tensor
    """The same, of each; 0 for those outside."""
    first: Tensor
    """[n * P] int64: where each point's rows begin."""

    @classmethod
    def at(cls, points: Tensor, n: int, h: int, w: int) -> "Samples":
        """points: [n, P, 2] or [1, P, 2] as (x, y) in 0..1."""
        device = points.device
        size = send(torch.tensor([w, h], dtype=points.dtype), device)
        place = points.expand(n, -1, -1) * size - 0.5
        low = place.floor()
        beyond = place - low
        pixels = torch.stack([low, low + 1])
        inside = torch.minimum(pixels.clamp(min=0), size - 1)
        shares = torch.stack([1 - beyond, beyond]) * (pixels == inside)
        (x, y), (share_x, share_y) = inside.long().unbind(-1), shares.unbind(-1)
        frame = torch.arange(0, n * h * w, h * w, device=device)
        index = (y * w + frame[:, None])[:, None] + x
        return cls(
            index.movedim((0, 1), (2, 3)).flatten(),
            (share_y[:, None] * share_x).movedim((0, 1), (2, 3)).flatten(),
            torch.arange(0, index.numel(), 4, device=device),
        )

    def of(self, maps: Tensor) -> Tensor:
        """[n, C, h, w] -> [n, P, C]."""
        n, channels = maps.shape[:2]
        # Of one frame the reshaped rows would be a view with a stride, five times as slow to add.
        rows = maps.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
        shares = self.shares.to(rows.dtype)
        sampled = F.embedding_bag(
            self.index, rows, self.first, mode="sum", per_sample_weights=shares
        )
        return sampled.unflatten(0, (n, -1))


def sample_rows(maps: Tensor, points: Tensor) -> Tensor:
    """maps: [n, C, h, w]; points: [n, P, 2] or [1, P, 2] as (x, y) in 0..1. Returns [n, P, C]."""
    return Samples.at(points, maps.shape[0], maps.shape[2], maps.shape[3]).of(maps)


def _whole(products: list[Tensor], n: int) -> Tensor:
    """L products of pieces, [n * pieces, r, Q] each -> [L, n, r, Q]."""
    return torch.stack(products).unflatten(1, (n, -1)).sum(dim=2)


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Targets,
    points: Tensor,
    weights: tuple[float, float, float],
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """The query of every target in every prediction set: least cost, no query twice in a frame.

    class_logits: [L, n, Q, K + 1]; mask_logits: [n, L, Q, h, w].
    points: [n, P, 2] or [1, P, 2], (x, y) in 0..1, where masks are compared.
    weights: of class probability, binary cross entropy and dice in the cost.
    Costs are on their way to the CPU when this returns, in one transfer. What it returns waits for
    them, and gives [M] bool, the targets that the maps hold, and [L, M] int64, their queries; -1
    for targets that they do not hold and those beyond the number of queries.
    """
    layers, n, queries, _ = class_logits.shape
    count = len(targets.frame_of)
    if count == 0:
        return lambda: (np.zeros(0, bool), np.zeros((layers, 0), np.int64))
    by_class, by_mask, by_dice = weights

    # Targets of a frame one after another, [n, slots, P]; unused places stay empty masks.
    place = targets.frame * targets.slots + targets.slot
    truth = targets.masks.new_zeros(n * targets.slots, *targets.masks.shape[1:])
    truth = truth.index_copy_(0, place, targets.masks).unflatten(0, (n, -1))
    truth = sample_rows(truth, points).transpose(1, 2).contiguous()
    label = torch.zeros(n * targets.slots, dtype=torch.int64, device=place.device)
    label = label.index_copy_(0, place, targets.label).view(1, n, -1, 1)
    probability = class_logits.float().softmax(dim=-1).transpose(2, 3)
    chosen = probability.gather(2, label.expand(layers, -1, -1, queries))

    samples = Samples.at(points, n, mask_logits.shape[3], mask_logits.shape[4])
    pieces = math.gcd(truth.shape[2], PIECES)
    and_all = torch.cat([truth, torch.ones_like(truth[:, :1])], dim=1)  # whose product is a sum
    and_all = and_all.unflatten(2, (pieces, -1)).transpose(1, 2).flatten(0, 1)
    sums, products, insides = [], [], []
    for masks in mask_logits.unbind(1):  # points are more than masks' pixels: set after set
        x = samples.of(masks.float())
        sums.append(F.softplus(x).sum(dim=1))
        x = x.reshape(len(and_all), -1, queries)
        products.append(and_all[:, :-1] @ x)
        insides.append(and_all @ x.sigmoid_())
    overlap, inside = _whole(insides, n).split([truth.shape[1], 1], dim=2)
    # The binary cross entropy of logit x and target t is softplus(x) - x t.
    entropy = (torch.stack(sums)[:, :, None] - _whole(products, n)) / truth.shape[2]
    dice = 1 - (2 * overlap + 1) / (inside + truth.sum(dim=2)[:, :, None] + 1)
    costs = by_mask * entropy - by_class * chosen + by_dice * dice
    present = targets.masks.flatten(1).any(dim=1)
    arriving = fetch(torch.cat([costs.flatten(), present.to(costs.dtype)]))

    def assign() -> tuple[np.ndarray, np.ndarray]:
        from scipy.optimize import linear_sum_assignment  # half a second, for training alone

        numbers = arriving()
        held = numbers[-count:] > 0
        of_frames = np.nan_to_num(
            numbers[:-count].reshape(layers, n, -1, queries), nan=1e9, posinf=1e9, neginf=-1e9
        )
        matched = np.full((layers, count), -1, dtype=np.int64)
        starts = np.searchsorted(targets.frame_of, np.arange(n + 1))
        for frame in range(n):
            here = np.arange(starts[frame], starts[frame + 1])[
                held[starts[frame] : starts[frame + 1]]
            ]
            if not len(here):
                continue
            for layer in range(layers):
                of_targets = of_frames[layer, frame, here - starts[frame]]
                target, query = linear_sum_assignment(of_targets)
                matched[layer, here[target]] = query
        return held, matched

    return assign
