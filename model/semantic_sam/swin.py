"""Swin Transformer backbone of Semantic-SAM (Liu et al., Swin Transformer, sections 3.1 to 3.3).

timm has this network too, but fits its windows to small maps; the published masks come from
windows that never shrink. What does not depend on that (patch merging, MLP, the index of relative
positions) is timm's. Sub-modules carry the published names, so that checkpoints load as they are.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.models.swin_transformer import PatchMerging, get_relative_position_index
from torch import Tensor, nn

from .parts import parts


@dataclass(frozen=True)
class SwinSize:
    """Width of the first stage (doubled by each later one), blocks and heads of the four stages,
    and the window's side in tokens."""

    embed_dim: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of res2, res3, res4 and res5."""
        width = self.embed_dim
        return (width, 2 * width, 4 * width, 8 * width)


class PatchEmbed(nn.Module):
    """Image [B, 3, H, W] -> tokens [B, H / 4, W / 4, C] of 4 x 4 pixels each."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for every relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        index = get_relative_position_index(window, window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """x: [B, rows, columns, window * window, C], the windows of a map rolled by `shift`."""
        bias = self.relative_position_bias_table[self.relative_position_index].movedim(-1, 0)
        attended = torch.empty_like(x)
        for windows, mask in self._groups(shift, bias):
            seen = x[windows]
            flat = seen.flatten(0, 2)
            heard = torch.empty_like(flat)
            for part in parts(flat, 3 * flat.shape[1:].numel()):
                heard[part] = self._attend(flat[part], mask[None])
            attended[windows] = heard.view(seen.shape)
        return attended

    def _attend(self, windows: Tensor, mask: Tensor) -> Tensor:
        """windows: [N, window * window, C]; mask: [1, heads, window * window, window * window]."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        return self.proj(seen.transpose(1, 2).flatten(2))

    def _groups(self, shift: int, bias: Tensor) -> list[tuple[tuple[slice, slice, slice], Tensor]]:
        """Slices of the windows [B, rows, columns] that share one term added to the logits.

        Rolling the map brings tokens of opposite edges together in the last row and column of
        windows only, so four masks of one window each replace a mask for every window of the map.
        """
        everything, inner, last = slice(None), slice(None, -1), slice(-1, None)
        if shift == 0:
            return [((everything, everything, everything), bias)]
        side = torch.arange(self.window, device=bias.device) >= self.window - shift
        row = side[:, None].expand(-1, self.window).flatten()
        column = side[None, :].expand(self.window, -1).flatten()
        apart_row = (row[:, None] != row) * -100.0
        apart_column = (column[:, None] != column) * -100.0
        apart_both = ((row[:, None] != row) | (column[:, None] != column)) * -100.0
        return [
            ((everything, inner, inner), bias),
            ((everything, last, inner), bias + apart_row.to(bias.dtype)),
            ((everything, inner, last), bias + apart_column.to(bias.dtype)),
            ((everything, last, last), bias + apart_both.to(bias.dtype)),
        ]


class SwinBlock(nn.Module):
    """Windowed attention and MLP, both pre-norm and residual; [B, H, W, C] in and out."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        tokens = x.flatten(0, 2)  # a view: what is added to it is added to x
        for part in parts(tokens, 4 * tokens.shape[1]):
            tokens[part] += self.mlp(self.norm2(tokens[part]))
        return x

    def _attend(self, x: Tensor) -> Tensor:
        """The zeros that fill the last windows are tokens like others: attended to, unmasked."""
        height, width, side = x.shape[1], x.shape[2], self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3, 4)
        attended = self.attn(windows, self.shift).unflatten(3, (side, side))
        x = attended.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, heads, window, window // 2 * (i % 2)) for i in range(depth))
        )
        self.downsample = PatchMerging(dim) if merge else nn.Identity()


class Swin(nn.Module):
    """The four feature maps res2 to res5 of a batch of images."""

    def __init__(self, size: SwinSize) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(size.embed_dim)
        self.layers = nn.ModuleList(
            SwinStage(channels, depth, heads, size.window, merge=i < 3)
            for i, (channels, depth, heads) in enumerate(
                zip(size.channels, size.depths, size.heads, strict=True)
            )
        )
        for i, channels in enumerate(size.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W], H and W multiples of 4 -> res2..res5 [B, C, h, w] at
        strides 4, 8, 16 and 32. The norm of an output is not seen by the next stage."""
        x = self.patch_embed(images)
        outputs: list[Tensor] = []
        for i, stage in enumerate(cast("list[SwinStage]", list(self.layers))):
            x = stage.blocks(x)
            outputs.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            x = stage.downsample(x)
        return outputs
