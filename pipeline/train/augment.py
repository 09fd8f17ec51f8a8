"""Training augmentation on the device, a batch at a time (public COMBO settings).

Size, crop and flip are drawn once a clip; colours once a frame and once a Maskige, which is how the
public code behaves: its Maskiges go the images' way, so palette colours blend and shift.

What was drawn goes to the device in one copy. Resizing, cropping and mirroring are one matrix for a
clip's rows and one for its columns, so that nothing is resized that is cropped away, and clips of
other sizes are no cases of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...model.transfers import send
from ..media.labels import LABEL_IGNORED
from .loader import Batch

Recipe = Literal["none", "colour-flip", "resize-crop-colour-flip"]

SHORT_SIDES = (
    112, 134, 156, 179, 201, 224, 246, 268, 291, 313, 336, 358, 380, 403, 425, 448,
)  # fmt: skip
"""Short sides in pixels that a 224-pixel frame is resized to; other sizes in proportion."""

PADDING = 128
OF_CLIP, OF_PICTURE = 4, 9
"""How many numbers are drawn: for size, top, left and flip; for colours."""


@dataclass(frozen=True)
class Augment:
    """recipe: S4 and MS3 use resize-crop-colour-flip, AVSS colour-flip. Raises nothing."""

    recipe: Recipe

    @staticmethod
    def draw(draws: Sequence[torch.Generator], batch: Batch) -> Tensor:
        """What chance decides of clips, [B, ...] in 0..1, a row from each clip's own generator.

        On the CPU: what is drawn does not depend on the device.
        """
        pictures = batch.labels.shape[1] * (1 if batch.maskige is None else 2)
        numbers = OF_CLIP + pictures * OF_PICTURE
        return torch.stack([torch.rand(numbers, generator=each) for each in draws])

    def __call__(self, batch: Batch, drawn: Tensor) -> Batch:
        """drawn: of these clips, from `draw`."""
        if self.recipe == "none":
            return batch
        seen = [batch.frames] if batch.maskige is None else [batch.frames, batch.maskige]
        _, frames, height, width = batch.labels.shape
        resizes = self.recipe == "resize-crop-colour-flip"
        views = _views(drawn[:, :OF_CLIP], height, width, SHORT_SIDES if resizes else (224,))
        colours = _colours(drawn[:, OF_CLIP:].unflatten(1, (len(seen), frames, OF_PICTURE)))
        numbers = send(torch.cat([views.flatten(1), colours.flatten(1)], 1), batch.labels.device)
        of_views = views[0].numel()
        views = numbers[:, :of_views].view(views.shape)
        colours = numbers[:, of_views:].view(colours.shape)
        rows, columns = _Axis.of(views[:, 0], height), _Axis.of(views[:, 1], width)
        if resizes:
            moved = [_resample(pictures, rows, columns) for pictures in seen]
        else:
            moved = [columns.pick(pictures, 4).float() for pictures in seen]
        # Padding comes last: always right and below, and its grey is never jittered.
        outside = ~(rows.inside[:, :, None] & columns.inside[:, None])[:, None]
        pictures = [
            _jitter(each, of_kind).masked_fill_(outside[:, :, None], PADDING)
            for each, of_kind in zip(moved, colours.unbind(1), strict=True)
        ]
        labels = columns.pick(rows.pick(batch.labels, 2), 3).masked_fill_(outside, LABEL_IGNORED)
        maskige = None if batch.maskige is None else pictures[1]
        return replace(batch, frames=pictures[0], maskige=maskige, labels=labels)


def _views(drawn: Tensor, height: int, width: int, sides: tuple[int, ...]) -> Tensor:
    """[B, 4] -> [B, 2, 4] float32: of rows and columns, what `_Axis.of` takes."""
    size, top, left, flip = drawn.unbind(1)
    side = torch.tensor(sides, dtype=torch.float64)[(size * len(sides)).long()]
    axes: list[Tensor] = []
    for length, place in ((height, top), (width, left)):
        resized = (length * side / 224).round()
        used = resized.clamp(max=length)
        first = (place * (resized - used + 1)).floor()
        axes.append(torch.stack([length / resized, first, used, torch.zeros_like(used)], 1))
    axes[1][:, 3] = flip < 0.5
    return torch.stack(axes, 1).float()


@dataclass(frozen=True)
class _Axis:
    """Where the n rows, or columns, of each clip's new pictures come from."""

    weights: Tensor
    """[B, n, n]: new from old ones; an antialiased bilinear resize. Zeros where nothing is seen."""
    nearest: Tensor
    """[B, n] int64: the old one that is nearest."""
    inside: Tensor
    """[B, n] bool: whether the crop reaches there."""

    @classmethod
    def of(cls, views: Tensor, length: int) -> "_Axis":
        """views: [B, 4]: old pixels a new one, the crop's first, their number, and whether
        mirrored.
        """
        scale, first, used, mirrored = views[:, :, None].unbind(1)
        places = torch.arange(length, device=views.device, dtype=torch.float32)
        inside = places < used
        places = torch.where(mirrored > 0, used - 1 - places, places)
        centres = (places + first + 0.5) * scale
        old = torch.arange(length, device=views.device) + 0.5
        near = 1 - (old - centres[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]
        weights = near.clamp(min=0) * inside[:, :, None]
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-6)
        return cls(weights, centres.long().clamp(0, length - 1), inside)

    def pick(self, values: Tensor, axis: int) -> Tensor:
        """The nearest ones of [B, ...] along an axis."""
        shape = [len(values), *[1] * (values.dim() - 1)]
        shape[axis] = -1
        return values.gather(axis, self.nearest.view(shape).expand(values.shape))


def _resample(pictures: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """[B, T, 3, H, W] -> the same, float32."""
    frames = pictures.shape[1]
    by_row = pictures.permute(0, 3, 1, 2, 4).float().flatten(2)  # [B, H, T * 3 * W]
    by_row = (rows.weights @ by_row).unflatten(2, (frames * 3, -1)).flatten(1, 2)
    both = by_row @ columns.weights.transpose(1, 2)
    return both.unflatten(1, (-1, frames, 3)).permute(0, 2, 3, 1, 4)


def _colours(drawn: Tensor) -> Tensor:
    """[..., 9] in 0..1 -> [..., 5]: SSD's colour jitter.

    Whether contrast is changed before the colours; brightness, contrast, saturation and hue: in a
    range with probability one half, else neutral.
    """
    ranges = ((-32, 32, 0), (0.5, 1.5, 1), (0.5, 1.5, 1), (-36, 36, 0))  # 18 steps of two degrees
    low, high, neutral = torch.tensor(ranges).unbind(1)
    value, chance = drawn[..., 1:].unflatten(-1, (2, 4)).unbind(-2)
    changed = torch.where(chance < 0.5, low + (high - low) * value, neutral)
    return torch.cat([(drawn[..., :1] < 0.5).float(), changed], -1)


def _jitter(pictures: Tensor, colours: Tensor) -> Tensor:
    """[B, T, 3, H, W] float32 in 0..255, and [B, T, 5] of `_colours` -> new pictures."""
    flat, of_picture = pictures.flatten(0, 1), colours.flatten(0, 1)[..., None, None, None]
    out = torch.empty(flat.shape, device=flat.device)
    # A CPU's cache holds one picture; a GPU takes them all at once.
    at_once = 1 if flat.device.type == "cpu" else len(flat)
    for first in range(0, len(flat), at_once):
        chosen = slice(first, first + at_once)
        early, brightness, contrast, saturation, hue = of_picture[chosen].unbind(1)
        before, after = torch.where(early > 0, contrast, 1), torch.where(early > 0, 1, contrast)
        picture = ((flat[chosen] + brightness).clamp_(0, 255) * before).clamp_(0, 255)
        shifted = shift_colours(picture, saturation, hue)
        torch.mul(shifted, after, out=out[chosen]).clamp_(0, 255)
    return out.view(pictures.shape)


def shift_colours(rgb: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale the saturation and turn the hue in HSV space.

    rgb: [N,3,H,W] in 0..255.  saturation: factor, hue: degrees, both [N,1,1,1].  Returns [N,3,H,W].
    """
    red, green, blue = rgb.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    of_chroma = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(
        value == green, (blue - red) * of_chroma + 2, (red - green) * of_chroma + 4
    )
    sector = torch.where(value == red, (green - blue) * of_chroma, sector)
    angle = sector.add_(hue[:, 0] / 60)
    chroma = torch.minimum(chroma.mul_(saturation[:, 0]), value)
    # HSV -> RGB: channel n is V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + angle) mod 6, which
    # is 2 less the distance from k to 2 on a circle of 6.
    channels: list[Tensor] = []
    for n in (5, 3, 1):
        turn = angle + (n - 2)
        near = 2 - turn.sub_((turn / 6).round_(), alpha=6).abs_()
        channels.append(value - near.clamp_(0, 1).mul_(chroma))
    return torch.stack(channels, 1)
