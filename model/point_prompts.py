"""What an automatic mask generator asks of a network that makes masks from points.

`PointGrid` knows grids, filters and suppression; a network behind these protocols knows how points
become queries, and how mask logits come back to the image's own size. Semantic-SAM and SAM are the
two there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class DecodedPoints(Protocol):
    """A batch of points after the decoder, before any mask is made."""

    @property
    def ious(self) -> Tensor:
        """Predicted IoUs [points * masks a point] float32, point-major."""
        ...

    def logits(self, chosen: Tensor) -> Tensor:
        """Low-resolution mask logits [K, h, w] float32 of the candidates `chosen` ([K] int64)."""
        ...


class EncodedImage(Protocol):
    """An image that the network has looked at once."""

    @property
    def upsampling(self) -> "Upsampling":
        """From low-resolution logits to the image's size."""
        ...

    def coordinates(self, points: Tensor) -> Tensor:
        """Points [P, 2] in 0..1 as the public generator reports them, [P, 2 or 4] float64."""
        ...

    def decode(self, points: Tensor, levels: Sequence[int]) -> DecodedPoints:
        """Points [P, 2] float64, (x, y) in 0..1 of the image.  levels: the network's own."""
        ...


class PointPromptable(Protocol):
    """A network that `PointGrid` can drive."""

    @property
    def zero_keeps_all(self) -> bool:
        """Whether a threshold of 0 switches a filter off. If not, a NaN stability still fails."""
        ...

    @property
    def device(self) -> torch.device:
        """Where images and points have to be."""
        ...

    def to(self, device: str) -> "PointPromptable":
        """The same network, moved there."""
        ...

    @property
    def points_interact(self) -> bool:
        """Whether points of a batch see each other, so that its size is part of the result."""
        ...

    @property
    def mask_threshold(self) -> float:
        """Logits above this are inside the mask."""
        ...

    def internal_levels(self, levels: Sequence[int]) -> tuple[int, ...]:
        """The network's own numbers of the requested levels.  ValueError for unknown ones."""
        ...

    def image_bytes(self, height: int, width: int) -> int:
        """Roughly the working memory of encoding one image of this size."""
        ...

    def point_bytes(self, height: int, width: int) -> int:
        """Roughly the working memory of one point of a batch."""
        ...

    def compile_parts(self, backend: str) -> None:
        """Hand the expensive parts to torch.compile, in place.

        They are compiled at first use, and anew for images of another size: one version for all
        sizes takes a minute and a half to trace through Swin's windows alone.
        """
        ...

    def encode(self, images: Tensor) -> Sequence[EncodedImage]:
        """Images [B, 3, H, W] uint8 RGB."""
        ...


@dataclass(frozen=True)
class Upsampling:
    """Bilinear enlargement of logits, cut to the image, and where the network saw the image at
    another size, resized once more (both without aligned corners).

    factor: how many times larger than the logits the image is that the network saw.
    cut: (height, width) of the image proper in there, at the top left of the padding.
    size: the image's own (height, width).
    """

    factor: int
    cut: tuple[int, int]
    size: tuple[int, int]

    def __call__(self, low: Tensor) -> Tensor:
        """[K, h, w] -> [K, H, W], same type."""
        low = self.needed(low)
        height, width = low.shape[-2:]
        if self.cut != self.size:
            # Two bilinear steps are one linear map along each axis. Where the second step throws
            # most of the first one away, multiplying with that map is cheaper than making it; a
            # step costs about as much as 64 multiplications a pixel.
            steps = height * width * self.factor**2 + self.size[0] * self.size[1]
            products = self.size[0] * width * (height + self.size[1])
            if products < 64 * steps:
                return self._along(low, 0).mT @ low @ self._along(low, 1)
        full = _bilinear(low, (height * self.factor, width * self.factor))
        full = full[:, : self.cut[0], : self.cut[1]]
        return full if self.cut == self.size else _bilinear(full, self.size)

    @property
    def small_bytes(self) -> int:
        """Bytes of one mask's logits before."""
        return 4 * self.cut[0] * self.cut[1] // self.factor**2 + 4

    @property
    def large_bytes(self) -> int:
        """Bytes that one mask takes while it is enlarged and counted."""
        return 4 * max(self.cut[0] * self.cut[1], 2 * self.size[0] * self.size[1])

    def needed(self, low: Tensor) -> Tensor:
        """The rows and columns of [K, h, w] that reach into the cut: its last pixel lies between
        low pixels ceil(cut / factor) - 1 and ceil(cut / factor)."""
        rows, columns = (-(-edge // self.factor) + 1 for edge in self.cut)
        return low[:, :rows, :columns]

    def _along(self, low: Tensor, axis: int) -> Tensor:
        """Both steps along one axis as a matrix [low pixels, image pixels]."""
        count = low.shape[1 + axis]
        identity = torch.eye(count, dtype=low.dtype, device=low.device)[None]
        enlarged = F.interpolate(identity, size=count * self.factor, mode="linear")
        cut = enlarged[..., : self.cut[axis]]
        return F.interpolate(cut, size=self.size[axis], mode="linear")[0]


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
