"""Training augmentation on the device, a batch at a time (public COMBO settings).

Size, crop and flip are drawn once a clip; colours once a frame and once a Maskige, which is how the
public code behaves: its Maskiges go the images' way, so palette colours blend and shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..media.labels import LABEL_IGNORED
from .loader import Batch

Recipe = Literal["none", "colour-flip", "resize-crop-colour-flip"]

SHORT_SIDES = (
    112, 134, 156, 179, 201, 224, 246, 268, 291, 313, 336, 358, 380, 403, 425, 448,
)  # fmt: skip
"""Short sides in pixels that a 224-pixel frame is resized to; other sizes in proportion."""

PADDING = 128


@dataclass(frozen=True)
class Augment:
    """recipe: S4 and MS3 use resize-crop-colour-flip, AVSS colour-flip. Raises nothing."""

    recipe: Recipe

    def __call__(self, batch: Batch, draws: Sequence[torch.Generator]) -> Batch:
        """draws: one for each clip, on the CPU: what is drawn does not depend on the device."""
        if self.recipe == "none":
            return batch
        seen = [batch.frames] if batch.maskige is None else [batch.frames, batch.maskige]
        pictures, labels = [each.float() for each in seen], batch.labels.clone()
        sizes = [(labels.shape[-2], labels.shape[-1])] * len(labels)
        if self.recipe == "resize-crop-colour-flip":
            pictures, labels, sizes = self._resize_and_crop(pictures, labels, draws)
        pictures = [self._jitter(each, draws) for each in pictures]
        flip = (_uniform(draws)[:, 0] < 0.5).tolist()
        for clip, (rows, columns) in enumerate(sizes):
            # Padding comes last: always right and below, and its grey is never jittered.
            padded = [(each[clip], PADDING) for each in pictures]
            for target, padding in (*padded, (labels[clip], LABEL_IGNORED)):
                if flip[clip]:
                    target[..., :columns] = target[..., :columns].flip(-1)
                target[..., rows:, :] = padding
                target[..., columns:] = padding
        frames, *maskige = pictures
        return replace(batch, frames=frames, maskige=maskige[0] if maskige else None, labels=labels)

    def _resize_and_crop(
        self, pictures: list[Tensor], labels: Tensor, draws: Sequence[torch.Generator]
    ) -> tuple[list[Tensor], Tensor, list[tuple[int, int]]]:
        """Resized pictures, the crop in the upper left corner, and each clip's crop in pixels."""
        height, width = labels.shape[-2:]
        cropped, new_labels = (
            [torch.zeros_like(each) for each in pictures],
            torch.zeros_like(labels),
        )
        crops: list[tuple[int, int]] = []
        for clip, (scale, down, right) in enumerate(_uniform(draws, 3).tolist()):
            side = SHORT_SIDES[int(scale * len(SHORT_SIDES))]
            size = (round(height * side / 224), round(width * side / 224))
            rows, columns = min(height, size[0]), min(width, size[1])
            crops.append((rows, columns))
            top = int(down * (size[0] - rows + 1))
            left = int(right * (size[1] - columns + 1))
            window = (..., slice(top, top + rows), slice(left, left + columns))
            to = (clip, ..., slice(0, rows), slice(0, columns))
            for source, target in zip(pictures, cropped, strict=True):
                resized = F.interpolate(
                    source[clip], size, mode="bilinear", align_corners=False, antialias=True
                )
                target[to] = resized[window]
            nearest = F.interpolate(labels[clip][None].float(), size, mode="nearest-exact")[0]
            new_labels[to] = nearest[window].to(labels.dtype)
        return cropped, new_labels, crops

    def _jitter(self, pictures: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """SSD's colour jitter, drawn anew for every picture of [B,T,3,H,W] in 0..255."""
        lead = pictures.shape[:2]
        flat = pictures.flatten(0, 1)

        def uniform() -> Tensor:
            return _uniform(draws, lead[1]).flatten()

        def draw(low: float, high: float, neutral: float) -> Tensor:
            """Uniform in low..high with probability one half, else neutral; [N,1,1,1]."""
            value = low + (high - low) * uniform()
            chosen = torch.where(uniform() < 0.5, value, neutral)
            return chosen.to(flat.device)[:, None, None, None]

        early = (uniform() < 0.5).to(flat.device)[:, None, None, None]
        brightness, contrast = draw(-32, 32, 0), draw(0.5, 1.5, 1)
        saturation, hue = draw(0.5, 1.5, 1), draw(-36, 36, 0)  # 18 steps of two degrees
        flat = (flat + brightness).clamp(0, 255)
        flat = torch.where(early, (flat * contrast).clamp(0, 255), flat)
        flat = shift_colours(flat, saturation, hue)
        flat = torch.where(early, flat, (flat * contrast).clamp(0, 255))
        return flat.unflatten(0, lead)


def _uniform(draws: Sequence[torch.Generator], numbers: int = 1) -> Tensor:
    """[B, numbers], a row of each clip's generator."""
    return torch.stack([torch.rand(numbers, generator=each) for each in draws])


def shift_colours(rgb: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale the saturation and turn the hue in HSV space.

    rgb: [N,3,H,W] in 0..255.  saturation: factor, hue: degrees, both [N,1,1,1].  Returns [N,3,H,W].
    """
    value = rgb.amax(1, keepdim=True)
    chroma = value - rgb.amin(1, keepdim=True)
    safe = chroma.clamp_min(1e-6)
    red, green, blue = rgb.unbind(1)
    sector = torch.stack(
        (
            ((green - blue) / safe[:, 0]) % 6,
            (blue - red) / safe[:, 0] + 2,
            (red - green) / safe[:, 0] + 4,
        ),
        1,
    ).gather(1, rgb.argmax(1, keepdim=True))
    angle = sector + hue / 60
    # HSV -> RGB: channel n is V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + angle) mod 6.
    chroma = torch.minimum(chroma * saturation, value)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=rgb.device)[None, :, None, None]
    k = (offsets + angle) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
