"""Segment Anything's automatic mask generator, through the package's own networks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...model.grid_settings import GridSettings
from .generator import Generator
from .point_grids import point_grid

if TYPE_CHECKING:
    from torch import Tensor

LONG_SIDE = 1024
"""SAM's image encoder sees images resized so that the longer side has this many pixels."""


def _sam(name: str) -> Generator:
    def network(state: "Mapping[str, Tensor]") -> Any:
        from segment_anything import sam_model_registry

        sam = sam_model_registry[name.removeprefix("sam-").replace("-", "_")]()
        sam.load_state_dict(state)
        return sam

    def facts(_own: GridSettings) -> dict[str, Any]:
        return {"long_side": LONG_SIDE}

    return point_grid(name, "sam", GridSettings, network, facts, lambda _: ())


SAM = {name: _sam(name) for name in ("sam-vit-b", "sam-vit-l", "sam-vit-h")}
