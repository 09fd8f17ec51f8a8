"""The mask generator's post-processing alone, on logits of the published generator's golden run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from public_masks import PublicGrid
from torch import Tensor

from combo.model.point_prompts import (
    Upsampling,
)

HERE = Path(__file__).parents[1] / "data" / "semantic_sam"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Crafted:
    """Logits [P, h, w] in place of a network's, for a grid of points over an image."""

    ious: Tensor
    maps: Tensor
    side: int
    size: tuple[int, int]
    most_points: int = 10**9
    points_interact: bool = True
    zero_keeps_all: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mask_threshold: float = 0.0

    def internal_levels(self, levels: Sequence[int]) -> tuple[int, ...]:
        return tuple(levels)

    def image_bytes(self, height: int, width: int) -> int:
        return height * width

    def point_bytes(self, height: int, width: int) -> int:
        return height * width

    def encode(self, images: Tensor) -> list["Crafted"]:
        return [self] * len(images)

    @property
    def upsampling(self) -> Upsampling:
        return Upsampling(4, self.size, self.size)

    def coordinates(self, points: Tensor) -> Tensor:
        return F.pad(points, (0, 2), value=0.005)

    def decode(self, points: Tensor, levels: Sequence[int]) -> "CraftedPoints":
        assert tuple(levels) == (3,)
        if len(points) > self.most_points:
            raise torch.OutOfMemoryError("as a device would")
        cell = (points * self.side).long()
        number = cell[:, 1] * self.side + cell[:, 0]
        return CraftedPoints(self.ious[number], self.maps[number])


@dataclass(frozen=True)
class CraftedPoints:
    ious: Tensor
    maps: Tensor

    def logits(self, chosen: Tensor) -> Tensor:
        return self.maps[chosen]


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    with np.load(HERE / "postprocess_only.npz") as stored:
        return {name: stored[name] for name in stored.files}


def crafted(golden: dict[str, NDArray[np.float32]], **changes: Any) -> Crafted:
    height, width = (int(v) for v in golden["image_hw"])
    maps = torch.from_numpy(golden["lowres_logits"]).float()
    return Crafted(torch.from_numpy(golden["iou"]), maps, 7, (height, width), **changes)


def published_settings(run: str) -> Settings:
    settings = json.loads((HERE / "generator_configs.json").read_text())
    chosen = settings["postprocess_only.npz"][run]
    settings = {k: v for k, v in chosen.items() if k not in ("crop_n_layers", "output_mode")}
    settings["levels"] = settings.pop("level")
    return settings


RUNS = ["default", "batch9", "minarea0", "minarea200", "nms50", "loose", "offset3"]


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS)
def test_post_processing_is_the_published_one(
    golden: dict[str, NDArray[np.float32]], run: str
) -> None:
    net = crafted(golden)
    image = torch.zeros(3, *net.size, dtype=torch.uint8)
    records = PublicGrid(net, **published_settings(run)).records(image)
    assert len(records) == int(golden[f"{run}.n"])
    assert [r.bbox for r in records] == golden[f"{run}.bbox_xywh"].tolist()
    assert [r.area for r in records] == golden[f"{run}.area"].tolist()
    assert [r.crop_box for r in records] == golden[f"{run}.crop_box"].tolist()
    for ours, theirs in (
        ([r.predicted_iou for r in records], "predicted_iou"),
        ([r.stability_score for r in records], "stability_score"),
        ([r.point_coords[0] for r in records], "point_coords"),
    ):
        np.testing.assert_allclose(ours, golden[f"{run}.{theirs}"], rtol=0, atol=1e-6)
    bits = np.unpackbits(golden[f"{run}.seg_packed"], axis=1)
    expected = bits[:, : net.size[0] * net.size[1]].reshape(-1, *net.size)
    np.testing.assert_array_equal(np.stack([r.segmentation for r in records]), expected)


def test_running_out_of_memory_halves_the_batch_and_goes_on(
    golden: dict[str, NDArray[np.float32]],
) -> None:
    net = crafted(golden, most_points=5, points_interact=False)
    image = torch.zeros(3, *net.size, dtype=torch.uint8)
    settings = {**published_settings("default"), "memory_limit": 2**33}
    grid = PublicGrid(net, **settings)
    assert len(grid.records(image)) == int(golden["default.n"])


def test_points_that_see_each_other_are_never_split_in_silence(
    golden: dict[str, NDArray[np.float32]],
) -> None:
    net = crafted(golden, most_points=5)
    grid = PublicGrid(net, **published_settings("default"))
    with pytest.raises(MemoryError, match="points_per_batch"):
        grid.records(torch.zeros(3, *net.size, dtype=torch.uint8))


def test_any_other_failure_is_not_taken_for_a_lack_of_memory(
    golden: dict[str, NDArray[np.float32]],
) -> None:
    net = crafted(golden)
    broken = Crafted(net.ious, net.maps[:, :, :1].expand(-1, -1, 0), 7, net.size)
    with pytest.raises(RuntimeError, match=r"[Ii]nput"):
        PublicGrid(broken, **published_settings("default")).records(
            torch.zeros(3, *net.size, dtype=torch.uint8)
        )


@pytest.mark.parametrize(
    ("cut", "size"),
    [((96, 128), (96, 128)), ((96, 128), (33, 44)), ((90, 101), (270, 300)), ((3, 128), (1, 40))],
)
def test_upsampling_is_enlarging_cutting_and_resizing(
    cut: tuple[int, int], size: tuple[int, int]
) -> None:
    low = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(low[None], size=(128, 128), mode="bilinear")[:, :, : cut[0], : cut[1]]
    expected = F.interpolate(enlarged, size=size, mode="bilinear")[0]
    torch.testing.assert_close(Upsampling(4, cut, size)(low), expected, rtol=0, atol=2e-6)
