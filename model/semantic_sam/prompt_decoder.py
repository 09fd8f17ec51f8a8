"""Prompt decoder of Semantic-SAM: points and granularities become queries, queries become masks
(Semantic-SAM, section 3; MaskDINO's decoder).

A point makes six queries, one for each granularity. In the published inference path all queries of
a batch attend to each other, so a point's masks depend on the other points of its batch.

Two things are computed once instead of once a batch or a layer, without changing any result: the
values of the cross-attention depend on the image alone, and the last layer and the heads run for
the granularities that somebody asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deformable_attention import DeformableAttention
from ..levels import Levels
from .pixel_decoder import HEADS, HIDDEN, LEVELS, POINTS, WIDTH

TOKENS = 6
"""Granularity tokens, and so queries, of one point."""


class Mlp(nn.Module):
    """Linear layers with a ReLU between them; `layers` is the published name."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the image, then each goes through an MLP; post-norm.

    The checkpoints number the norms against that order: `norm2` belongs to the self-attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.cross_attn = DeformableAttention(WIDTH, HEADS, LEVELS, POINTS)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(
        self,
        content: Tensor,
        positions: Tensor,
        boxes: Tensor,
        values: Tensor,
        sizes: Levels,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """content, positions: [N, Q, 256]; boxes: [N, Q, 4] in 0..1; values: projected memory.

        wanted: indices of the queries to go on with; all take part in the self-attention.
        Returns [N, Q or len(wanted), 256].
        """
        placed, everything = content + positions, content
        asking = placed
        if wanted is not None:
            asking, content = placed[:, wanted], content[:, wanted]
            positions, boxes = positions[:, wanted], boxes[:, wanted]
        seen, _ = self.self_attn(asking, placed, everything, need_weights=False)
        content = self.norm2(content + seen)
        reference = boxes[:, :, None].expand(-1, -1, LEVELS, -1)
        seen = self.cross_attn(content + positions, reference, values, sizes)
        content = self.norm1(content + seen)
        return self.norm3(content + self.linear2(F.relu(self.linear1(content))))


class Decoder(nn.Module):
    """The layers and the two small networks that read and move the queries' boxes."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(layers))
        self.ref_point_head = Mlp(2 * WIDTH, WIDTH, WIDTH)
        # One network serves all layers; the checkpoints store it once for each of them.
        self.bbox_embed = nn.ModuleList([Mlp(WIDTH, WIDTH, WIDTH, 4)])

    def forward(
        self, content: Tensor, boxes: Tensor, memory: "Memory", wanted: Tensor | None
    ) -> Tensor:
        """content: [N, Q, 256]; boxes: [N, Q, 4] in 0..1.  Returns [N, Q or len(wanted), 256]."""
        *inner, last = zip(self.layers, memory.values, strict=True)
        for layer, values in inner:
            positions = self.ref_point_head(box_embedding(boxes))
            content = layer(content, positions, boxes, values, memory.sizes)
            boxes = (self.bbox_embed[0](content) + inverse_sigmoid(boxes)).sigmoid()
        layer, values = last
        positions = self.ref_point_head(box_embedding(boxes))
        return layer(content, positions, boxes, values, memory.sizes, wanted)


@dataclass(frozen=True)
class Memory:
    """What the decoder reads of an image: each layer's projected values [N, S, heads, d], the
    levels one after another, and the levels, coarsest first."""

    values: list[Tensor]
    sizes: Levels


class PromptDecoder(nn.Module):
    """Prompt boxes -> queries that know their masks and how good these are."""

    def __init__(self, layers: int = 9) -> None:
        super().__init__()
        self.mask_embed = Mlp(WIDTH, WIDTH, WIDTH, WIDTH)
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.decoder = Decoder(layers)
        self.iou_prediction_head = Mlp(WIDTH, WIDTH, WIDTH, 1)
        self.mask_tokens = nn.Embedding(TOKENS, WIDTH)
        self.pb_embedding = nn.Embedding(2, WIDTH)
        self.label_enc = nn.Embedding(2, WIDTH)

    def remember(self, maps: Sequence[Tensor]) -> Memory:
        """The pixel decoder's maps [N, 256, h, w], finest first -> the decoder's memory."""
        coarse_first = list(reversed(maps))
        shapes = [(int(level.shape[2]), int(level.shape[3])) for level in coarse_first]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in coarse_first], dim=1)
        layers = cast("list[DecoderLayer]", list(self.decoder.layers))
        return Memory(
            values=[layer.cross_attn.project_values(tokens) for layer in layers],
            sizes=Levels.of(shapes, HEADS, POINTS, tokens.device),
        )

    def forward(
        self, prompts: Tensor, memory: Memory, tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Decode a batch of points that see each other.

        prompts: [N, P, 4], (centre x, centre y, width, height) in 0..1 of the padded image.
        tokens: granularity tokens, 0..5, whose masks are wanted.
        Returns queries [N, P * len(tokens), 256], which `mask_embed` turns into mask embeddings,
        and predicted IoUs [N, P * len(tokens)], which may exceed 1; both point-major.
        """
        batch, points, _ = prompts.shape
        # Row 0 of both tables stands for "a click" (row 1 of `pb_embedding` for a box).
        content = self.label_enc.weight[0] + self.pb_embedding.weight[0] + self.mask_tokens.weight
        content = content.repeat(points, 1).expand(batch, -1, -1)
        boxes = inverse_sigmoid(prompts).sigmoid().repeat_interleave(TOKENS, dim=1)
        queries = self.decoder(content, boxes, memory, self._wanted(points, tokens, prompts.device))
        # The published decoder applies its final norm, and then the heads apply it again.
        queries = self.decoder_norm(self.decoder_norm(queries))
        return queries, self.iou_prediction_head(queries).squeeze(-1)

    @staticmethod
    def _wanted(points: int, tokens: Sequence[int], device: torch.device) -> Tensor:
        first = torch.arange(points, device=device) * TOKENS
        return (first[:, None] + torch.tensor(list(tokens), device=device)).flatten()


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 - x)) of x in 0..1, each part at least 1e-5."""
    x = x.clamp(0, 1)
    return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log()


def box_embedding(boxes: Tensor) -> Tensor:
    """Sine embedding of boxes [..., 4] (x, y, w, h) -> [..., 512], in the order y, x, w, h.

    Each number makes a quarter: sine and cosine in turn, at falling frequencies.
    """
    quarter = WIDTH // 2
    even = torch.arange(0, quarter, 2, dtype=boxes.dtype, device=boxes.device)
    x, y, w, h = (boxes * (2 * math.pi)).unbind(-1)
    angles = torch.stack([y, x, w, h], dim=-1)[..., None] / 10000 ** (even / quarter)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
