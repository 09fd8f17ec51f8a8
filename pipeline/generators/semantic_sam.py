"""Semantic-SAM's automatic mask generator at one level of granularity."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...model.mask_settings import SEMANTIC_SAM_STRIDE, TOKEN_OF_LEVEL, SemanticSamSettings
from .generator import Generator
from .point_grids import point_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.semantic_sam import SemanticSam


def _semantic_sam(name: str) -> Generator:
    def network(state: "Mapping[str, Tensor]") -> "SemanticSam":
        from ...model.semantic_sam import SemanticSam

        net = SemanticSam.from_variant(f"swin-{name[-1]}")
        net.load_published(state)
        return net

    def facts(own: SemanticSamSettings) -> dict[str, Any]:
        return {"padded_to": SEMANTIC_SAM_STRIDE, "internal_level": TOKEN_OF_LEVEL[own.level]}

    return point_grid(
        name, "semantic_sam", SemanticSamSettings, network, facts, lambda own: (own.level,)
    )


SEMANTIC_SAM = {name: _semantic_sam(name) for name in ("semantic-sam-t", "semantic-sam-l")}
