"""SAM (the segment-anything package's `Sam`) as a network for `PointGrid`.

Prompt encoder, weights and the parts of the image encoder are the package's. Its mask decoder runs
the two-way transformer on a copy of the whole image embedding for every point; the same numbers
come cheaper:

- Before the first layer all points share one embedding, so what that layer projects from the
  image is computed once an image.
- A point has few tokens (T = 7) and the image many (S = 4096). Projecting the tokens into the
  image's space instead of the image into the tokens' space, q (x W)^T = (q W^T) x^T, halves the
  work of the other layers, as does summing values before they are projected.
- Predicted IoUs are known before the embedding is upscaled; only points with a mask that passes
  are upscaled, and only such masks are multiplied out.
- The transposed convolutions have kernel = stride, which is a linear layer for every pixel; with
  the channels last nothing large is ever permuted.

Everything else (sums in another order aside) is as in the package.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .point_prompts import Upsampling
from .sam_encoder import encode_images

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

MASKS = 3
"""Masks of one point; the decoder's first mask is for unambiguous prompts and left out."""


class SamPoints:
    """Adapter from a `Sam` to what `PointGrid` asks of a network."""

    def __init__(self, sam: "Sam") -> None:
        self.sam = sam
        self._encode_images = encode_images
        self._decoder = PointDecoder(sam.mask_decoder)

    @property
    def zero_keeps_all(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return self.sam.device

    def to(self, device: str) -> "SamPoints":
        self.sam.to(device)
        return self

    @property
    def points_interact(self) -> bool:
        return False

    @property
    def mask_threshold(self) -> float:
        return self.sam.mask_threshold

    def internal_levels(self, levels: Sequence[int]) -> tuple[int, ...]:
        """SAM has no levels to ask for; ValueError for any."""
        if levels:
            raise ValueError(f"SAM makes {MASKS} masks a point and has no levels to choose")
        return ()

    def image_bytes(self, height: int, width: int) -> int:  # noqa: ARG002 - resized to one size
        # Of all blocks' tokens the MLP's hidden ones are the most: four times the width, twice.
        rows, columns = self.sam.prompt_encoder.image_embedding_size
        patches: Any = self.sam.image_encoder.patch_embed
        return 4 * 12 * rows * columns * int(patches.proj.out_channels)

    def point_bytes(self, height: int, width: int) -> int:  # noqa: ARG002 - as above
        rows, columns = self.sam.prompt_encoder.image_embedding_size
        width_of_token = self.sam.mask_decoder.transformer_dim
        # The image's tokens before a layer, the same with positions, and after the layer.
        return 3 * 4 * rows * columns * width_of_token

    def compile_parts(self, backend: str) -> None:
        self._encode_images = torch.compile(encode_images, backend=backend, dynamic=False)
        self._decoder.compile(backend)

    def encode(self, images: Tensor) -> list["EncodedByViT"]:
        from segment_anything.utils.transforms import ResizeLongestSide

        height, width = int(images.shape[-2]), int(images.shape[-1])
        side = self.sam.image_encoder.img_size
        resize = ResizeLongestSide(side)
        # The package resizes with Pillow, one image at a time; so does this, for the same pixels.
        pixels = [resize.apply_image(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        resized = torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in pixels])
        seen = (int(resized.shape[-2]), int(resized.shape[-1]))
        padded = self.sam.preprocess(resized.to(self.device))
        embeddings = self._encode_images(self.sam.image_encoder, padded)
        position = self.sam.prompt_encoder.get_dense_pe()[0].flatten(1).T
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight
        return [
            EncodedByViT(
                sam=self.sam,
                decoder=self._decoder,
                side=ImageSide.of(
                    embedding.flatten(1).T.float() + no_mask, position, self._decoder
                ),
                size=(height, width),
                seen=seen,
            )
            for embedding in embeddings
        ]


@dataclass(frozen=True)
class EncodedByViT:
    """One image as SAM's mask decoder sees it.  size: the image's (height, width);
    seen: after the resize that brings its longer side to the encoder's."""

    sam: "Sam"
    decoder: "PointDecoder"
    side: "ImageSide"
    size: tuple[int, int]
    seen: tuple[int, int]

    @property
    def upsampling(self) -> Upsampling:
        rows, _ = self.sam.prompt_encoder.image_embedding_size
        return Upsampling(self.sam.image_encoder.img_size // (4 * rows), self.seen, self.size)

    def coordinates(self, points: Tensor) -> Tensor:
        return points * torch.tensor(self.size[::-1], dtype=points.dtype, device=points.device)

    def decode(self, points: Tensor, levels: Sequence[int]) -> "PointTokens":
        """levels: none, SAM has no choice of granularity."""
        del levels
        (height, width), (seen_height, seen_width) = self.size, self.seen
        scale = torch.tensor(
            [seen_width / width, seen_height / height], dtype=points.dtype, device=points.device
        )
        placed = (self.coordinates(points) * scale)[:, None]
        inside = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse, _ = self.sam.prompt_encoder(points=(placed, inside), boxes=None, masks=None)
        return self.decoder(sparse, self.side, self.sam.prompt_encoder.image_embedding_size)


@dataclass(frozen=True)
class ImageSide:
    """What the first layer needs of the image, the same for all points.

    tokens: [S, C], the embedding.  position: [S, C].
    keys, values: [heads, S, d], for the tokens that look at the image.
    queries: [heads, S, d], for the image looking at the tokens.
    """

    tokens: Tensor
    position: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor

    @classmethod
    def of(cls, tokens: Tensor, position: Tensor, decoder: "PointDecoder") -> "ImageSide":
        layer = decoder.transformer.layers[0]
        placed = tokens + position
        to_image, to_token = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        heads = to_image.num_heads
        return cls(
            tokens=tokens,
            position=position,
            keys=_by_head(to_image.k_proj(placed), heads),
            values=_by_head(to_image.v_proj(tokens), heads),
            queries=_by_head(to_token.q_proj(placed), heads),
        )


class PointDecoder:
    """The package's mask decoder for many points of one image.

    P points of T tokens each: [P, T, C]; the image as each point sees it: [P, S, C].
    """

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.transformer = decoder.transformer
        self._attended = self._attend

    def compile(self, backend: str) -> None:
        self._attended = torch.compile(self._attend, backend=backend, dynamic=False)

    def __call__(self, sparse: Tensor, side: ImageSide, grid: tuple[int, int]) -> "PointTokens":
        """sparse: [P, 2, C] from the prompt encoder; grid: rows and columns of S."""
        own = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        queries, image = self._attended(tokens, side)
        ious = self.decoder.iou_prediction_head(queries[:, 0])[:, 1:]
        return PointTokens(self, queries[:, 2:], image, grid, ious.float().flatten())

    def _attend(self, tokens: Tensor, side: ImageSide) -> tuple[Tensor, Tensor]:
        """Tokens [P, T, C] and the image [P, S, C] after the two-way transformer."""
        queries, image = self._first_layer(tokens, side)
        for layer in self.transformer.layers[1:]:
            queries, image = self._layer(layer, queries, tokens, image, side.position)
        last = self.transformer.final_attn_token_to_image
        placed_image = image + side.position.to(image.dtype)
        queries = queries + _tokens_to_image(last, queries + tokens, image, placed_image)
        return self.transformer.norm_final_attn(queries), image

    def _first_layer(self, tokens: Tensor, side: ImageSide) -> tuple[Tensor, Tensor]:
        layer = self.transformer.layers[0]
        queries = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
        attention = layer.cross_attn_token_to_image
        points, count, _ = tokens.shape
        # All tokens of all points look at one set of keys: points and tokens are one axis.
        asking = _by_head(attention.q_proj(queries + tokens).flatten(0, 1), attention.num_heads)
        keys, values = side.keys.to(asking.dtype), side.values.to(asking.dtype)
        seen = F.scaled_dot_product_attention(asking[None], keys[None], values[None])[0]
        seen = attention.out_proj(seen.transpose(0, 1).flatten(1)).unflatten(0, (points, count))
        queries = layer.norm3(_fed(layer.mlp, layer.norm2(queries + seen)))

        attention = layer.cross_attn_image_to_token
        told = _by_head(attention.k_proj(queries + tokens).flatten(0, 1), attention.num_heads)
        told = told / math.sqrt(told.shape[-1])
        scores = torch.bmm(told, side.queries.to(told.dtype).mT)
        scores = scores.unflatten(1, (points, count)).transpose(0, 1)
        shared = side.tokens.to(told.dtype).expand(points, -1, -1)
        return queries, layer.norm4(_told_by_tokens(attention, scores, queries, shared))

    def _layer(
        self, layer: Any, queries: Tensor, tokens: Tensor, image: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        placed = queries + tokens
        queries = layer.norm1(queries + layer.self_attn(q=placed, k=placed, v=queries))
        placed_image = image + position.to(image.dtype)
        seen = _tokens_to_image(
            layer.cross_attn_token_to_image, queries + tokens, image, placed_image
        )
        queries = layer.norm3(_fed(layer.mlp, layer.norm2(queries + seen)))

        attention = layer.cross_attn_image_to_token
        heads = attention.num_heads
        told = attention.k_proj(queries + tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
        told = told / math.sqrt(told.shape[-1])
        # The image's query bias meets each token once, wherever in the image it is asked from.
        bias = attention.q_proj.bias.to(told.dtype).unflatten(0, (heads, -1))
        from_bias = (told @ bias[:, :, None]).flatten(1, 2)
        absorbed = (told @ _weight_by_head(attention.q_proj, heads).to(told.dtype)).flatten(1, 2)
        scores = torch.baddbmm(from_bias, absorbed, placed_image.mT)
        scores = scores.unflatten(1, (heads, -1))
        return queries, layer.norm4(_told_by_tokens(attention, scores, queries, image))


def _tokens_to_image(attention: Any, placed: Tensor, image: Tensor, placed_image: Tensor) -> Tensor:
    """Tokens [P, T, C] attend to their point's image [P, S, C]; `placed` includes positions.

    The key bias adds the same to all scores of a query, so that the softmax does not see it.
    """
    heads = attention.num_heads
    asking = attention.q_proj(placed).unflatten(-1, (heads, -1)).transpose(1, 2)
    asking = asking / math.sqrt(asking.shape[-1])
    absorbed = (asking @ _weight_by_head(attention.k_proj, heads).to(asking.dtype)).flatten(1, 2)
    shares = torch.bmm(absorbed, placed_image.mT).softmax(dim=-1)
    pooled = torch.bmm(shares.to(image.dtype), image).unflatten(1, (heads, -1))
    seen = pooled @ _weight_by_head(attention.v_proj, heads).to(pooled.dtype).mT
    seen = seen.transpose(1, 2).flatten(2) + attention.v_proj.bias.to(seen.dtype)
    return attention.out_proj(seen)


def _told_by_tokens(attention: Any, scores: Tensor, queries: Tensor, image: Tensor) -> Tensor:
    """The image [P, S, C] plus what the tokens tell it.

    scores: [P, heads, T, S], of each pixel for each token; queries: [P, T, C].
    The output projection is applied to the tokens' values; its bias is spread over the heads,
    whose shares add up to one each.
    """
    heads = attention.num_heads
    shares = scores.softmax(dim=2).flatten(1, 2)
    values = attention.v_proj(queries).unflatten(-1, (heads, -1)).transpose(1, 2)
    weight = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)
    told = values @ weight.to(values.dtype) + attention.out_proj.bias.to(values.dtype) / heads
    return torch.baddbmm(image, shares.to(image.dtype).mT, told.flatten(1, 2).to(image.dtype))


def _fed(mlp: nn.Module, queries: Tensor) -> Tensor:
    return queries + mlp(queries)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[N, heads * d] -> [heads, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()


def _weight_by_head(linear: Any, heads: int) -> Tensor:
    """Weight [heads * d, C] -> [heads, d, C]."""
    return linear.weight.unflatten(0, (heads, -1))


@dataclass(frozen=True)
class PointTokens:
    """Decoded points, masks not yet made.

    masks: [P, 3, C], the mask tokens.  image: [P, S, C] as each point left it.
    ious: [P * 3] float32.
    """

    decoder: PointDecoder
    masks: Tensor
    image: Tensor
    grid: tuple[int, int]
    ious: Tensor

    def logits(self, chosen: Tensor) -> Tensor:
        """[K, 4 * rows, 4 * columns] of the K masks `chosen`, in rising order."""
        decoder = self.decoder.decoder
        points, row_of = (chosen // MASKS).unique_consecutive(return_inverse=True)
        # Each mask token has a network of its own that makes its kernel.
        networks = list(decoder.output_hypernetworks_mlps)[1:]
        kernels = torch.stack(
            [make(self.masks[points, i]) for i, make in enumerate(networks)], dim=1
        )
        made: list[Tensor] = []
        for start in range(0, len(points), self.points_at_once):
            some = slice(start, start + self.points_at_once)
            large = _upscale(decoder.output_upscaling, self.image[points[some]])
            made.append(torch.bmm(kernels[some], large.mT))
        rows, columns = self.grid
        flat = torch.cat(made)[row_of, chosen % MASKS].float()
        # A pixel's 16 logits lie together: two by two, and each of these two by two.
        blocks = flat.unflatten(1, (rows, columns, 2, 2, 2, 2))
        return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * rows, 4 * columns)

    @property
    def points_at_once(self) -> int:
        # On a CPU one upscaled point (8 MB for SAM) is what a cache can hold.
        return 1 if self.image.device.type == "cpu" else 32


def _upscale(layers: Any, image: Tensor) -> Tensor:
    """[P, S, C] -> [P, S * 16, C / 8], the 16 new pixels of each old one after it."""
    first, norm, activation, second, last_activation = layers
    x = _transposed(first, image).unflatten(-1, (4, -1))
    x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    x = _transposed(second, activation(x)).unflatten(-1, (4, -1))
    return last_activation(x).flatten(1, 3)


def _transposed(conv: Any, x: Tensor) -> Tensor:
    """A transposed 2 x 2 convolution of stride 2, channels last: [..., C] -> [..., 4 * C']."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return F.linear(x, weight, conv.bias.repeat(4))
