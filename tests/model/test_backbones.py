"""Encoders through timm: four levels whatever the name, and frozen norms that stay frozen."""

import re

import pytest
import torch
from torch import Tensor, nn

from combo.model.backbones import Backbone, FrozenNormConv2d
from combo.model.state_dicts import backbone_state


@pytest.mark.parametrize(
    "name",
    ["resnet18", "pvt_v2_b0", "convnext_atto", "test_convnext2", "swin_s3_tiny_224", "resnet10t"],
)
def test_any_network_of_timm_gives_four_levels(name: str) -> None:
    size = 224 if "swin" in name else 64
    backbone = Backbone(name, size).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(1, 3, size, size))
    assert [feature.shape[1] for feature in features] == backbone.channels
    assert [feature.shape[2] for feature in features] == [size // s for s in (4, 8, 16, 32)]


def test_a_network_with_a_fixed_grid_takes_the_size_in_the_settings() -> None:
    backbone = Backbone("swin_s3_tiny_224", 128).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(1, 3, 128, 128))
    assert features[0].shape[2:] == (32, 32)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet51"])
def test_a_network_without_the_four_strides_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Backbone(name)


def shifted_statistics(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for buffer in (module.running_mean, module.running_var, module.weight, module.bias):
                buffer.data.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("size", [9, 3])  # more, and fewer, pixels in a map than weights a channel
def test_a_frozen_norm_in_its_convolution_is_the_same_function(size: int) -> None:
    conv, norm = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-3)
    shifted_statistics(norm)
    x = torch.randn(2, 4, size, size, requires_grad=True)
    merged = FrozenNormConv2d(conv, norm)
    ours, expected = merged(x), norm.eval()(conv(x))
    torch.testing.assert_close(ours, expected)
    of_ours = torch.autograd.grad(ours.square().sum(), [x, merged.weight])
    of_expected = torch.autograd.grad(expected.square().sum(), [x, conv.weight])
    torch.testing.assert_close(of_ours, of_expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "starnet_s050"])
def test_training_leaves_every_batch_norm_as_it_is(name: str) -> None:
    backbone = Backbone(name, 64).train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trained = backbone(x)
        evaluated = backbone.eval()(x)
    for one, two in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(one, two)
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], msg=key)
    assert not any("norm" in name for name, _ in backbone.named_parameters() if "conv" in name)


def test_stochastic_depth_grows_to_the_last_block() -> None:
    with torch.device("meta"):
        backbone = Backbone("pvt_v2_b5", drop_path=0.1)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert len(rates) == 2 * 51
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)


def test_norms_of_pvt_have_the_published_epsilons() -> None:
    with torch.device("meta"):
        backbone = Backbone("pvt_v2_b5")
    for name, module in backbone.body.named_modules():
        if isinstance(module, nn.LayerNorm):
            embedding = "patch_embed" in name or "downsample" in name or "attn" in name
            assert module.eps == (1e-5 if embedding else 1e-6), name


def test_a_shape_of_resnet_50_is_the_published_one() -> None:
    with torch.device("meta"):
        backbone = Backbone("resnet50")
    assert sum(p.numel() for p in backbone.parameters()) == 23_454_912
    # The stride sits in the 3x3 convolution of the bottleneck.
    assert backbone.body.get_submodule("layer2.0.conv2").stride == (2, 2)
    assert backbone.body.get_submodule("layer2.0.conv1").stride == (1, 1)


def published_pvt_features(
    state: dict[str, Tensor], image: Tensor, depths: list[int], heads: list[int], ratios: list[int]
) -> list[Tensor]:
    """PVT v2 as its paper and the public code describe it, from a state with published names."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = weights(name)
        return x @ weight.T + bias

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = weights(name)
        deviation, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) / (deviation.square() + eps).sqrt() * weight + bias

    def conv(name: str, maps: Tensor, stride: int, padding: int, groups: int = 1) -> Tensor:
        return nn.functional.conv2d(maps, *weights(name), stride, padding, groups=groups)

    def rows(maps: Tensor) -> Tensor:
        return maps.flatten(2).transpose(1, 2)

    features, x = [], image
    for stage, (depth, count, ratio) in enumerate(zip(depths, heads, ratios, strict=True), 1):
        first = stage == 1
        patches = f"patch_embed{stage}"
        x = conv(f"{patches}.proj", x, 4 if first else 2, 3 if first else 1)
        h, w = x.shape[2:]
        tokens = norm(f"{patches}.norm", rows(x), 1e-5)
        for number in range(depth):
            block = f"block{stage}.{number}"
            inner = norm(f"{block}.norm1", tokens, 1e-6)
            seen = inner
            if ratio > 1:
                maps = inner.transpose(1, 2).unflatten(2, (h, w))
                seen = norm(
                    f"{block}.attn.norm", rows(conv(f"{block}.attn.sr", maps, ratio, 0)), 1e-5
                )
            k, v = linear(f"{block}.attn.kv", seen).chunk(2, dim=2)
            q, k, v = (
                t.unflatten(2, (count, -1)).transpose(1, 2)
                for t in (linear(f"{block}.attn.q", inner), k, v)
            )
            attended = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3) @ v
            tokens = tokens + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
            inner = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens, 1e-6))
            maps = inner.transpose(1, 2).unflatten(2, (h, w))
            maps = conv(f"{block}.mlp.dwconv.dwconv", maps, 1, 1, groups=maps.shape[1])
            inner = rows(maps)
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            tokens = tokens + linear(f"{block}.mlp.fc2", inner)
        tokens = norm(f"norm{stage}", tokens, 1e-6)
        x = tokens.transpose(1, 2).unflatten(2, (h, w))
        features.append(x)
    return features


def test_pvt_computes_what_its_description_says() -> None:
    """Through the published names; the tiny values show the epsilons, the odd size the padding."""
    backbone = Backbone("pvt_v2_b1").double().eval()
    published: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, value in backbone.body.state_dict().items():
        name = re.sub(r"^patch_embed\.", "patch_embed1.", name)
        name = re.sub(
            r"^stages_(\d)\.(downsample|blocks|norm)\.",
            lambda found: (
                {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}[found[2]]
                + f"{int(found[1]) + 1}."
            ),
            name,
        )
        name = name.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv.")
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        fan = value[0].numel() if value.dim() > 1 else 1e4
        published[name] = drawn * fan**-0.5
        if value.dim() == 1 and name.endswith("weight"):
            published[name] += 0.02
    backbone.load_state_dict(backbone_state(published, "detectron2", backbone))
    image = torch.randn(1, 3, 96, 64, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ours = backbone(image)
    theirs = published_pvt_features(published, image, [2] * 4, [1, 2, 5, 8], [8, 4, 2, 1])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
