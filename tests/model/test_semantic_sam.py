"""Semantic-SAM (Swin-T) against the published implementation, with weights made by a rule.

A compact part of the golden numbers lies in tests/data; all of them are used where `../shared`
holds them. Weights: see the golden README, "Deterministic weights".
"""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from public_masks import PublicGrid
from torch import Tensor, nn

from combo.model.maskige import label_map
from combo.model.semantic_sam import SemanticSam
from combo.model.semantic_sam.checkpoint import matching_entries
from combo.model.semantic_sam.network import EncodedByBackbone
from combo.model.semantic_sam.prompt_decoder import inverse_sigmoid

REPOSITORY = Path(__file__).parents[2]
HERE = REPOSITORY / "tests" / "data" / "semantic_sam"
SHARED = REPOSITORY.parent / "shared" / "golden" / "semantic_sam"

ALL_TOKENS = range(6)

CORRECTIONS = (
    (r"decoder\.bbox_embed\.0\.layers\.2\.weight$", 0.1, 0.0),
    (r"mask_tokens\.weight$", 8, 0.0),
    (r"decoder\.layers\.\d+\.cross_attn\.value_proj\.weight$", 1.25, 0.0),
    (r"decoder\.layers\.\d+\.linear2\.weight$", 0.25, 0.0),
    (r"decoder\.layers\.\d+\.self_attn\.out_proj\.weight$", 0.25, 0.0),
    (r"pixel_decoder\.layer_1\.norm\.bias$", 1, -2.0),
    (r"pixel_decoder\.mask_features\.bias$", 10, 0.0),
    (r"predictor\.mask_embed\.layers\.2\.weight$", 64, 0.0),
    (r"iou_prediction_head\.layers\.2\.bias$", 1, 0.8),
)

HALVED = ("level_embed", "mask_tokens.weight", "pb_embedding.weight", "label_enc.weight")

Encoded = tuple[EncodedByBackbone, dict[str, Tensor]]

Golden = dict[str, NDArray[np.float32]]


def made_by_rule(name: str, shape: list[int]) -> NDArray[np.float32]:
    """The golden README's value of a tensor."""
    seed = np.random.PCG64(zlib.crc32(name.encode()))
    z = np.random.Generator(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("relative_position_bias_table"):
        value = np.float32(0.05) * z
    elif name.endswith(HALVED):
        value = np.float32(0.5) * z
    elif len(shape) == 1:
        value = np.float32(0.05) * z + np.float32(name.endswith("weight"))
    else:
        value = z / np.sqrt(np.float32(np.prod(shape[1:])))
    for pattern, times, plus in CORRECTIONS:
        if re.search(pattern, name):
            value = np.float32(times) * value + np.float32(plus)
    return value.astype(np.float32)


@pytest.fixture(scope="module")
def keys() -> list[dict[str, object]]:
    return json.loads((HERE / "swint_keys.json").read_text())


@pytest.fixture(scope="module")
def published(keys: list[dict[str, object]]) -> dict[str, Tensor]:
    """A checkpoint as published: prefix, aliases, dead and derived entries included."""
    fresh = SemanticSam.from_variant("swin-t").state_dict()
    made: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for entry in keys:
        key, shape = str(entry["key"]), entry["shape"]
        assert isinstance(shape, list)
        name = str(entry.get("alias_of", key))
        if entry["dtype"] != "float32":
            state[f"model.{key}"] = torch.zeros(shape, dtype=torch.int64)
            continue
        if name not in made:
            own_grid = name.endswith("sampling_offsets.bias")
            made[name] = fresh[name] if own_grid else torch.from_numpy(made_by_rule(name, shape))
        state[f"model.{key}"] = made[name]
    return state


@pytest.fixture(scope="module")
def net(published: dict[str, Tensor]) -> SemanticSam:
    net = SemanticSam.from_variant("swin-t")
    net.load_published(published)
    return net


@pytest.fixture(scope="module")
def golden() -> Golden:
    """The numbers kept here, and where there are all of them, all of them."""
    files = [HERE / "swint.npz", SHARED / "swint_inputs.npz", SHARED / "swint_outputs.npz"]
    numbers: Golden = {}
    for file in files:
        if file.exists():
            with np.load(file) as stored:
                numbers.update({name: stored[name] for name in stored.files})
    return numbers


@pytest.fixture(scope="module")
def encoded(net: SemanticSam, golden: Golden) -> dict[str, Encoded]:
    """Both images, encoded once for all tests that do not encode themselves."""
    return {name: encoded_with_taps(net, picture(golden, name)) for name in "ab"}


def picture(golden: Golden, name: str) -> Tensor:
    return torch.from_numpy(golden[f"{name}.image"]).permute(2, 0, 1)


def test_the_weights_of_these_tests_are_those_of_the_golden_run(
    keys: list[dict[str, object]], published: dict[str, Tensor]
) -> None:
    for entry in keys:
        if entry["dtype"] == "float32":
            tensor = published[f"model.{entry['key']}"].numpy()
            assert f"{zlib.crc32(tensor.tobytes()):08x}" == entry["crc32"], entry["key"]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["a", "b"])
def test_every_feature_on_the_way_is_the_published_one(
    encoded: dict[str, Encoded], golden: Golden, name: str
) -> None:
    _, taps = encoded[name]
    compared = 0
    for tap, value in taps.items():
        compared += compare_feature(golden, f"{name}.{tap}", value)
    assert compared >= 15


@pytest.mark.golden
@pytest.mark.parametrize("name", ["a", "b"])
def test_sixteen_points_see_each_other_and_make_the_published_masks(
    encoded: dict[str, Encoded], golden: Golden, name: str
) -> None:
    image, _ = encoded[name]
    points = torch.from_numpy(golden["points16"]).double()
    with torch.no_grad():
        decoded = image.decode(points, ALL_TOKENS)
        logits = decoded.logits(torch.arange(96))
        full = image.upsampling(logits)
    expected = {key: golden[f"{name}.p16.{key}"] for key in ("pred_ious", "full_masks_area")}
    close(decoded.ious.view(16, 6), expected["pred_ious"], 5e-5)
    close(logits.mean(dim=(1, 2)), golden[f"{name}.p16.pred_masks_mean"], 1e-2)
    close(logits.std(dim=(1, 2), correction=0), golden[f"{name}.p16.pred_masks_std"], 1e-2)
    close(full[::5, -12:, -12:], golden[f"{name}.p16.full_masks_br_crop"], 1e-2)
    areas = (full > 0).sum(dim=(1, 2))
    allowed = np.maximum(8, expected["full_masks_area"] * 2e-4)
    assert (np.abs(areas.numpy() - expected["full_masks_area"]) <= allowed).all()
    # Alone, a point sees no other: another result, as the published code has it.
    with torch.no_grad():
        alone = image.decode(points[:1], ALL_TOKENS)
    close(alone.ious, golden[f"{name}.p1.ious"][0], 5e-5)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.skipif(not SHARED.exists(), reason="the whole golden set is not beside the repository")
def test_every_step_of_the_decoder_is_the_published_one(
    net: SemanticSam, encoded: dict[str, Encoded], golden: Golden, name: str
) -> None:
    image, _ = encoded[name]
    seen: dict[str, Tensor] = {}
    predictor = net.sem_seg_head.predictor
    decoder = predictor.decoder
    boxes: list[Tensor] = []
    first = decoder.layers[0]
    assert isinstance(first, nn.Module)
    hooks = [
        first.register_forward_pre_hook(lambda _, args: seen.update(tgt=args[0])),
        first.get_submodule("self_attn").register_forward_hook(
            lambda _, __, out: seen.update({"l0.self_attn": out[0]})
        ),
        first.get_submodule("cross_attn").register_forward_hook(
            lambda _, __, out: seen.update({"l0.cross_attn": out})
        ),
        decoder.ref_point_head.register_forward_hook(
            lambda _, args, out: seen.update(
                {"l0.sine": args[0], "l0.query_pos": out} if "l0.sine" not in seen else {}
            )
        ),
    ]

    def keep(i: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen[f"layer{i}"] = out
            boxes.append(args[2])

        return hook

    hooks += [layer.register_forward_hook(keep(i)) for i, layer in enumerate(decoder.layers)]
    with torch.no_grad():
        points = torch.from_numpy(golden["points16"]).double()
        decoded = image.decode(points, ALL_TOKENS)
        logits = decoded.logits(torch.arange(96))
        full = image.upsampling(logits)
        box_network, norm = decoder.bbox_embed[0], predictor.decoder_norm
        before = inverse_sigmoid(boxes[-1])
        boxes.append((box_network(seen["layer8"]) + before).sigmoid())
        ious = [
            predictor.iou_prediction_head(norm(norm(seen[f"layer{i}"])))[0].view(16, 6)
            for i in range(8)
        ]
        mask_embed = predictor.mask_embed(decoded.queries)
        normed_once = norm(seen["layer8"])
        predicted_boxes = (box_network(norm(normed_once)) + before).sigmoid()
    for hook in hooks:
        hook.remove()

    def expect(key: str, value: Tensor, tolerance: float = 1e-4) -> None:
        close(value, golden[f"{name}.p16.{key}"], tolerance)

    expect("tgt", seen["tgt"][0])
    given = torch.from_numpy(golden[f"{name}.p16.refpoint_unsigmoid"]).sigmoid()
    close(boxes[0][0], given.numpy(), 1e-6)
    expect("l0.sine", seen["l0.sine"][0, ::6])
    expect("l0.query_pos", seen["l0.query_pos"][0, ::6])
    expect("l0.self_attn", seen["l0.self_attn"][0, :12])
    expect("l0.cross_attn", seen["l0.cross_attn"][0, :12])
    for i in range(9):
        step = 1 if i in (0, 8) else 4
        expect(f"layer{i}", seen[f"layer{i}"][0, ::step])
    expect("refs", torch.stack([box[0] for box in boxes]), 1e-5)
    expect("pred_boxes", predicted_boxes[0], 1e-5)
    expect("hs_last_after_first_norm", normed_once[0, ::4])
    expect("mask_embed", mask_embed, 1e-3)
    expect("pred_ious_aux", torch.stack(ious), 5e-5)
    kept = logits.unflatten(0, (16, 6))
    stored = golden[f"{name}.p16.pred_masks_f16"]
    close(kept[:: 16 // len(stored)], stored, 0.5)  # half precision: 0.25 at 500
    expect("pred_masks_f32_crop", logits[::5, 20:36, 20:36], 1e-2)
    expect("full_masks_f32_crop", full[::5, 60:76, 60:76], 1e-2)
    memory = golden[f"{name}.p16.memory_tokens"]
    step = int(golden[f"{name}.p16.memory_token_step"])
    projected = image.memory.values[0][0].flatten(1)[::step][: len(memory)]
    with torch.no_grad():
        expected = first.get_submodule("cross_attn.value_proj")(torch.from_numpy(memory))
    close(projected, expected.numpy(), 1e-4)


RUNS = [
    "a.gen_default_pps6",
    "a.gen_batch10_pps6",
    "a.gen_loose_pps4_all",
    "a.gen_nonms_pps4",
    "b.gen_loose_pps8",
    pytest.param("b.gen_default_pps32", marks=pytest.mark.slow),
]


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS)
def test_the_generator_lists_the_published_masks_in_the_published_order(
    net: SemanticSam, golden: Golden, run: str
) -> None:
    config = json.loads((HERE / "generator_configs.json").read_text())["swint_outputs.npz"][run]
    grid = PublicGrid(
        net,
        levels=config["level"],
        **{name: config[name] for name in config if name not in NOT_OURS},
    )
    image = picture(golden, run[0])
    records = grid.records(image)

    assert len(records) == int(golden[f"{run}.n"])
    assert [r.bbox for r in records] == golden[f"{run}.bbox_xywh"].tolist()
    assert [r["crop_box"] for r in records] == golden[f"{run}.crop_box"].tolist()
    close(torch.tensor([r.predicted_iou for r in records]), golden[f"{run}.predicted_iou"], 5e-5)
    close(torch.tensor([r.point_coords[0] for r in records]), golden[f"{run}.point_coords"], 1e-6)
    scores = torch.tensor([r["stability_score"] for r in records])
    close(scores, golden[f"{run}.stability_score"], 1e-4)
    shape = tuple(golden[f"{run}.seg_shape"])
    bits = np.unpackbits(golden[f"{run}.seg_packed"], axis=1)[:, : shape[1] * shape[2]]
    for record, expected in zip(records, bits.reshape(shape).astype(bool), strict=True):
        allowed = max(8, 2e-4 * record.area)
        assert abs(record.area - expected.sum()) <= allowed
        assert (record.segmentation.numpy() != expected).sum() <= allowed

    merged = label_map(torch.stack([record.segmentation for record in records]))
    assert torch.equal(grid.label_map(image), merged)


NOT_OURS = {"level", "crop_n_layers", "output_mode"}


def test_frames_encoded_together_give_what_each_gives_alone(
    net: SemanticSam, golden: Golden
) -> None:
    whole = picture(golden, "b")
    clip = torch.stack([whole[:, i : i + 90, i : i + 122] for i in (0, 40, 100)])
    grid = PublicGrid(
        net, points_per_side=5, levels=(3,), pred_iou_thresh=0.5, stability_score_thresh=0.5
    )
    alone = torch.stack([grid.label_map(frame) for frame in clip])
    assert len(alone.unique()) > 3
    assert (grid.label_maps(clip) != alone).float().mean() < 1e-3


def test_a_checkpoint_loads_without_its_prefix_and_from_its_aliases(
    net: SemanticSam, published: dict[str, Tensor]
) -> None:
    bare = {name.removeprefix("model."): value for name, value in published.items()}
    own = [name for name in bare if ".decoder_norm." in name or "decoder.bbox_embed.0." in name]
    for name in own:
        del bare[name]
    other = SemanticSam.from_variant("swin-t")
    left_out = other.load_published({"model": bare})
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    dead = {"lang_mapper", "class_embed", "class_embed_part", "relative_position_index"}
    assert {name.rsplit(".", 1)[-1] for name in left_out} == dead


def test_a_live_entry_that_is_missing_or_of_another_shape_is_named(
    published: dict[str, Tensor],
) -> None:
    net = SemanticSam.from_variant("swin-t")
    missing = "sem_seg_head.predictor.mask_tokens.weight"
    wrong = "backbone.norm2.bias"
    state = {name: value for name, value in published.items() if not name.endswith(missing)}
    state[f"model.{wrong}"] = torch.zeros(7)
    before = net.backbone.patch_embed.proj.weight.clone()
    with pytest.raises(ValueError, match=re.escape(f"{missing} is missing")) as error:
        net.load_published(state)
    assert f"{wrong} is [7], not [384]" in str(error.value)
    assert torch.equal(net.backbone.patch_embed.proj.weight, before)


def test_aliases_that_disagree_are_an_error(published: dict[str, Tensor]) -> None:
    alias = "model.sem_seg_head.predictor.bbox_embed.4.layers.0.bias"
    state = {**published, alias: published[alias] + 1}
    with pytest.raises(ValueError, match=r"bbox_embed\.4\.layers\.0\.bias differs"):
        SemanticSam.from_variant("swin-t").load_published(state)


def test_the_large_variant_has_the_published_size() -> None:
    with torch.device("meta"):
        net = SemanticSam.from_variant("swin-l")
    dead = 393_216
    assert sum(p.numel() for p in net.parameters()) == 222_799_161 - dead
    assert net.state_dict()["backbone.layers.2.blocks.17.attn.qkv.weight"].shape == (2304, 768)
    with pytest.raises(ValueError, match="swin-t, swin-l"):
        SemanticSam.from_variant("swin-b")


def test_a_large_checkpoint_of_the_published_names_fills_the_large_variant(
    keys: list[dict[str, object]],
) -> None:
    with torch.device("meta"):
        own = SemanticSam.from_variant("swin-l").state_dict()
    names = [str(entry["key"]) for entry in keys]
    third_stage = "backbone.layers.2.blocks."
    for block in range(6, 18):
        names += [
            name.replace(f"{third_stage}{block % 2}.", f"{third_stage}{block}.")
            for name in names
            if name.startswith(f"{third_stage}{block % 2}.")
        ]
    assert len(names) == len(set(names)) == 816

    def shape_of(name: str) -> torch.Size:
        # An alias has the shape of what it stands for; dead tables may have any.
        for mark in (".bbox_embed.", "._bbox_embed."):
            if mark in name:
                name = (
                    f"sem_seg_head.predictor.decoder.bbox_embed.0.layers{name.split('layers')[-1]}"
                )
        name = name.replace(".decoder.norm.", ".decoder_norm.")
        return own[name].shape if name in own else torch.Size([1])

    nothing = torch.zeros(())
    state = {f"model.{name}": nothing.expand(shape_of(name)) for name in names}
    entries, left_out = matching_entries(own, state)
    assert entries.keys() == own.keys()
    assert all(DEAD.search(name) for name in left_out)
    del state["model.backbone.layers.2.blocks.17.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"layers\.2\.blocks\.17\.attn\.qkv\.weight is missing"):
        matching_entries(own, state)


DEAD = re.compile(r"\.(lang_mapper|class_embed|class_embed_part|relative_position_index)$")


def test_levels_are_tokens_under_other_numbers(net: SemanticSam) -> None:
    assert PublicGrid(net).internal_levels == (3, 2, 0, 4, 1, 5)
    assert PublicGrid(net, levels=(3,)).internal_levels == (0,)
    for levels in ((), (0,), (3, 7)):
        with pytest.raises(ValueError, match="1 to 6"):
            PublicGrid(net, levels=levels)


def close(value: Tensor, expected: NDArray[np.float32], tolerance: float) -> None:
    assert value.shape == expected.shape
    assert np.abs(value.numpy() - expected.astype(np.float64)).max() <= tolerance


def compare_feature(golden: Golden, name: str, value: Tensor) -> int:
    """How many of the stored views of one feature there are, all of which must agree."""
    views: dict[str, Callable[[], Tensor]] = {
        "chmean": lambda: value.mean(dim=(1, 2)),
        "chstd": lambda: value.std(dim=(1, 2), correction=0),
        "tl": lambda: value[:16, :12, :12],
        "br": lambda: value[-16:, -12:, -12:],
        "tokens": lambda: value[:: int(golden[f"{name}.token_step"])][:24],
        "every": lambda: value[:: int(golden[name.rsplit(".", 1)[0] + ".token_step"])],
    }
    compared = 0
    for view, of in views.items():
        key = name if view == "every" else f"{name}.{view}"
        if key in golden:
            close(of(), golden[key], 1e-4)
            compared += 1
    return compared


def encoded_with_taps(net: SemanticSam, image: Tensor) -> Encoded:
    """An encoded image, and features by golden names: maps [C, h, w], tokens [S, C]."""
    taps: dict[str, Tensor] = {}
    hooks: list[torch.utils.hooks.RemovableHandle] = []

    def tap(path: str, keep: Callable[[tuple[Tensor, ...], Tensor], dict[str, Tensor]]) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            taps.update(keep(args, out))

        hooks.append(net.get_submodule(path).register_forward_hook(hook))

    def tokens(name: str) -> Callable[[tuple[Tensor, ...], Tensor], dict[str, Tensor]]:
        return lambda _, out: {name: out[0].flatten(0, -2)}

    def feature(name: str) -> Callable[[tuple[Tensor, ...], Tensor], dict[str, Tensor]]:
        return lambda _, out: {name: out[0]}

    tap("backbone.patch_embed", lambda _, out: {"patch_embed": out[0].permute(2, 0, 1)})
    tap("backbone.layers.0.blocks.0", tokens("s0b0"))
    tap("backbone.layers.0.blocks.1", tokens("s0b1"))
    tap("backbone.layers.0.downsample", tokens("s0down"))
    for i in range(4):
        tap(f"backbone.layers.{i}.blocks", tokens(f"stage{i}"))
        tap(f"sem_seg_head.pixel_decoder.input_proj.{i}", feature(f"input_proj{i}"))
    tap("backbone", lambda _, out: {f"res{i + 2}": out[i][0] for i in range(4)})
    encoder = "sem_seg_head.pixel_decoder.transformer.encoder.layers"
    tap(
        f"{encoder}.0",
        lambda args, _: {"enc.src": args[0][0], "enc.pos_plus_level": args[1][0]},
    )
    for i in range(6):
        tap(f"{encoder}.{i}", tokens(f"enc.layer{i}"))
    tap("sem_seg_head.pixel_decoder.adapter_1", feature("lateral"))
    tap("sem_seg_head.pixel_decoder.layer_1", lambda _, out: {"fpn": out[0].relu()})
    tap(
        "sem_seg_head.pixel_decoder",
        lambda _, out: {
            "mask_features": out[0][0],
            **{f"multi_scale{i}": out[1][i][0] for i in range(4)},
        },
    )
    with torch.no_grad():
        encoded = net.encode(image[None])[0]
    for hook in hooks:
        hook.remove()
    return encoded, taps
