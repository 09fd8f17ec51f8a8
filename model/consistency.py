"""Adaptive inter-frame consistency: neighbouring frames' masks should look alike (Eq. 6-7)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .transfers import send

COSINE_EPS = 1e-12


def _neighbour_terms(clips: Iterable[Tensor]) -> Tensor:
    """(1 - S) exp(S - 1) for S the cosine of frames t and t + 1.

    clips: B times [T, L, Q, h, w]. Returns [L, B, T - 1] float32.
    """
    of_clips = [_Products.apply(clip.float().flatten(3)) for clip in clips]
    norms, products = (torch.stack(each, dim=1) for each in zip(*of_clips, strict=True))
    norms = norms + COSINE_EPS
    distance = 1 - products / (norms[..., :-1] * norms[..., 1:]).sqrt()
    return (distance * torch.exp(-distance)).float()


class _Products(torch.autograd.Function):
    """A clip's frames with themselves and with the ones after them, no copy of a mask made.

    Forward they are all frames with all, query by query; of these the few that count have a
    gradient, which is no product of matrices: a fifth of its time on a CPU, less on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[T, L, Q, P] -> [L, T] and [L, T - 1], float64: 1 - S of frames that look alike keeps
        only the last digits of the sums."""
        ctx.save_for_backward(frames)
        rows = frames.flatten(1, 2).transpose(0, 1)
        products = (rows @ rows.mT).unflatten(0, frames.shape[1:3]).double().sum(dim=1)
        return products.diagonal(dim1=1, dim2=2), products.diagonal(1, dim1=1, dim2=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        frames: Tensor = ctx.saved_tensors[0]
        norms, products = (grad.to(frames.dtype).T[:, :, None, None] for grad in grads)
        of_frames = frames * (2 * norms)
        of_frames[:-1].addcmul_(frames[1:], products)
        of_frames[1:].addcmul_(frames[:-1], products)
        return of_frames


def _pairs(valid: Tensor, group: int | None = None) -> Tensor:
    """[B, T - 1] float32: 1 where a frame and its successor both exist, in one group of frames."""
    pairs = (valid[:, :-1] & valid[:, 1:]).to(torch.float32)
    if group is None:
        return pairs
    place = torch.arange(pairs.shape[1], device=pairs.device)
    return pairs * (place % group != group - 1)


def _every(masks: Tensor) -> Tensor:
    return torch.ones(masks.shape[:2], dtype=torch.bool)


GROUP = 5
"""Frames whose neighbours the public code compares; between groups it does not."""


def reference_divisor(valid: Tensor) -> Tensor:
    """The number of neighbours inside groups of five frames. valid: [B, T] bool."""
    return _pairs(valid, GROUP).sum()


def paper_divisor(valid: Tensor) -> Tensor:
    """The number of clips. valid: [B, T] bool."""
    return torch.tensor(float(valid.shape[0]), device=valid.device)


def reference_consistency(
    mask_logits: Tensor, valid: Tensor | None, divisor: Tensor | None = None
) -> Tensor:
    """Mean over the neighbours inside groups of five frames, of raw logits (public code).

    mask_logits: [B, T, L, Q, h, w]; valid: [B, T] bool or None.  divisor: of the batch that
    these clips are a part of, when they are not all of it.
    Returns [L] float32, zeros where no frame has a neighbour.
    """
    valid = _every(mask_logits) if valid is None else valid
    pairs = send(_pairs(valid, GROUP), mask_logits.device)
    divisor = reference_divisor(valid) if divisor is None else divisor
    terms = _neighbour_terms(mask_logits.unbind()) * pairs
    return terms.sum(dim=(1, 2)) / divisor.clamp(min=1)


def paper_consistency(
    mask_logits: Tensor, valid: Tensor | None, divisor: Tensor | None = None
) -> Tensor:
    """Eq. 7: the sum over all neighbours of a clip, of predicted masks in 0..1; mean over clips.

    The text calls O^mask "predicted masks" and shows them as heat maps, hence the sigmoid.
    Shapes as in `reference_consistency`.
    """
    valid = _every(mask_logits) if valid is None else valid
    pairs = send(_pairs(valid), mask_logits.device)
    divisor = paper_divisor(valid) if divisor is None else divisor
    terms = _neighbour_terms(of_clip.sigmoid() for of_clip in mask_logits.unbind()) * pairs
    return terms.sum(dim=(1, 2)) / divisor


@dataclass(frozen=True)
class Consistency:
    """One reading of L_ada."""

    loss: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    divisor: Callable[[Tensor], Tensor]
    """Of the frames that exist, [B, T] bool: what the loss of these clips is divided by."""
    initial: bool
    """Whether the prediction before the first decoder layer takes part; the last never does."""
    lambda_object: float
    lambda_semantic: float
