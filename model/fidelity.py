"""Where the public code and the paper's text part ways: all of it, in one table.

`docs/fidelity.md` says what each line changes. The network and the criterion look their parts up
here once, when they are built.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from .bilateral_fusion import PaperFusion, ReferenceFusion
from .consistency import (
    Consistency,
    paper_consistency,
    paper_divisor,
    reference_consistency,
    reference_divisor,
)
from .settings import ComboSettings, Fidelity
from .siam_encoder import GateOf, LinearGate, SqueezeGate


def reshaped_queries(sound: Tensor, queries: int) -> Tensor:
    """The public code's order: [F, Q, C] is reshaped, not transposed, to [Q, F, C].

    Query q of frame f thus receives the sound of frame floor((q F + f) / Q) of the batch.
    sound: [F, C]. Returns [F, Q, C].
    """
    frames, width = sound.shape
    repeated = sound[:, None].expand(frames, queries, width)
    return repeated.reshape(queries, frames, width).transpose(0, 1)


def own_queries(sound: Tensor, queries: int) -> Tensor:
    """The text's order: every query of a frame receives that frame's sound. [F, C] -> [F, Q, C]."""
    return sound[:, None].expand(-1, queries, -1)


@dataclass(frozen=True)
class Choices:
    """One reading of the method."""

    gate: GateOf
    """Eq. 3: SEM's channel weights."""
    fusion: Callable[[ComboSettings], nn.Module]
    """Eq. 4-5."""
    queries: Callable[[Tensor, int], Tensor]
    """Section 3.2: how the fused sound becomes object queries."""
    consistency: Consistency
    """Eq. 6-7 and section 4.2: L_ada and its weight."""


FIDELITY: dict[Fidelity, Choices] = {
    "reference": Choices(
        gate=SqueezeGate,
        fusion=ReferenceFusion,
        queries=reshaped_queries,
        consistency=Consistency(reference_consistency, reference_divisor, True, 10.0, 10.0),
    ),
    "paper": Choices(
        gate=LinearGate,
        fusion=PaperFusion,
        queries=own_queries,
        consistency=Consistency(paper_consistency, paper_divisor, False, 10.0, 5.0),
    ),
}
