"""Segment Anything's automatic mask generator, through the package's own networks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...model.mask_settings import SAM_LONG_SIDE, GridSettings
from .generator import Generator
from .point_grids import point_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.sam_points import SamPoints


def _sam(name: str) -> Generator:
    def network(state: "Mapping[str, Tensor]") -> "SamPoints":
        from segment_anything import sam_model_registry

        from ...model.sam_points import SamPoints

        sam = sam_model_registry[name.removeprefix("sam-").replace("-", "_")]()
        sam.load_state_dict(state)
        return SamPoints(sam.eval())

    return point_grid(
        name, "sam", GridSettings, network, lambda _: {"long_side": SAM_LONG_SIDE}, lambda _: ()
    )


SAM = {name: _sam(name) for name in ("sam-vit-b", "sam-vit-l", "sam-vit-h")}
