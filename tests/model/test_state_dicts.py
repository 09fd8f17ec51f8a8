"""Published checkpoints come in complete, or an error names the key."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from combo.model import Combo
from combo.model.backbones import Backbone
from combo.model.state_dicts import (
    StateDictError,
    backbone_state,
    backbone_state_in_order,
    combo_key,
    published_combo,
)

Shapes = dict[str, tuple[int, ...]]


def empty(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def published_pvt(prefix: str) -> Shapes:
    """Names and shapes of the public PVT-v2-B5, from their description."""
    dims, depths, ratios = (64, 128, 320, 512), (3, 6, 40, 3), (8, 4, 2, 1)
    shapes: Shapes = {}

    def both(name: str, *weight: int) -> None:
        shapes[f"{prefix}{name}.weight"] = weight
        shapes[f"{prefix}{name}.bias"] = weight[:1]

    for stage, (dim, depth, ratio) in enumerate(zip(dims, depths, ratios, strict=True), 1):
        before, kernel = (3, 7) if stage == 1 else (dims[stage - 2], 3)
        both(f"patch_embed{stage}.proj", dim, before, kernel, kernel)
        both(f"patch_embed{stage}.norm", dim)
        for number in range(depth):
            block = f"block{stage}.{number}"
            both(f"{block}.norm1", dim)
            both(f"{block}.attn.q", dim, dim)
            both(f"{block}.attn.kv", 2 * dim, dim)
            both(f"{block}.attn.proj", dim, dim)
            if ratio > 1:
                both(f"{block}.attn.sr", dim, dim, ratio, ratio)
                both(f"{block}.attn.norm", dim)
            both(f"{block}.norm2", dim)
            both(f"{block}.mlp.fc1", 4 * dim, dim)
            both(f"{block}.mlp.dwconv.dwconv", 4 * dim, 1, 3, 3)
            both(f"{block}.mlp.fc2", dim, 4 * dim)
        both(f"norm{stage}", dim)
    return shapes


def published_pvt_combo(r50: Shapes) -> Shapes:
    """The public R50 network's keys with the other encoders, and what hangs on their channels."""
    dims = (64, 128, 320, 512)
    shapes: Shapes = {}
    for name, shape in r50.items():
        if not name.startswith(("backbone.", "pre_sam_backbone.", "scale_factor_module.")):
            shapes[name] = shape
    for prefix in ("backbone.", "pre_sam_backbone."):
        shapes.update(published_pvt(prefix))
    for level, dim in enumerate(dims):
        gate = f"scale_factor_module.{level}"
        shapes[f"{gate}.fc1.weight"], shapes[f"{gate}.fc1.bias"] = (dim // 16, dim), (dim // 16,)
        shapes[f"{gate}.fc2.weight"], shapes[f"{gate}.fc2.bias"] = (dim, dim // 16), (dim,)
    decoder = "sem_seg_head.pixel_decoder"
    for level, dim in enumerate(dims[:0:-1]):
        shapes[f"{decoder}.input_proj.{level}.0.weight"] = (256, dim, 1, 1)
    shapes[f"{decoder}.adapter_1.weight"] = (256, dims[0], 1, 1)
    return shapes


def test_every_key_of_the_published_resnet_network_has_its_place(
    published_shapes: Shapes, network_state: dict[str, Tensor]
) -> None:
    net = Combo.from_preset("combo-r50-s4")
    net.load_state_dict(network_state, strict=True)
    ours = [combo_key(name) for name in published_shapes]
    silent = {name for name, key in zip(published_shapes, ours, strict=True) if key is None}
    assert {name.split(".")[0] for name in silent} == {"audio_backbone", "criterion"}
    assert len({key for key in ours if key}) == len(published_shapes) - len(silent)


def test_every_key_of_the_published_pvt_network_has_its_place(published_shapes: Shapes) -> None:
    shapes = published_pvt_combo(published_shapes)
    network, vggish = published_combo(empty(shapes))
    with torch.device("meta"):
        net = Combo.from_preset("combo-pvt-s4")
    net.load_state_dict(network, strict=True, assign=True)
    counted = sum(value.numel() for value in network.values())
    assert counted == sum(p.numel() for p in net.parameters()) == 201_366_019
    assert len(vggish) == 18


def test_the_sound_encoder_is_returned_apart(published_shapes: Shapes) -> None:
    _, vggish = published_combo(empty(published_shapes))
    assert sum(value.numel() for value in vggish.values()) == 72_141_184
    assert {name.split(".")[0] for name in vggish} == {"features", "embeddings"}


def test_classes_and_siam_encoder_are_read_from_the_checkpoint(published_shapes: Shapes) -> None:
    shapes = {n: s for n, s in published_shapes.items() if not n.startswith("pre_sam_backbone.")}
    for name in ("weight", "bias"):
        key = f"sem_seg_head.predictor.class_embed.{name}"
        shapes[key] = (72, *shapes[key][1:])
    network, _ = published_combo({"model": empty(shapes), "iteration": 1})
    assert network["mask_decoder.class_embed.weight"].shape == (72, 256)
    with torch.device("meta"):
        net = Combo.from_preset("combo-r50-avss", sem="shared")
    net.load_state_dict(network, strict=True, assign=True)


def test_a_key_too_many_is_named(published_shapes: Shapes) -> None:
    state = empty({**published_shapes, "sem_seg_head.predictor.extra.weight": (3,)})
    with pytest.raises(StateDictError, match=r"sem_seg_head\.predictor\.extra\.weight"):
        published_combo(state)


def test_a_missing_key_is_named(published_shapes: Shapes) -> None:
    state = empty(published_shapes)
    del state["backbone.res4.2.conv1.norm.running_var"]
    with pytest.raises(StateDictError, match=r"layer3\.2\.conv1\.norm\.running_var"):
        published_combo(state)


def test_a_key_of_another_shape_is_named(published_shapes: Shapes) -> None:
    shapes = {**published_shapes, "sem_seg_head.fusion_module.audio_pos.weight": (1, 256)}
    with pytest.raises(StateDictError, match=r"fusion_module\.audio_pos\.weight.*256.*128"):
        published_combo(empty(shapes))


def test_something_else_is_no_combo_checkpoint() -> None:
    with pytest.raises(StateDictError, match="no COMBO checkpoint"):
        published_combo({"conv1.weight": torch.zeros(1)})


# --- backbones -----------------------------------------------------------------------------------


def seeded(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.1
            value.uniform_(low, 0.6 if low > 0 else 0.1, generator=generator)
    return net.eval()


def to_detectron2(key: str) -> str:
    """How the public converter renames torchvision's keys."""
    if not key.startswith("layer"):
        key = f"stem.{key}"
    for number in (1, 2, 3, 4):
        key = key.replace(f"layer{number}", f"res{number + 1}")
    for number in (1, 2, 3):
        key = key.replace(f"bn{number}", f"conv{number}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("kind", ["torchvision", "timm", "detectron2"])
def test_a_resnet_from_anywhere_computes_the_same_features(kind: str) -> None:
    published = seeded(torchvision.models.resnet50())
    state = published.state_dict()
    if kind == "detectron2":
        state = {to_detectron2(name): value for name, value in state.items()}
    backbone = Backbone("resnet50").eval()
    backbone.load_state_dict(backbone_state(state, kind, backbone))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        x = published.maxpool(published.relu(published.bn1(published.conv1(image))))
        for stage, ours in enumerate(backbone(image), 1):
            x = published.get_submodule(f"layer{stage}")(x)
            torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "pvt_v2_b0", "swin_s3_tiny_224", "resnet10t", "resnet26d"]
)
def test_whole_networks_of_timm_lose_their_classifier_only(name: str) -> None:
    whole = seeded(timm.create_model(name))
    backbone = Backbone(name).eval()
    backbone.load_state_dict(backbone_state(whole.state_dict(), "timm", backbone))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        last = whole.forward_intermediates(image, norm=False, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(image)[-1], last, rtol=1e-3, atol=1e-4)


def test_the_public_pvt_weights_fit() -> None:
    state = empty({**published_pvt(""), "head.weight": (1000, 512), "head.bias": (1000,)})
    with torch.device("meta"):
        backbone = Backbone("pvt_v2_b5")
    assert len(backbone_state(state, "detectron2", backbone)) == len(state) - 2


@pytest.mark.parametrize(
    "kinds",
    [
        ("weight", "bias", "running_mean", "running_var"),
        ("gamma", "beta", "moving_mean", "moving_variance"),
    ],
    ids=["by PyTorch's words", "by others"],
)
def test_a_norms_four_tensors_are_not_taken_for_each_other(kinds: tuple[str, ...]) -> None:
    """They have one shape. Sorted by name, as safetensors does, a bias stands before its weight."""
    state = seeded(torchvision.models.resnet18()).state_dict()
    backbone, layers = Backbone("resnet18"), list[str]()
    words = dict(zip(("weight", "bias", "running_mean", "running_var"), kinds, strict=True))
    other: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        layers += [layer] if layer not in layers else []
        if kind in words:
            other[f"layers.{layers.index(layer)}.{words[kind]}"] = value
    expected = backbone_state(state, "torchvision", backbone)
    found = backbone_state_in_order(other, backbone)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())

    with pytest.raises(StateDictError, match="its names are sorted"):
        backbone_state_in_order(dict(sorted(other.items())), backbone)
    turned = {f"layers.1.{kinds[0]}": f"layers.1.{kinds[1]}"}
    turned |= {new: old for old, new in turned.items()}
    with pytest.raises(StateDictError, match=f"layers.1.{kinds[1]} stands at the place of"):
        backbone_state_in_order({turned.get(k, k): v for k, v in other.items()}, backbone)


def test_weights_of_another_network_are_refused_by_name() -> None:
    state = torchvision.models.resnet18().state_dict()
    with pytest.raises(StateDictError, match=r"layer1\.0\.conv3\.weight|layer1\.0\.conv"):
        backbone_state(state, "torchvision", Backbone("resnet50"))
