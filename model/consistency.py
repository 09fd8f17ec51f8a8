"""Adaptive inter-frame consistency: neighbouring frames' masks should look alike (Eq. 6-7)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COSINE_EPS = 1e-12


def _products(masks: Tensor) -> Tensor:
    """Products of every two frames of a clip, [B, T, Q, h, w] -> [B, T, T] float64.

    Summed query by query: 1 - S of alike frames keeps only the last digits of the sums.
    """
    by_query = masks.float().flatten(3).transpose(1, 2)
    products = torch.stack([of_clip @ of_clip.transpose(1, 2) for of_clip in by_query])
    return products.double().sum(dim=1)


def _neighbour_terms(masks: Iterable[Tensor]) -> Tensor:
    """(1 - S) exp(S - 1) for S the cosine of frames t and t + 1.

    masks: L times [B, T, Q, h, w]. Returns [L, B, T - 1] float32. The products of all frames are a
    T x T matrix a clip, so that the forward direction writes no other array of the masks' size.
    """
    product = torch.stack([_products(of_layer) for of_layer in masks])
    norm = product.diagonal(dim1=2, dim2=3) + COSINE_EPS
    distance = 1 - product.diagonal(1, dim1=2, dim2=3) / (norm[..., :-1] * norm[..., 1:]).sqrt()
    return (distance * torch.exp(-distance)).float()


def _pairs(masks: Sequence[Tensor], valid: Tensor | None) -> Tensor:
    """[B, T - 1]: 1 where a frame and its successor both exist."""
    clips, frames = masks[0].shape[:2]
    if valid is None:
        return masks[0].new_ones(clips, frames - 1, dtype=torch.float32)
    both = valid[:, :-1] & valid[:, 1:]
    return both.to(masks[0].device, torch.float32)


def reference_consistency(mask_logits: Sequence[Tensor], valid: Tensor | None) -> Tensor:
    """Mean over the neighbours inside groups of five frames, of raw logits (public code).

    mask_logits: L times [B, T, Q, h, w]; valid: [B, T] bool or None. Returns [L] float32, zeros
    where no frame has a neighbour.
    """
    group = 5
    pairs = _pairs(mask_logits, valid)
    place = torch.arange(pairs.shape[1], device=pairs.device)
    pairs = pairs * (place % group != group - 1)
    terms = (_neighbour_terms(mask_logits) * pairs).sum(dim=(1, 2))
    return terms / pairs.sum().clamp(min=1)


def paper_consistency(mask_logits: Sequence[Tensor], valid: Tensor | None) -> Tensor:
    """Eq. 7: the sum over all neighbours of a clip, of predicted masks in 0..1; mean over clips.

    The text calls O^mask "predicted masks" and shows them as heat maps, hence the sigmoid.
    Shapes as in `reference_consistency`.
    """
    pairs = _pairs(mask_logits, valid)
    masks = (of_layer.sigmoid() for of_layer in mask_logits)
    return (_neighbour_terms(masks) * pairs).sum(dim=(1, 2)) / pairs.shape[0]


@dataclass(frozen=True)
class Consistency:
    """One reading of L_ada."""

    loss: Callable[[Sequence[Tensor], Tensor | None], Tensor]
    initial: bool
    """Whether the prediction before the first decoder layer takes part; the last never does."""
    lambda_object: float
    lambda_semantic: float
