"""`PointGrid` as the public generators are called, and their way to describe a mask."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from combo.model.mask_settings import GridSettings, SemanticSamSettings
from combo.model.maskige import mask_areas
from combo.model.point_grid import Masks, PointGrid
from combo.model.sam_points import SamPoints


@dataclass(frozen=True, eq=False)
class MaskRecord(Mapping[str, Any]):
    """One mask, by attribute or by key, as the public generators describe it.

    segmentation: [H, W] bool, on the CPU.  bbox: x, y, width, height in pixels, the width being
    the last column minus the first one.  crop_box: x, y, width, height of the image.
    """

    segmentation: Tensor
    bbox: list[int]
    area: int
    predicted_iou: float
    stability_score: float
    point_coords: list[list[float]]
    crop_box: list[int]

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))


class PublicGrid(PointGrid):
    """A grid whose settings are keywords; those that are not given are the network's project's, and
    all the levels that it has."""

    def __init__(
        self,
        net: Any,
        *,
        levels: Sequence[int] | None = None,
        memory_limit: int | None = None,
        autocast: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        is_sam = isinstance(net, Sam)
        super().__init__(
            SamPoints(net) if is_sam else net,
            GridSettings(**settings) if is_sam else SemanticSamSettings(**settings),
            levels=(() if is_sam else (1, 2, 3, 4, 5, 6)) if levels is None else levels,
            memory_limit=memory_limit,
            autocast=autocast,
        )

    def records(self, image: Tensor) -> list[MaskRecord]:
        """Masks of [3 or 1, H, W] uint8 in the public generator's order."""
        (found,) = self.found(image[None])
        return records(found)

    def label_maps(self, images: Tensor) -> Tensor:
        """[B, 3 or 1, H, W] uint8 -> [B, H, W] uint8."""
        if len(images) == 0:
            return images.new_zeros(0, *images.shape[-2:])
        return torch.stack([merged.label_map for merged in self.merged(images)])

    def label_map(self, image: Tensor) -> Tensor:
        return self.label_maps(image[None])[0]


def records(found: Masks) -> list[MaskRecord]:
    height, width = found.masks.shape[-2:]
    areas = mask_areas(found.masks).tolist()
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1)
    columns = [boxes, found.ious, found.stability, found.points]
    rows = zip(found.masks.cpu(), areas, *(c.tolist() for c in columns), strict=True)
    return [
        MaskRecord(mask, box, area, iou, score, [point], [0, 0, width, height])
        for mask, area, box, iou, score, point in rows
    ]
