"""Pixel decoder of Semantic-SAM: a deformable-attention encoder over four scales of the backbone
(Deformable DETR's encoder, as in MaskDINO) and the stride-4 features that masks are read from.

Sub-modules carry the published names, hence `adapter_1`, `layer_1` and `transformer.encoder`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deformable_attention import DeformableAttention
from ..levels import Levels
from ..positions import pixel_centres, sine_positions
from .parts import parts

WIDTH = 256
HEADS = 8
HIDDEN = 2048
GROUPS = 32
LEVELS = 4
POINTS = 4
SAMPLED = 6 * HEADS * LEVELS * POINTS * 4
"""Numbers that deformable attention makes of a token: about six for each corner of each point."""

MOST_PARTS = 16


class ConvNorm(nn.Conv2d):
    """Convolution without bias and a group norm, which the checkpoints keep as its `norm`."""

    def __init__(self, channels_in: int, kernel: int) -> None:
        super().__init__(channels_in, WIDTH, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward network; post-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(WIDTH, HEADS, LEVELS, POINTS)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor, sizes: Levels) -> Tensor:
        """x: [B, S, C], all levels' tokens; positions: [1, S, C]; reference: [1, S, levels, 2]."""
        values = self.self_attn.project_values(x)
        out = torch.empty_like(x)
        # Every part borders the values anew, so there must not be many of them.
        few = x.shape[1] // MOST_PARTS + 1
        for part in parts(x[0], SAMPLED * len(x), fewest=few):
            tokens = x[:, part]
            asking = tokens + positions[:, part]
            seen = self.norm1(tokens + self.self_attn(asking, reference[:, part], values, sizes))
            hidden = F.relu(self.linear1(seen), inplace=True)
            out[:, part] = self.norm2(seen + self.linear2(hidden))
        return out


class DeformableEncoder(nn.Module):
    """The layers under the name that the checkpoints give them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(layers))


class MultiScaleTransformer(nn.Module):
    """Lets the tokens of all levels look at each other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(LEVELS, WIDTH))
        self.encoder = DeformableEncoder(layers)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, 256, h, w] of any sizes, finest first -> maps of the same shapes."""
        shapes = [(int(level.shape[2]), int(level.shape[3])) for level in maps]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        positions = torch.cat(
            [
                of_level + self.level_embed[i]
                for i, of_level in enumerate(sine_positions(shapes, WIDTH, x.device))
            ]
        )[None]
        reference = pixel_centres(shapes, x.device)[None, :, None].expand(-1, -1, LEVELS, -1)
        sizes = Levels.of(shapes, HEADS, POINTS, x.device)
        for layer in self.encoder.layers:
            x = layer(x, positions, reference, sizes)
        levels = x.split([h * w for h, w in shapes], dim=1)
        return [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(levels, shapes, strict=True)
        ]


class PixelDecoder(nn.Module):
    """res2..res5 -> mask features at stride 4 and four maps at strides 8, 16, 32 and 64."""

    def __init__(self, channels: tuple[int, int, int, int], layers: int = 6) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(c, WIDTH, kernel_size=1) for c in channels[1:]]
        # The coarsest level is made of res5 itself, not of its projection.
        convolutions.append(nn.Conv2d(channels[3], WIDTH, kernel_size=3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(GROUPS, WIDTH)) for conv in convolutions
        )
        self.transformer = MultiScaleTransformer(layers)
        self.adapter_1 = ConvNorm(channels[0], kernel=1)
        self.layer_1 = ConvNorm(WIDTH, kernel=3)
        self.mask_features = nn.Conv2d(WIDTH, WIDTH, kernel_size=1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """features: res2, res3, res4, res5, each [B, C, h, w].

        Returns mask features [B, 256, h, w] at the size of res2, and the encoded maps
        [B, 256, h, w] at the sizes of res3, res4, res5 and half of res5.
        """
        res2, res3, res4, res5 = features
        maps = [
            project(level)
            for project, level in zip(self.input_proj, (res3, res4, res5, res5), strict=True)
        ]
        encoded = self.transformer(maps)
        finest = F.interpolate(
            encoded[0], size=res2.shape[-2:], mode="bilinear", align_corners=False
        )
        joined = self.layer_1(finest.add_(self.adapter_1(res2)))
        return self.mask_features(F.relu(joined, inplace=True)), encoded
