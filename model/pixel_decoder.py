"""Pixel decoder: multi-scale deformable attention over strides 32, 16, 8, joined at stride 4.

The decoder of Mask2Former (Cheng et al., section 3.3), which the paper takes as it is. Under
autocast its convolutions and linear layers are in half precision (the public code leaves it all in
float32); what they add up to, sampling points, softmax and norms are in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_attention import DeformableAttention
from .levels import Levels, Shapes
from .positions import pixel_centres

NORM_GROUPS = 32
LEVELS = 3


def _uniform(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _xavier(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class DeformableLayer(nn.Module):
    """Deformable self-attention and feed-forward, each followed by its norm."""

    def __init__(self, width: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, LEVELS, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm2 = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor, positions: Tensor, centres: Tensor, levels: Levels) -> Tensor:
        """x: [F, S, C]; positions: [S, C]; centres: [1, S, levels, 2]. Returns [F, S, C]."""
        x = self.norm1(x + self.self_attn(x + positions, centres, x, levels))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


@dataclass(frozen=True)
class Pyramid:
    """What the decoder must know of the sizes of its three coarser maps, made once a forward."""

    levels: Levels
    centres: Tensor
    """[1, S, levels, 2] float32: every pixel's own place as (x, y) in 0..1, for each level to look
    from."""
    positions: list[Tensor]
    """Of each map, coarse to fine, [H * W, C] float32."""


torch.export.register_dataclass(Pyramid)


class PixelDecoder(nn.Module):
    """Features of four levels -> pixel embeddings P_1 and the three coarser maps."""

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        heads: int = 8,
        layers: int = 6,
        ffn: int = 1024,
        points: int = 4,
    ) -> None:
        """channels: of the four maps, finest first. Raises ValueError unless 32 divides width."""
        super().__init__()
        if width % NORM_GROUPS:
            raise ValueError(f"width {width} is not a multiple of {NORM_GROUPS} norm groups")
        self.heads, self.points = heads, points
        fine, *coarse = channels
        self.input_proj = nn.ModuleList(
            nn.Sequential(_xavier(nn.Conv2d(c, width, 1)), nn.GroupNorm(NORM_GROUPS, width))
            for c in reversed(coarse)
        )
        # A bare parameter, not an embedding: weight decay applies to it (public code).
        self.level_embed = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(
            DeformableLayer(width, heads, points, ffn) for _ in range(layers)
        )
        self.lateral = nn.Sequential(
            _uniform(nn.Conv2d(fine, width, 1, bias=False)), nn.GroupNorm(NORM_GROUPS, width)
        )
        self.joined = nn.Sequential(
            _uniform(nn.Conv2d(width, width, 3, padding=1, bias=False)),
            nn.GroupNorm(NORM_GROUPS, width),
            nn.ReLU(),
        )
        self.mask_features = _uniform(nn.Conv2d(width, width, 1))

    def pyramid(self, shapes: Shapes, positions: list[Tensor]) -> Pyramid:
        """shapes: (H, W) of the three coarser maps, coarse to fine; positions: of their pixels."""
        device = positions[0].device
        centres = pixel_centres(shapes, device)[None, :, None, :].expand(-1, -1, LEVELS, -1)
        return Pyramid(Levels.of(shapes, self.heads, self.points, device), centres, positions)

    def forward(self, features: Sequence[Tensor], pyramid: Pyramid) -> tuple[Tensor, list[Tensor]]:
        """features: four maps [F, C_i, H_i, W_i], finest first; pyramid: of the coarser three.

        Returns P_1 [F, C, H / 4, W / 4], half precision under autocast, and the encoded maps at
        strides 32, 16, 8, which are float32 at least.
        """
        fine, *coarse = features
        shapes = pyramid.levels.shapes
        maps = [
            proj(feature) for proj, feature in zip(self.input_proj, reversed(coarse), strict=True)
        ]
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        places = torch.cat(
            [p + level for p, level in zip(pyramid.positions, self.level_embed, strict=True)]
        )
        centres = pyramid.centres.to(x.dtype)
        for layer in self.layers:
            x = layer(x, places, centres, pyramid.levels)
        encoded = [
            level.transpose(1, 2).unflatten(2, shape)
            for level, shape in zip(x.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        fine = self.lateral(fine)
        size = (fine.shape[2], fine.shape[3])
        up = F.interpolate(encoded[-1], size=size, mode="bilinear", align_corners=False)
        return self.mask_features(self.joined(fine + up)), encoded
