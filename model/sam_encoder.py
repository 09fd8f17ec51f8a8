"""SAM's image encoder (the package's `ImageEncoderViT`) with attention maps of bounded size.

The package makes the attention maps of all heads at once, with several copies: 0.8 GB each in the
four global blocks of ViT-B. A few heads at a time, with the relative positions added in place, give
the same numbers, bit by bit on a CPU, in a fraction of the memory.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT

CPU_MAPS = 1 << 26
GPU_MAPS = 1 << 30
"""Bytes of attention maps that are made at once."""


def encode_images(encoder: "ImageEncoderViT", images: Tensor) -> Tensor:
    """[B, 3, S, S] normalised and padded, S the encoder's size -> [B, C, S / 16, S / 16]."""
    from segment_anything.modeling.image_encoder import window_partition, window_unpartition

    x: Tensor = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    blocks: Any = encoder.blocks
    for block in blocks:
        seen = block.norm1(x)
        if block.window_size > 0:
            size = (int(x.shape[1]), int(x.shape[2]))
            windows, padded = window_partition(seen, block.window_size)
            windows = _attend(block.attn, windows)
            seen = window_unpartition(windows, block.window_size, padded, size)
        else:
            seen = _attend(block.attn, seen)
        x = x + seen
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _attend(attention: Any, x: Tensor) -> Tensor:
    """The block's self-attention over [B, H, W, C], a few heads at a time."""
    batch, height, width, _ = x.shape
    tokens, heads = height * width, attention.num_heads
    qkv = attention.qkv(x).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * heads, tokens, -1).unbind(0)
    budget = CPU_MAPS if x.device.type == "cpu" else GPU_MAPS
    at_once = max(1, budget // (4 * tokens * tokens))
    heard: list[Tensor] = []
    for some in zip(q.split(at_once), k.split(at_once), v.split(at_once), strict=True):
        asking, keys, values = some
        logits = (asking * attention.scale) @ keys.mT
        if attention.use_rel_pos:
            _add_relative_positions(attention, logits, asking, (height, width))
        heard.append(logits.softmax(dim=-1).to(values.dtype) @ values)
    out = torch.cat(heard).view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
    return attention.proj(out.reshape(batch, height, width, -1))


def _add_relative_positions(
    attention: Any, logits: Tensor, asking: Tensor, size: tuple[int, int]
) -> None:
    """Adds to logits [N, H * W, H * W], in place, what queries [N, H * W, d] make of the distance
    in rows and of the distance in columns (decomposed relative positions, MViTv2 section 4.1)."""
    from segment_anything.modeling.image_encoder import get_rel_pos

    height, width = size
    queries = asking.unflatten(1, size)
    rows = get_rel_pos(height, height, attention.rel_pos_h)
    columns = get_rel_pos(width, width, attention.rel_pos_w)
    of_pixels = logits.view(-1, height, width, height, width)
    of_pixels += torch.einsum("nhwc,hkc->nhwk", queries, rows)[..., :, None]
    of_pixels += torch.einsum("nhwc,wkc->nhwk", queries, columns)[..., None, :]
