"""Automatic masks of a whole image from a grid of points (Kirillov et al., Segment Anything,
section 5 and appendix B; Semantic-SAM's generator differs in settings only).

Grid -> batches of points -> predicted IoU -> stability -> boxes -> suppression -> small regions.
The order of these steps makes it fast, and no step changes what the public generators return:

- predicted IoUs are known before any mask is made, so that only masks which pass are made;
- candidates are kept as small logits until suppression has named the few that stay;
- masks are never run-length coded, and label maps are made without a look at single masks.

There is one crop, the image, so the public generators' filter for masks at a crop's edge, which
spares the image's own edge, has nothing to remove.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .mask_regions import logit_boxes, mask_boxes, remove_small_regions, stability
from .mask_settings import GridSettings
from .maskige import Merged, merge
from .point_prompts import EncodedImage, PointPromptable, Upsampling

T = TypeVar("T")

CPU_MEMORY = 1 << 30
"""Memory limit in bytes where none is given and the device is a CPU."""

GPU_SHARE = 0.8
"""Share of a GPU's free memory that is the limit where none is given."""

CPU_WORKING_SET = 1 << 25
"""Bytes that a CPU works on at once: larger blocks fall out of its caches and are returned to the
system after each use, which costs more than the arithmetic."""


@dataclass(frozen=True)
class Masks:
    """K masks of one image, in the public generator's order.

    masks: bool [K, H, W] at the image's size; on the way there logits [K, h, w] float32.
    boxes: [K, 4] int64, first and last column and row.  ious: [K] float32, predicted, may exceed 1.
    stability: [K] float32, before small regions were cleaned.  points: those that made the masks,
    as the public generators report them: [K, 2] float64 in pixels for SAM, [K, 4] in 0..1 (x, y,
    width, height) for Semantic-SAM.
    """

    masks: Tensor
    boxes: Tensor
    ious: Tensor
    stability: Tensor
    points: Tensor

    def __getitem__(self, index: Tensor) -> "Masks":
        return Masks(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence["Masks"]) -> "Masks":
        return Masks(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Masks)))

    @staticmethod
    def none(size: tuple[int, int], device: torch.device) -> "Masks":
        nothing = torch.zeros(0, device=device)
        masks = torch.zeros(0, *size, dtype=torch.bool, device=device)
        return Masks(masks, mask_boxes(masks), nothing, nothing, nothing[:, None])


class PointGrid:
    """Automatic mask generator of one network.

    `memory_limit` bytes bound what is worked on at once (images, points, masks); running out of
    memory halves that and goes on. Where points see each other (Semantic-SAM), `points_per_batch`
    is part of the result and is never changed: running out of memory there is an error.
    """

    def __init__(
        self,
        net: PointPromptable,
        settings: GridSettings,
        *,
        levels: Sequence[int] = (),
        memory_limit: int | None = None,
        autocast: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        """net: a `SemanticSam`, a `SamPoints`, or anything else that is `PointPromptable`.

        levels: granularities asked for, of a network that has them.
        autocast: torch.bfloat16 or torch.float16 for the network; float32 if None. Thresholds,
        mask logits and everything after them are float32 in any case.
        compile: let torch.compile make the network's expensive parts, in place. Changes results by
        float noise, and takes minutes for the first image of every size.
        Raises ValueError for a memory limit out of range and for levels that the network lacks.
        """
        self.net, self.settings = net, settings
        self.internal_levels = net.internal_levels(levels)
        if memory_limit is not None and memory_limit < 1:
            raise ValueError("memory_limit must be at least 1 byte")
        # Found once: later, memory that torch keeps for its next use would seem taken.
        self.memory_limit = memory_limit or _memory_of(net.device)
        self.autocast = autocast
        if compile:
            net.compile_parts("inductor")

    def merged(self, images: Tensor) -> list[Merged]:
        """Label maps of several images of one size, which are encoded together.

        images: [B, 3 or 1, H, W] uint8.  Beside its label map each tells how many masks beyond 255
        had no place in it. Tensors stay on the network's device.
        """
        return [merge(found.masks) for found in self.found(images)]

    @torch.no_grad()
    def found(self, images: Tensor) -> Iterator[Masks]:
        """The masks of each image, one image after the other, on the network's device.

        images: [B, 3, H, W] uint8, RGB, of one size; or [B, 1, H, W], grey, which is read as three
        equal channels.  Raises ValueError for other shapes or types, MemoryError for an image too
        large for the device.
        """
        images = _checked(images)
        at_once = self.memory_limit // self.net.image_bytes(*images.shape[-2:])
        for group in _batches(len(images), at_once, lambda part: self._encoded(images[part])):
            for image in group:
                candidates = self._candidates(image)
                if candidates:
                    yield self._cleaned(self._distinct(image, Masks.joined(candidates)))
                else:
                    yield Masks.none(image.upsampling.size, self.net.device)

    def _encoded(self, images: Tensor) -> Sequence[EncodedImage]:
        with self._precision():
            return self.net.encode(images.to(self.net.device))

    def _candidates(self, image: EncodedImage) -> list[Masks]:
        """Masks that pass the filters, in the grid's order."""
        grid = _grid(self.settings.points_per_side, self.net.device)
        places = image.coordinates(grid)
        size, fixed = self.settings.points_per_batch, self.net.points_interact
        if not fixed:
            size = min(size, self._working_set() // self.net.point_bytes(*image.upsampling.size))
        batches = _batches(
            len(grid), size, lambda part: self._good(image, grid[part], places[part]), fixed
        )
        return [masks for batch in batches for masks in batch]

    def _good(self, image: EncodedImage, points: Tensor, places: Tensor) -> list[Masks]:
        """Candidates of a batch of points that pass the filters for predicted IoU and stability.

        places: the points as reported, [P, 2 or 4].
        """
        with self._precision():
            decoded = image.decode(points, self.internal_levels)
        wanted = self.settings.pred_iou_thresh
        passing = (decoded.ious > wanted) | (self.net.zero_keeps_all and wanted <= 0)
        chosen = passing.nonzero()[:, 0]
        places = places.repeat_interleave(len(decoded.ious) // len(points), dim=0)
        upsampling, found = image.upsampling, list[Masks]()
        for numbers in chosen.split(max(1, self.memory_limit // upsampling.small_bytes)):
            if len(numbers) == 0:
                continue
            with self._precision():
                small = upsampling.needed(decoded.logits(numbers))
            stable = _batches(
                len(small),
                self._working_set() // upsampling.large_bytes,
                lambda part, small=small, numbers=numbers: self._stable(
                    upsampling, small[part], decoded.ious[numbers[part]], places[numbers[part]]
                ),
            )
            found.extend(stable)
        return found

    def _stable(self, upsampling: Upsampling, small: Tensor, ious: Tensor, places: Tensor) -> Masks:
        """Those of the masks `small` ([K, h, w] logits) that are stable, with their boxes."""
        threshold, wanted = self.net.mask_threshold, self.settings.stability_score_thresh
        large = upsampling(small)
        scores = stability(large, threshold, self.settings.stability_score_offset)
        # Only a filter that is switched off lets the NaN of an empty mask through.
        passing = (scores >= wanted) | (self.net.zero_keeps_all and wanted <= 0)
        kept = passing.nonzero()[:, 0]
        boxes = logit_boxes(large, threshold)[kept]
        # Whatever is smaller waits for the suppression.
        bits = large.shape[1:].numel() <= 4 * small.shape[1:].numel()
        masks = large[kept] > threshold if bits else small[kept]
        return Masks(masks, boxes, ious[kept], scores[kept], places[kept])

    def _distinct(self, image: EncodedImage, found: Masks) -> Masks:
        """Masks whose boxes do not repeat a better one, by falling predicted IoU, as bool."""
        found = found[_suppressed(found.boxes, found.ious, self.settings.box_nms_thresh)]
        if found.masks.dtype == torch.bool:
            return found
        upsampling, threshold = image.upsampling, self.net.mask_threshold
        masks = found.masks.new_empty(len(found.masks), *upsampling.size, dtype=torch.bool)
        at_once = self._working_set() // upsampling.large_bytes

        def enlarge(part: slice) -> None:
            torch.gt(upsampling(found.masks[part]), threshold, out=masks[part])

        for _ in _batches(len(masks), at_once, enlarge):
            pass
        return replace(found, masks=masks)

    def _cleaned(self, found: Masks) -> Masks:
        """Without small regions. Masks that lost or gained pixels come after the others, and give
        way to them where they have become the same; scores are not made anew."""
        area = self.settings.min_mask_region_area
        if area == 0:
            return found
        masks, changed = remove_small_regions(found.masks, area)
        boxes = mask_boxes(masks)
        overlap = max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh)
        kept = _suppressed(boxes, (~changed).float(), overlap)
        found = replace(found, masks=masks, boxes=boxes)
        # All kept in their order is the usual case, and copying the masks the largest step then.
        return (
            found
            if torch.equal(kept, torch.arange(len(masks), device=kept.device))
            else found[kept]
        )

    def _precision(self) -> torch.autocast:
        enabled = self.autocast is not None
        return torch.autocast(self.net.device.type, dtype=self.autocast, enabled=enabled)

    def _working_set(self) -> int:
        """Bytes that points and full-size masks may take at once."""
        on_cpu = self.net.device.type == "cpu"
        return min(self.memory_limit, CPU_WORKING_SET) if on_cpu else self.memory_limit // 4


def _memory_of(device: torch.device) -> int:
    """Bytes that are the limit where none is given."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return CPU_MEMORY


def _checked(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8; ValueError for what is no image."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"an image is [3, H, W] or [1, H, W] uint8, not {list(images.shape[1:])} {images.dtype}"
        )
    if 0 in images.shape[2:]:
        raise ValueError("an image has at least one pixel")
    return images.expand(-1, 3, -1, -1)


def _grid(points_per_side: int, device: torch.device) -> Tensor:
    """Centres of a grid of cells, [points, 2] float64 as (x, y) in 0..1, x varying fastest."""
    half = 1 / (2 * points_per_side)
    # As the public generators make it: torch's linspace differs in the last bit.
    line = torch.from_numpy(np.linspace(half, 1 - half, points_per_side)).to(device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes that stay, by falling score.

    By the function that the public generators call, with one category for all: beyond a thousand
    boxes it goes another way, where equal scores may come in another order.
    """
    return batched_nms(boxes.float(), scores, torch.zeros_like(boxes[:, 0]), overlap)


def _batches(count: int, size: int, run: Callable[[slice], T], fixed: bool = False) -> Iterator[T]:
    """`run` for consecutive slices of `count` things, `size` at a time.

    Running out of memory halves the size and goes on, down to one thing, unless it is `fixed`.
    Raises MemoryError where that is not enough.
    """
    size, start = max(1, size), 0
    while start < count:
        part = slice(start, min(start + size, count))
        try:
            result = run(part)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if fixed:
                raise MemoryError(
                    f"no memory for {size} points at once; points that see each other are never "
                    "split in silence: choose fewer points_per_batch, which is another result"
                ) from error
            if size == 1:
                raise MemoryError("no memory for the smallest step of making masks") from error
        else:
            yield result
            start = part.stop
            continue
        size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)
