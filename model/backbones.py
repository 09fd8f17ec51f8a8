"""Image encoders through timm: features at strides 4, 8, 16 and 32 (paper, section 4.2).

Batch norm is frozen as in the public code: with two frames a step its statistics would be noise.
Where a convolution stands directly before it, as everywhere in a ResNet, the two are one module,
which scales the weights or the map, whichever has fewer numbers: the same function.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class FrozenNorm(nn.Module):
    """Statistics and affine values of a batch norm that is never trained: buffers only.

    norm(x) = x * scale + shift, which are worked out when the others are loaded, not every time,
    and are one tensor, which half precision converts at once.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    affine: Tensor
    """scale and shift, [2, C]."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.register_buffer("affine", None, persistent=False)
        self._settle()

    def _settle(self) -> None:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        self.affine = torch.stack([scale, self.bias - self.running_mean * scale])

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._settle()


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return numbers[0], numbers[1]


class FrozenNormConv2d(nn.Conv2d):
    """A convolution without bias, followed by its frozen norm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Raises ValueError for padding given by name, which `_frozen` leaves alone."""
        if isinstance(conv.padding, str):
            raise ValueError(f"padding {conv.padding!r}")
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            kernel_size=_pair(conv.kernel_size),
            stride=_pair(conv.stride),
            padding=_pair(conv.padding),
            dilation=_pair(conv.dilation),
            groups=conv.groups,
            bias=False,
        )
        self.weight = conv.weight
        self.norm = FrozenNorm(norm)

    def forward(self, input: Tensor) -> Tensor:
        pixels = input.numel() // self.in_channels // (self.stride[0] * self.stride[1])
        if pixels < self.weight[0].numel():
            # Scaled weights would be kept for the backward direction: 0.2 GB of two ResNet-50.
            out = super().forward(input)
            scale, shift = self.norm.affine.to(out.dtype)[:, :, None, None].unbind()
            return out.mul_(scale).add_(shift)  # the gradient of addcmul is three products
        scale, shift = self.norm.affine.unbind()
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(input, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def _frozen(conv: nn.Module | None, norm: nn.Module | None) -> FrozenNormConv2d | None:
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return None
    plain = (
        conv.bias is None and conv.padding_mode == "zeros" and conv.padding not in ("same", "valid")
    )
    return FrozenNormConv2d(conv, norm) if plain else None


def freeze_norms(body: nn.Module) -> nn.Module:
    """Freezes every batch norm of a timm network in place; returns it.

    Pairs named convN / bnN and (conv, norm) ends of a `downsample` are merged, and the norm's
    place taken by the identity; every other batch norm becomes timm's frozen one.
    """
    for block in list(body.modules()):
        for name, conv in list(block.named_children()):
            norm_name = name.replace("conv", "bn")
            if name.startswith("conv") and norm_name in dict(block.named_children()):
                merged = _frozen(conv, block.get_submodule(norm_name))
                if merged is not None:
                    setattr(block, name, merged)
                    setattr(block, norm_name, nn.Identity())
            if name == "downsample" and isinstance(conv, nn.Sequential) and len(conv) >= 2:
                merged = _frozen(conv[-2], conv[-1])
                if merged is not None:
                    conv[-2], conv[-1] = merged, nn.Identity()
    return freeze_batch_norm_2d(body)


class Backbone(nn.Module):
    """A timm network whose four feature maps are [N, C_i, H / s, W / s] for s = 4, 8, 16, 32."""

    def __init__(
        self, name: str, image_size: int = 224, drop_path: float = 0.0, pretrained: bool = False
    ) -> None:
        """image_size: pixels, for networks with a fixed grid (Swin, ...); others take any.

        pretrained: timm fetches its own weights, and raises what it raises when it cannot.
        Raises ValueError for a name unknown to timm or without those four strides.
        """
        super().__init__()
        self.name = name
        if not timm.is_model(name):
            raise ValueError(f"timm has no network named {name!r}")
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        published = timm.get_pretrained_cfg(name)
        if published is not None and published.fixed_input_size:
            options["img_size"] = image_size
        body = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        info: Any = body.feature_info
        strides: list[int] = list(info.reduction())
        missing = [stride for stride in STRIDES if stride not in strides]
        if missing:
            raise ValueError(f"{name} has features at strides {strides}, none at {missing}")
        # The last map of a stride is the most finished one.
        self.picks = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        self.channels: list[int] = [info.channels()[pick] for pick in self.picks]
        layout: Any = getattr(body, "output_fmt", "NCHW")
        self.channels_last = getattr(layout, "value", layout) == "NHWC"
        self.body = freeze_norms(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: [N, 3, H, W] normalised. Returns the four maps, finest first."""
        features = self.body(images)
        picked = [features[pick] for pick in self.picks]
        if self.channels_last:
            picked = [feature.permute(0, 3, 1, 2) for feature in picked]
        return picked
