"""Settings of automatic mask generators, by the names of the public ones.

Imports nothing heavy: whoever plans a store names them without a network.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

MOST_POINTS = 1000
"""Points along a side, at most: a million points an image are a mistake."""


@dataclass(frozen=True)
class GridSettings:
    """A grid of points and the filters behind it. Defaults: segment-anything's.

    Raises ValueError for a setting out of range.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    points_per_side: int = 32
    """The grid has the square of this many points, x varying fastest."""
    points_per_batch: int = 64
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
    min_mask_region_area: int = 0
    """Holes and islands with fewer pixels go; 0 leaves the masks as they are."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("points_per_side", 1, MOST_POINTS),
            ("points_per_batch", 1, MOST_POINTS**2),
            ("min_mask_region_area", 0, 10**9),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}, but must be {least} to {most}")
        for each in fields(self):
            if getattr(self, each.name) != getattr(self, each.name):
                raise ValueError(f"{each.name} is not a number")


@dataclass(frozen=True)
class SemanticSamGrid(GridSettings):
    """Defaults of Semantic-SAM's own generator."""

    points_per_batch: int = 200
    stability_score_thresh: float = 0.92
    min_mask_region_area: int = 10
