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

# The 150 colours of the ADE20K palette as RRGGBB. (140, 140, 140) stands twice in it, and the first
# colour doubles as the colour of uncovered pixels.
_ADE20K = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846
08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc
ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14
ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff
ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00
008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014
ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900
00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff
ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff
4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

_COLOURS = [list(bytes.fromhex(code)) for code in _ADE20K.split()]

PALETTE = _COLOURS + [[grey] * 3 for grey in range(len(_COLOURS), 256)]
"""The palette of the published Maskiges: 256 colours, RGB.

The first 150 labels, 0 included, take the colours of ADE20K in order; labels from 150 on are the
grey (i, i, i), which is what re-reading the public code's palette files gives.
"""

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
