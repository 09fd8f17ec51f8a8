"""Semantic-SAM's path from an image and points to masks, assembled (Li et al., Semantic-SAM).

Image -> Swin backbone -> pixel decoder -> mask features and memory, once an image; points ->
prompt decoder -> predicted IoUs, and masks of those that are good enough, once a batch of points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..mask_settings import SEMANTIC_SAM_STRIDE as STRIDE
from ..mask_settings import TOKEN_OF_LEVEL
from ..point_prompts import Upsampling
from .checkpoint import matching_entries
from .pixel_decoder import PixelDecoder
from .prompt_decoder import Memory, PromptDecoder
from .swin import Swin, SwinSize

VARIANTS = {
    "swin-t": SwinSize(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
    "swin-l": SwinSize(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
}

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""RGB, 0..255; not in the checkpoints."""

MASK_STRIDE = 4

CLICK = 0.005
"""A click is a box of this width and height, in shares of the image."""


class SegmentationHead(nn.Module):
    """The two decoders under the name that the checkpoints give them."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(channels)
        self.predictor = PromptDecoder()


class SemanticSam(nn.Module):
    """Semantic-SAM, inference only. `PointGrid` turns it into an automatic mask generator."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, size: SwinSize) -> None:
        """Random weights; `load_published` brings trained ones."""
        super().__init__()
        self.size = size
        self.backbone = Swin(size)
        self.sem_seg_head = SegmentationHead(size.channels)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN)[:, None, None], False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD)[:, None, None], False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_variant(cls, name: str) -> "SemanticSam":
        """ "swin-t" or "swin-l"; ValueError for another name."""
        if name not in VARIANTS:
            raise ValueError(f"no Semantic-SAM variant {name!r}: {', '.join(VARIANTS)}")
        return cls(VARIANTS[name])

    def load_published(self, state_dict: Mapping[str, object]) -> tuple[str, ...]:
        """Load a published checkpoint's entries, with or without `model.` before their names.

        Returns the names that have no place in this network (unused by point prompts).
        Raises ValueError naming every live key that is missing or of another shape.
        """
        entries, left_out = matching_entries(self.state_dict(), state_dict)
        self.load_state_dict(entries)
        return left_out

    @property
    def zero_keeps_all(self) -> bool:
        return False

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def points_interact(self) -> bool:
        return True

    @property
    def mask_threshold(self) -> float:
        return 0.0

    def internal_levels(self, levels: Sequence[int]) -> tuple[int, ...]:
        """Granularity tokens of levels 1..6, in the caller's order; ValueError for others."""
        if not levels or not set(levels) <= set(TOKEN_OF_LEVEL):
            raise ValueError(f"levels {tuple(levels)}: one or more of 1 to 6 are needed")
        return tuple(TOKEN_OF_LEVEL[level] for level in levels)

    def image_bytes(self, height: int, width: int) -> int:
        # The widest moment of the backbone is the first stage's MLP, of the pixel decoder the
        # sampling points of one deformable attention.
        tokens = (height + STRIDE) * (width + STRIDE) // MASK_STRIDE**2
        return tokens * 4 * max(12 * self.size.embed_dim, 2048)

    def point_bytes(self, height: int, width: int) -> int:
        return (height + STRIDE) * (width + STRIDE) // MASK_STRIDE**2 * 4

    def compile_parts(self, backend: str) -> None:
        head = self.sem_seg_head
        for part in (self.backbone, head.pixel_decoder, head.predictor.decoder):
            part.compile(backend=backend, dynamic=False)

    def encode(self, images: Tensor) -> list["EncodedByBackbone"]:
        """Images [B, 3, H, W] uint8 (or any numbers 0..255), RGB, at their own size.

        The backbone follows a surrounding autocast; the two decoders stay in float32, as in the
        published code.
        """
        height, width = images.shape[-2:]
        normalised = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        padded = F.pad(normalised, (0, -width % STRIDE, 0, -height % STRIDE))
        features = [level.to(self.pixel_mean.dtype) for level in self.backbone(padded)]
        with torch.autocast(images.device.type, enabled=False):
            mask_features, maps = self.sem_seg_head.pixel_decoder(features)
            del features  # half a gigabyte of a photograph
            memory = self.sem_seg_head.predictor.remember(maps)
        return [
            EncodedByBackbone(
                predictor=self.sem_seg_head.predictor,
                mask_features=mask_features[i],
                memory=Memory([v[i : i + 1] for v in memory.values], memory.sizes),
                size=(height, width),
                padded=(int(padded.shape[-2]), int(padded.shape[-1])),
            )
            for i in range(len(images))
        ]


@dataclass(frozen=True)
class EncodedByBackbone:
    """One image as the prompt decoder sees it.

    mask_features: [256, h, w] at a quarter of the padded size.  size, padded: (height, width).
    """

    predictor: PromptDecoder
    mask_features: Tensor
    memory: Memory
    size: tuple[int, int]
    padded: tuple[int, int]

    @property
    def upsampling(self) -> Upsampling:
        # The published code resizes once more, to the same size, which changes nothing.
        return Upsampling(MASK_STRIDE, self.size, self.size)

    def coordinates(self, points: Tensor) -> Tensor:
        return F.pad(points, (0, 2), value=CLICK)

    def decode(self, points: Tensor, levels: Sequence[int]) -> "PointQueries":
        (height, width), (padded_height, padded_width) = self.size, self.padded
        scale = (width / padded_width, height / padded_height) * 2
        # In float32 from here on, as the published generator.
        prompts = self.coordinates(points).float() * torch.tensor(scale, device=points.device)
        with torch.autocast(points.device.type, enabled=False):
            queries, ious = self.predictor(prompts[None], self.memory, levels)
        return PointQueries(self, queries[0], ious[0])


@dataclass(frozen=True)
class PointQueries:
    """Decoded queries [Q, 256] of the wanted granularities and their predicted IoUs [Q]."""

    image: EncodedByBackbone
    queries: Tensor
    ious: Tensor

    def logits(self, chosen: Tensor) -> Tensor:
        with torch.autocast(chosen.device.type, enabled=False):
            embeddings = self.image.predictor.mask_embed(self.queries[chosen])
            features = self.image.mask_features
            return (embeddings @ features.flatten(1)).unflatten(1, features.shape[1:])
