"""Masked-attention transformer decoder: queries, with the sound in them, become classes and masks.

Mask2Former's decoder (Cheng et al., section 3.2) with the paper's audio queries (section 3.2).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import Queries

LEVELS = 3


def for_products(parameter: Tensor) -> Tensor:
    """A parameter as autocast makes it for a product: once, where products are of parts of it,
    each of which autocast would take for another."""
    kind = parameter.device.type
    if not torch.is_autocast_enabled(kind):
        return parameter
    return parameter.to(torch.get_autocast_dtype(kind))


class Attention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention`, batch first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, open_to: Tensor | None) -> Tensor:
        """query: [F, Q, C]; key, value: [F, K, C]; open_to: [F, Q, K] bool, or None for all."""
        weights, biases = (
            for_products(each).chunk(3) for each in (self.in_proj_weight, self.in_proj_bias)
        )
        q, k, v = (
            F.linear(x, weight, bias).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if open_to is None else open_to[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked cross-attention to the pixels, self-attention, feed-forward; norms afterwards."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.cross_attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.ffn_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self, x: Tensor, place: Tensor, key: Tensor, value: Tensor, open_to: Tensor
    ) -> Tensor:
        """x, place: [F, Q, C]; key, value: [F, K, C]; open_to: [F, Q, K] bool."""
        x = self.cross_norm(x + self.cross_attention(x + place, key, value, open_to))
        placed = x + place
        x = self.self_norm(x + self.self_attention(placed, placed, x, None))
        return self.ffn_norm(
            x + self.linear2(F.relu(self.linear1(x), inplace=not torch.is_grad_enabled()))
        )


class MaskEmbedding(nn.Module):
    """Three linear layers from a query to the vector its mask is a product with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        first, second, third = self.layers
        return third(second(first(x).relu()).relu())


class OpenKeys(nn.Module):
    """Which keys a query may look at: those its last mask holds, or all if that is none.

    A module of its own, so that a hook can see the masks.
    """

    def forward(self, mask_logits: Tensor) -> Tensor:
        """mask_logits: [F, Q, K], at the size of the keys' map. Returns the same shape, bool."""
        within = mask_logits >= 0
        return within | ~within.any(dim=2, keepdim=True)


class MaskDecoder(nn.Module):
    """Learned queries with the sound, refined against three maps in turn, predicting each time.

    A mask is a product of pixels, and resizing it a mean of them: the masks that close keys are
    products of pixels that were resized once, and only what is learned from is made at full size,
    of all layers together.
    """

    def __init__(
        self, width: int, heads: int, ffn: int, layers: int, queries: int, classes: int,
        mode: Queries,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mode: Queries = mode
        self.query_feat = nn.Embedding(queries, width) if mode != "all" else None
        self.query_embed = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, ffn) for _ in range(layers))
        self.open_keys = OpenKeys()
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes + 1)
        self.mask_embed = MaskEmbedding(width)

    def forward(
        self,
        maps: Sequence[Tensor],
        positions: Sequence[Tensor],
        pixels: Tensor,
        size: tuple[int, int],
        sound: Tensor | None,
        every: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """maps: P_4, P_3, P_2, [F, C, H_i, W_i], coarse to fine; positions: theirs, [H_i * W_i, C].

        pixels: the fused P_1 as rows [F, H * W, C], size: its (H, W).
        sound: [F, Q, C], the sound of each query; None without audio queries.
        Returns class logits [F, L, Q, K + 1] and mask logits [F, L, Q, H, W], before the first
        layer and after each one; every: False for those of the last alone.
        """
        values = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(maps, self.level_embed.weight, strict=True)
        ]
        keys = [value + position for value, position in zip(values, positions, strict=True)]
        shapes = [(level.shape[2], level.shape[3]) for level in maps]

        if self.query_feat is None:
            if sound is None:
                raise ValueError("queries made of sound alone need the sound")
            x = sound
        else:
            learned = self.query_feat.weight.expand(pixels.shape[0], -1, -1)
            x = learned if sound is None else learned + sound
        # As large as what it is added to: its gradient is then summed over frames once.
        place = self.query_embed.weight.expand(pixels.shape[0], -1, -1)

        if torch.is_autocast_enabled(pixels.device.type):
            # Once, not in each product.
            pixels = pixels.to(torch.get_autocast_dtype(pixels.device.type))
        columns = pixels.transpose(1, 2)
        whole = columns.detach().unflatten(2, size)
        resized = [
            F.interpolate(whole, size=shape, mode="bilinear", align_corners=False).flatten(2)
            for shape in shapes
        ]
        queries = [x]
        for i, layer in enumerate(self.layers):
            level = i % LEVELS
            # Detached, and not without gradients, in which autocast would keep weights that have
            # none for what follows.
            embedded = self.mask_embed(self.decoder_norm(x.detach()))
            open_to = self.open_keys((embedded @ resized[level]).detach())
            x = layer(x, place, keys[level], values[level], open_to)
            queries.append(x)
        x = self.decoder_norm(torch.stack(queries if every else queries[-1:], dim=1))
        masks = self.mask_embed(x).flatten(1, 2) @ columns
        return self.class_embed(x), masks.unflatten(2, size).unflatten(1, x.shape[1:3])
