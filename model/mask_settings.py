"""Settings and numbers of mask generation that whoever plans a store names without a network.

Imports nothing heavy: a process that only describes Maskiges, or makes them without a network,
needs no PyTorch.
"""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

MOST_MASKS = 255
"""Masks that fit into one label map beside the 0 of uncovered pixels."""

SAM_LONG_SIDE = 1024
"""SAM sees an image resized so that its longer side has this many pixels."""

SEMANTIC_SAM_STRIDE = 32
"""Semantic-SAM sees an image padded to multiples of this many pixels, right and bottom."""

TOKEN_OF_LEVEL = {1: 3, 2: 2, 3: 0, 4: 4, 5: 1, 6: 5}
"""Level that a caller asks Semantic-SAM for -> the network's own token, as the published code maps
them: levels look swapped to whoever sees only one of the two numbers, so the store records both."""

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

Points = Annotated[int, Field(ge=1, le=2**31 - 1)]
Pixels = Annotated[int, Field(ge=0, le=2**31 - 1)]


@dataclass(frozen=True, config=CONFIG)
class GridSettings:
    """A grid of points and the filters behind it, by the names and with the defaults of
    segment-anything's SamAutomaticMaskGenerator.

    Raises ValueError for a setting out of range.
    """

    points_per_side: Annotated[int, Field(ge=1, le=1000)] = 32
    """The grid has the square of this many points, x varying fastest."""
    points_per_batch: Points = 64
    """Points decoded together. Part of the result where points see each other."""
    pred_iou_thresh: float = 0.88
    """Predicted IoU has to be above this."""
    stability_score_thresh: float = 0.95
    """IoU of the mask cut `stability_score_offset` above and below the threshold: at least this."""
    stability_score_offset: float = 1.0
    """In units of the logits."""
    box_nms_thresh: float = 0.7
    """Of two boxes with a larger IoU the one with the higher predicted IoU stays."""
    crop_nms_thresh: float = 0.7
    """Counts only in the suppression after the small regions, as the maximum of the two."""
    min_mask_region_area: Pixels = 0
    """Holes and islands with fewer pixels go; 0 leaves the masks as they are."""


@dataclass(frozen=True, config=CONFIG)
class SemanticSamSettings(GridSettings):
    """The same with the defaults of Semantic-SAM's SemanticSamAutomaticMaskGenerator, at one level
    of granularity; level 3 is the paper's."""

    points_per_batch: Points = 200
    stability_score_thresh: float = 0.92
    min_mask_region_area: Pixels = 10
    level: Annotated[int, Field(ge=1, le=len(TOKEN_OF_LEVEL))] = 3
    """Granularity."""
