"""Semantic-SAM's automatic mask generator at one level of granularity; level 3 is the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...model.granularity import TOKEN_OF_LEVEL
from ...model.grid_settings import SemanticSamGrid
from .generator import Generator
from .point_grids import point_grid

if TYPE_CHECKING:
    from torch import Tensor

STRIDE = 32
"""Images keep their size and are padded to multiples of this many pixels."""


@dataclass(frozen=True)
class SemanticSamSettings(SemanticSamGrid):
    """The published generator's settings, and the granularity asked for."""

    level: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in TOKEN_OF_LEVEL:
            raise ValueError(f"level is {self.level}, but must be 1 to {len(TOKEN_OF_LEVEL)}")


def _semantic_sam(name: str) -> Generator:
    def network(state: "Mapping[str, Tensor]") -> Any:
        from ...model.semantic_sam import SemanticSam

        net = SemanticSam.from_variant(f"swin-{name[-1]}")
        net.load_published(state)
        return net

    def facts(own: SemanticSamSettings) -> dict[str, Any]:
        return {"padded_to": STRIDE, "internal_level": TOKEN_OF_LEVEL[own.level]}

    return point_grid(
        name, "semantic_sam", SemanticSamSettings, network, facts, lambda own: (own.level,)
    )


SEMANTIC_SAM = {name: _semantic_sam(name) for name in ("semantic-sam-t", "semantic-sam-l")}
