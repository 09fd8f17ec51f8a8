"""The automatic mask generator: against segment-anything, and what becomes of images that are
large, tiny, grey, empty or crowded.

Networks are small, with seeded weights that make masks of many sizes; the numbers of a trained
network play no part in the rules tested here.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from public_masks import PublicGrid
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from system_limits import memory_limit
from torch import Tensor

from combo.model.mask_settings import GridSettings, SemanticSamSettings
from combo.model.maskige import label_map, merge
from combo.model.point_prompts import (
    DecodedPoints,
)
from combo.model.sam_points import EncodedByViT
from combo.model.semantic_sam.network import SemanticSam
from combo.model.semantic_sam.swin import SwinSize

HERE = Path(__file__).parents[1] / "data" / "semantic_sam"

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def sam() -> Sam:
    return small_sam()


def small_sam() -> Sam:
    """A SAM with one thin encoder block at 256 pixels; the rest is as large as the real one."""
    torch.manual_seed(0)
    side = 256
    grid = (side // 16, side // 16)
    made = Sam(
        ImageEncoderViT(
            img_size=side,
            embed_dim=48,
            depth=1,
            num_heads=2,
            out_chans=256,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
        ),
        PromptEncoder(
            embed_dim=256,
            image_embedding_size=grid,
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=512),
        ),
    )
    return with_scattered_masks(made.eval(), sparseness=33)


def with_scattered_masks(sam: Sam, sparseness: float) -> Sam:
    """Weights at their random start, moved so that predicted IoUs scatter around 0.8 and masks
    are blobs of many sizes: logits with a standard deviation of 40 around a negative mean."""
    decoder: Any = sam.mask_decoder
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        # One channel of the upscaled embedding becomes a constant that lowers all logits.
        decoder.output_upscaling[3].bias[0] += 3
        for network in decoder.output_hypernetworks_mlps:
            network.layers[2].weight.mul_(600)
            network.layers[2].weight[0] = 0
            network.layers[2].bias[0] = -sparseness
        predictor = SamPredictor(sam)
        predictor.set_image(picture(64, 64).permute(1, 2, 0).numpy())
        somewhere = torch.rand(20, 1, 2) * sam.image_encoder.img_size
        _, ious, _ = predictor.predict_torch(somewhere, torch.ones(20, 1))
        head = decoder.iou_prediction_head.layers[2]
        larger = 0.3 / ious.std(dim=0)
        head.bias[1:] = 0.8 + larger * (head.bias[1:] - ious.mean(dim=0))
        head.weight[1:] *= larger[:, None]
    return sam


@pytest.fixture(scope="module")
def semantic() -> SemanticSam:
    return thin_semantic_sam()


def thin_semantic_sam() -> SemanticSam:
    """A Semantic-SAM with a thin backbone."""
    torch.manual_seed(0)
    net = SemanticSam(SwinSize(16, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4))
    with torch.no_grad():
        predictor: Any = net.sem_seg_head.predictor
        predictor.mask_tokens.weight.mul_(3)
        predictor.mask_embed.layers[2].weight.mul_(40)
        predictor.iou_prediction_head.layers[2].weight.mul_(4)
        predictor.iou_prediction_head.layers[2].bias.add_(1.3)
    return net


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A picture of soft blobs, [3, height, width] uint8."""
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return smooth[0].clamp(0, 255).byte()


def packages_masks(sam: Sam, image: Tensor, settings: Settings) -> list[dict[str, Any]]:
    generator = SamAutomaticMaskGenerator(sam, **settings)
    return generator.generate(image.permute(1, 2, 0).numpy())


def assert_same_masks(ours: Sequence[Any], theirs: list[dict[str, Any]]) -> None:
    """Equal lists; a pixel whose logit is zero but for rounding may differ."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        pixels = int((mine.segmentation.numpy() != other["segmentation"]).sum())
        assert pixels <= max(2, 1e-4 * other["area"])
        assert abs(mine.area - other["area"]) <= pixels
        assert mine.bbox == other["bbox"]
        assert mine.point_coords == other["point_coords"]
        assert mine.crop_box == other["crop_box"]
        assert mine.predicted_iou == pytest.approx(other["predicted_iou"], abs=1e-5)
        assert mine.stability_score == pytest.approx(
            float(other["stability_score"]), abs=1e-4, nan_ok=True
        )


LOOSE: Settings = {
    "points_per_side": 8,
    "pred_iou_thresh": 0.5,
    "stability_score_thresh": 0.6,
    "box_nms_thresh": 0.9,
}


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((135, 180), LOOSE),
        (
            (300, 200),
            {
                **LOOSE,
                "box_nms_thresh": 0.3,
                "stability_score_offset": 4.0,
                "stability_score_thresh": 0.1,
            },
        ),
        ((40, 256), {**LOOSE, "pred_iou_thresh": 0, "stability_score_thresh": 0}),
        ((96, 96), {"points_per_side": 8, "points_per_batch": 10, "stability_score_offset": 0.2}),
        ((700, 900), {**LOOSE, "points_per_side": 3}),
        ((1, 1), {**LOOSE, "pred_iou_thresh": 0, "stability_score_thresh": 0}),
    ],
)
def test_sam_gives_the_masks_that_segment_anything_gives(
    sam: Sam, size: tuple[int, int], settings: Settings
) -> None:
    image = picture(*size)
    theirs = packages_masks(sam, image, settings)
    ours = PublicGrid(sam, **settings).records(image)
    assert len(theirs) > 0
    assert_same_masks(ours, theirs)


@pytest.mark.slow
def test_the_real_vit_b_gives_the_masks_that_segment_anything_gives() -> None:
    torch.manual_seed(1)
    vit_b = sam_model_registry["vit_b"]()
    # Two of its twelve blocks, one with windows and one without: the others repeat them.
    vit_b.image_encoder.blocks = vit_b.image_encoder.blocks[1:3]
    with_scattered_masks(vit_b, sparseness=18)
    image = picture(224, 224)
    settings = {**LOOSE, "points_per_side": 3}
    theirs = packages_masks(vit_b, image, settings)
    assert len(theirs) > 0
    assert_same_masks(PublicGrid(vit_b, **settings).records(image), theirs)


def test_little_memory_makes_smaller_steps_and_the_same_masks(sam: Sam) -> None:
    image = picture(120, 90)
    plenty = PublicGrid(sam, **LOOSE).records(image)
    little = PublicGrid(sam, **LOOSE, memory_limit=1).records(image)
    assert len(plenty) > 3
    assert [r.bbox for r in plenty] == [r.bbox for r in little]
    for a, b in zip(plenty, little, strict=True):
        assert int((a.segmentation != b.segmentation).sum()) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does it")
@pytest.mark.own_process
def test_when_memory_really_runs_out_the_batch_is_halved_until_it_fits(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(120, 90)
    settings = {**LOOSE, "points_per_side": 16, "points_per_batch": 256}
    expected = PublicGrid(sam, **settings).records(image)
    assert len(expected) > 3
    sizes: list[int] = []
    decode = EncodedByViT.decode

    def recorded(self: EncodedByViT, points: Tensor, levels: Sequence[int]) -> DecodedPoints:
        sizes.append(len(points))
        return decode(self, points, levels)

    monkeypatch.setattr(EncodedByViT, "decode", recorded)
    # All 256 points at once, of which each takes a quarter MiB several times over.
    monkeypatch.setattr("combo.model.point_grid.CPU_WORKING_SET", 1 << 33)
    grid = PublicGrid(sam, **settings, memory_limit=1 << 33)
    with memory_limit(mebibytes=32):
        records = grid.records(image)
    assert sizes[:2] == [256, 128]
    assert sizes[-1] < 256
    assert [r.bbox for r in records] == [r.bbox for r in expected]


def test_frames_are_encoded_together_as_far_as_memory_goes(
    semantic: SemanticSam, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = torch.stack([picture(50, 70, seed) for seed in range(5)])
    together: list[int] = []
    encode = semantic.encode

    def recorded(images: Tensor) -> Any:
        together.append(len(images))
        return encode(images)

    monkeypatch.setattr(semantic, "encode", recorded)
    one = semantic.image_bytes(50, 70)
    settings: Settings = {"points_per_side": 2, "levels": (3,), "pred_iou_thresh": -9}
    for limit, sizes in ((10 * one, [5]), (2 * one, [2, 2, 1]), (1, [1] * 5)):
        together.clear()
        PublicGrid(semantic, **settings, memory_limit=limit).label_maps(clip)
        assert together == sizes


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_masks() -> None:
    # Traced as for any backend; turning it into machine code too takes minutes.
    semantic: Any = thin_semantic_sam()
    head = semantic.sem_seg_head
    for layered in (head.pixel_decoder.transformer.encoder, head.predictor.decoder):
        layered.layers = layered.layers[:1]  # the others are traced like it
    networks = (small_sam(), LOOSE), (semantic, {**LOOSE, "levels": (3,)})
    for net, settings in networks:
        images = [picture(120, 90), picture(64, 100)]
        expected = [PublicGrid(net, **settings).label_map(image) for image in images]
        assert all(labels.any() for labels in expected)
        grid = PublicGrid(net, **settings)
        grid.net.compile_parts("eager")
        for image, labels in zip(images, expected, strict=True):
            assert (grid.label_map(image) != labels).float().mean() < 1e-3


def test_the_label_map_is_the_merged_records(sam: Sam, semantic: SemanticSam) -> None:
    image = picture(120, 90)
    for grid in (
        PublicGrid(sam, **LOOSE),
        PublicGrid(semantic, **{**LOOSE, "box_nms_thresh": 1.0}, levels=(3, 1)),
    ):
        masks = torch.stack([record.segmentation for record in grid.records(image)])
        assert len(masks) > 3
        assert torch.equal(grid.label_map(image), label_map(masks))
        clip = torch.stack([image, picture(120, 90, seed=1)])
        maps = grid.label_maps(clip)
        assert maps.shape == (2, 120, 90)
        assert (maps[0] != grid.label_map(image)).float().mean() < 1e-3


def test_the_defaults_are_those_of_the_two_projects() -> None:
    projects = signature(SamAutomaticMaskGenerator).parameters
    for name, value in vars(GridSettings()).items():
        assert value == projects[name].default, name
    published = json.loads((HERE / "generator_configs.json").read_text())["postprocess_only.npz"]
    ours = vars(SemanticSamSettings(points_per_side=7))
    assert ours == {name: published["default"][name] for name in ours} | {"level": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"points_per_side": 0},
        {"points_per_batch": 0},
        {"min_mask_region_area": -1},
        {"pred_iou_thresh": float("nan")},
        {"box_nms_thresh": float("inf")},
        {"memory_limit": 0},
        {"levels": (3,)},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(sam: Sam, wrong: Settings) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PublicGrid(sam, **wrong)


def test_a_record_is_read_by_attribute_and_by_key(sam: Sam) -> None:
    record = PublicGrid(sam, **LOOSE).records(picture(60, 80))[0]
    assert record["area"] == record.area == int(record.segmentation.sum())
    assert set(record) == {
        "segmentation",
        "bbox",
        "area",
        "predicted_iou",
        "stability_score",
        "point_coords",
        "crop_box",
    }
    assert dict(record)["crop_box"] == [0, 0, 80, 60]
    with pytest.raises(KeyError):
        record["keys"]


def test_segment_anything_is_imported_by_those_who_bring_a_sam_only() -> None:
    program = (
        "import sys, combo.model.point_grid, combo.model.semantic_sam; "
        "sys.exit('segment_anything' in sys.modules or 'cv2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Images of unusual kinds.


def test_a_large_photograph_gets_masks_of_its_own_size(sam: Sam) -> None:
    image = picture(3000, 4000)
    grid = PublicGrid(sam, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0.1)
    records = grid.records(image)
    assert len(records) > 0
    assert all(record.segmentation.shape == (3000, 4000) for record in records)
    assert grid.label_map(image).unique().numel() > 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its own memory as Linux tells it")
@pytest.mark.own_process
def test_a_large_photograph_takes_semantic_sam_a_bounded_amount_of_memory() -> None:
    net = thin_semantic_sam()
    encoder: Any = net.sem_seg_head.pixel_decoder.transformer.encoder
    encoder.layers = encoder.layers[:1]  # of six, which take the same memory one after another
    image = picture(1500, 2000)
    grid = PublicGrid(net, points_per_side=2, levels=(3,), pred_iou_thresh=-9)
    before = peak_memory()
    labels = grid.label_map(image)
    assert labels.shape == (1500, 2000)
    assert labels.any()
    # The 256 mask features of every fourth pixel along both axes take 64 bytes a pixel, before
    # and after each of their convolutions, and what nine layers keep for the prompts 192.
    assert peak_memory() - before < 450 * image[0].numel()


def peak_memory() -> int:
    """Most bytes that the process had since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def test_a_single_pixel_is_an_image(semantic: SemanticSam) -> None:
    # A mask of one pixel has a box without area, which suppresses no other: all points may stay.
    grid = PublicGrid(semantic, points_per_side=3, levels=(3,), pred_iou_thresh=-9.0)
    records = grid.records(picture(1, 1))
    assert len(records) <= 9
    assert all(record.bbox == [0, 0, 0, 0] and record.area == 1 for record in records)
    assert grid.label_map(picture(1, 1)).tolist() == [[1 if records else 0]]


def test_a_grey_image_is_one_with_three_equal_channels(sam: Sam, semantic: SemanticSam) -> None:
    grey = picture(60, 80)[:1]
    for grid in (PublicGrid(sam, **LOOSE), PublicGrid(semantic, **LOOSE, levels=(3,))):
        labels = grid.label_map(grey)
        assert labels.any()
        assert torch.equal(labels, grid.label_map(grey.repeat(3, 1, 1)))


def test_an_image_without_a_mask_gives_no_records_and_zeros(
    sam: Sam, semantic: SemanticSam
) -> None:
    for net in (sam, semantic):
        for nothing in ({"pred_iou_thresh": 99.0}, {"stability_score_thresh": 1.1}):
            grid = PublicGrid(net, points_per_side=2, **nothing)
            assert grid.records(picture(40, 60)) == []
            empty = grid.label_map(picture(40, 60))
            assert empty.shape == (40, 60)
            assert empty.dtype == torch.uint8
            assert not empty.any()


def test_of_more_than_255_masks_the_smallest_are_merged_and_the_rest_is_counted(
    sam: Sam, semantic: SemanticSam
) -> None:
    image = picture(48, 64)
    everything: Settings = {
        "points_per_side": 10,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
        "box_nms_thresh": 1.0,
    }
    for grid in (
        PublicGrid(sam, **everything),
        PublicGrid(semantic, **{**everything, "pred_iou_thresh": -9, "levels": (1, 3, 6)}),
    ):
        records = grid.records(image)
        merged = grid.merged(image[None])[0]
        assert 255 < len(records) <= 300
        assert merged.left_out == len(records) - 255
        expected = merge(torch.stack([record.segmentation for record in records]))
        assert torch.equal(merged.label_map, expected.label_map)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(3, 0, 8, dtype=torch.uint8),
    ],
)
def test_what_is_no_image_is_refused(sam: Sam, image: Tensor) -> None:
    with pytest.raises(ValueError, match="image"):
        PublicGrid(sam).records(image)


def test_half_precision_changes_little(sam: Sam) -> None:
    image = picture(120, 90)
    exact = PublicGrid(sam, **LOOSE)
    half = PublicGrid(sam, **LOOSE, autocast=torch.bfloat16)
    covered, also = exact.label_map(image) > 0, half.label_map(image) > 0
    assert (covered == also).float().mean() > 0.8
