"""The training loss: L = l_cls L_cls + l_mask L_mask + l_ada L_ada (Eq. 8), for every depth.

All prediction sets, frames and masks go through each step together. Random draws of a frame's
points are shared by its prediction sets, so that the targets are sampled once; a clip's draws can
be its own, so that they do not depend on the clips beside it. A GPU is waited for once, for the
costs of the matching, and computes L_ada while the CPU assigns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .combo import ComboOutput
from .fidelity import FIDELITY
from .interface import IGNORED, Losses, NetworkCriterion, label_values
from .matching import Targets, match
from .presets import preset
from .settings import ComboSettings
from .transfers import send


@dataclass(frozen=True)
class LabelledFrames:
    """Predictions and targets of the frames that have labels."""

    class_logits: Tensor
    """[L, n, Q, K + 1] float32."""
    mask_logits: Tensor
    """[B * T, L, Q, h, w], all frames: a view, since masks are the largest arrays there are."""
    index: Tensor
    """[n] int64: the annotated frames among B * T."""
    targets: Targets
    """What the labels may hold; see `Criterion.match`."""
    frames: Tensor
    """[B, T] bool, on the CPU."""

    def of_clips(self, frame: np.ndarray) -> list[int]:
        """How many of [N] numbers of annotated frames are of each clip."""
        clips = self.frames.numpy().nonzero()[0]
        return np.bincount(clips[frame], minlength=len(self.frames)).tolist()


@dataclass(frozen=True)
class Divisors:
    """What the losses of a batch are divided by; float32 without dimensions, none of them 0."""

    targets: Tensor
    """The number of targets."""
    queries: Tensor
    """The weights of all queries' true classes together."""
    consistency: Tensor

    @classmethod
    def of(cls, sums: Tensor, no_object_weight: float) -> "Divisors":
        """sums: what `Criterion.divisors` gives, of all parts of a batch together."""
        targets, matched, unmatched, consistency = sums.unbind()
        queries = matched + no_object_weight * unmatched
        smallest = torch.finfo(torch.float32).tiny
        return cls(targets.clamp(min=1), queries.clamp(min=smallest), consistency)


class Criterion(NetworkCriterion):
    """Matches queries to targets and compares them.

    Losses: loss_ce, loss_mask, loss_dice of the last layer; with _i of prediction set i, from the
    one before the first layer (0) on; loss_cosine_i for L_ada.
    """

    def __init__(self, settings: ComboSettings) -> None:
        super().__init__()
        self.settings = settings
        self.consistency = FIDELITY[settings.fidelity].consistency
        lambda_ada = settings.lambda_ada
        if lambda_ada is None:
            semantic = settings.classes > 2
            lambda_ada = (
                self.consistency.lambda_semantic if semantic else self.consistency.lambda_object
            )
        self.weights = {
            "loss_ce": settings.lambda_cls,
            "loss_mask": settings.lambda_mask,
            "loss_dice": settings.lambda_dice,
            "loss_cosine": lambda_ada,
        }

    @classmethod
    def from_preset(cls, name: str, **settings: object) -> "Criterion":
        """The criterion of a named preset; keywords replace single settings."""
        return cls(preset(name, **settings))

    def forward(
        self,
        out: ComboOutput,
        labels: Tensor,
        points: Tensor | None = None,
        *,
        annotated: Tensor | None = None,
        values: Tensor | None = None,
        divisors: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
    ) -> Losses:
        """labels: [B, T', H, W] integers, classes or 255 for pixels of no mask; T' < T means that
        the first T' frames of each clip have labels.

        points: [P, 2] as (x, y) in 0..1, used for the matching and every mask in place of all
        random draws.
        annotated: [B, T] bool, the frames to learn from; else all that are not 255 throughout.
        values: [B, T', 256] bool on the CPU, `label_values` of the labels or of what they were cut
        from; else they are looked up, which waits for a device that has the labels.
        divisors: of the batch that these clips are a part of; else these clips are the batch.
        draws: a generator for each clip, on the device of the masks; else PyTorch's own.
        Raises ValueError for labels of another shape or outside the classes.
        """
        # Sums over ten thousand points and whole masks are no work for half precision.
        with torch.autocast(out.masks.device.type, enabled=False):
            selected = self.select(out, labels, annotated, values)
            arriving = self.costs(selected, points, draws)
            if divisors is None:
                present = torch.ones_like(selected.frames) if out.valid is None else out.valid
                queries = out.class_logits.shape[2]
                divisors = self._divisors(labels, selected.frames, present, queries)
            by = Divisors.of(divisors, self.settings.no_object_weight)
            consistency = self.consistency_losses(out, by)
            targets, matched = self.match(selected, arriving)
            losses = self.class_losses(selected, targets, matched, by)
            losses.update(self.mask_losses(selected, targets, matched, points, draws, by))
        return Losses(losses | consistency, self.weights)

    def divisors(self, labels: Tensor, annotated: Tensor, present: Tensor) -> Tensor:
        """[4] float32: targets, queries with a target and without, and what L_ada is a mean of."""
        return self._divisors(labels, annotated, present, self.settings.query_count)

    def _divisors(self, labels: Tensor, annotated: Tensor, present: Tensor, queries: int) -> Tensor:
        frames = labels.shape[1]
        chosen = (annotated & present.to(annotated.device))[:, :frames].flatten().nonzero()[:, 0]
        maps = labels.flatten(0, 1).index_select(0, send(chosen, labels.device))
        of_frames = label_values(maps)[:, :IGNORED].sum(dim=1).float()
        # A frame's targets are matched as far as there are queries; all others are "no object".
        matched = of_frames.clamp(max=queries).sum()
        neighbours = send(self.consistency.divisor(present), labels.device)
        return torch.stack([of_frames.sum(), matched, len(maps) * queries - matched, neighbours])

    def select(
        self,
        out: ComboOutput,
        labels: Tensor,
        annotated: Tensor | None = None,
        values: Tensor | None = None,
    ) -> LabelledFrames:
        """Stacks what the annotated frames' predictions are."""
        clips, frames, *_, h, w = out.masks.shape
        if labels.dim() != 4 or labels.shape[0] != clips or labels.shape[1] > frames:
            raise ValueError(f"labels are {tuple(labels.shape)}, for clips {(clips, frames)}")
        if labels.shape[2:] != out.image_size:
            raise ValueError(f"labels are {tuple(labels.shape)}, images {out.image_size}")
        if labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype}, not integers")
        device = out.masks.device
        if values is None:
            values = label_values(labels).cpu()
        held = _padded(values.numpy(), frames)
        chosen = self._annotated(out, held, annotated)
        index = send(torch.from_numpy(chosen.reshape(-1).nonzero()[0]), device)
        classes = out.class_sets.flatten(0, 1).index_select(0, index).float().transpose(0, 1)
        # Mask logits cover a multiple of four pixels; the rest belongs to no mask.
        below, right = h * 4 - labels.shape[2], w * 4 - labels.shape[3]
        labels = send(labels, device)
        labels = F.pad(labels, (0, right, 0, below, 0, frames - labels.shape[1]), value=IGNORED)
        targets = Targets.of(
            labels.flatten(0, 1).index_select(0, index),
            held[chosen], self.settings.classes, device,
        )  # fmt: skip
        return LabelledFrames(
            classes, out.masks.flatten(0, 1), index, targets, torch.from_numpy(chosen)
        )

    @staticmethod
    def _annotated(out: ComboOutput, held: np.ndarray, given: Tensor | None) -> np.ndarray:
        """[B, T] bool; held: of label maps, [B, T, 256] bool."""
        chosen = np.logical_or.reduce(held[..., :IGNORED], axis=2)
        if given is not None:
            if given.shape != held.shape[:2] or given.dtype != torch.bool:
                raise ValueError(f"annotated is {given.dtype} {tuple(given.shape)}")
            chosen = given.cpu().numpy()
        return chosen if out.valid is None else chosen & out.valid.cpu().numpy()

    def costs(
        self,
        selected: LabelledFrames,
        points: Tensor | None,
        draws: Sequence[torch.Generator] | None = None,
    ) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Starts the matching; what is returned, `match` waits for."""
        settings = self.settings
        device = selected.index.device
        if points is None:
            n = len(selected.index)
            points = torch.empty(n, settings.mask_points, 2, device=device)
            _draw(points, 0, selected.of_clips(np.arange(n)), draws)
        else:
            points = send(points, device).float()[None]
        weights = (settings.lambda_cls, settings.lambda_mask, settings.lambda_dice)
        masks = selected.mask_logits.detach()
        if len(masks) > len(selected.index):
            masks = masks.index_select(0, selected.index)
        return match(selected.class_logits, masks, selected.targets, points, weights)

    @staticmethod
    def match(
        selected: LabelledFrames, arriving: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[Targets, Tensor]:
        """The targets that the labels hold, and [L, M] int64 on the device: the query of each in
        every prediction set, -1 for none."""
        held, matched = arriving()
        return selected.targets.only(held), send(
            torch.from_numpy(matched[:, held]), selected.index.device
        )

    def class_losses(
        self, selected: LabelledFrames, targets: Targets, matched: Tensor, divisors: Divisors
    ) -> dict[str, Tensor]:
        """L_cls: cross entropy over all queries, "no object" for those without a target."""
        logits = selected.class_logits
        layers, n, queries, outputs = logits.shape
        # One place more than queries takes the targets that found none.
        truth = torch.full((layers, n * (queries + 1)), outputs - 1, device=logits.device)
        place = targets.frame * (queries + 1) + matched.remainder(queries + 1)
        truth = truth.scatter_(1, place, targets.label.expand(layers, -1))
        truth = truth.unflatten(1, (n, queries + 1))[..., :queries]
        weight = F.pad(logits.new_ones(outputs - 1), (0, 1), value=self.settings.no_object_weight)
        loss = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), weight, reduction="none")
        of_layers = loss.unflatten(0, (layers, -1)).sum(dim=1)
        return _by_layer("loss_ce", of_layers / divisors.queries)

    def mask_losses(
        self,
        selected: LabelledFrames,
        targets: Targets,
        matched: Tensor,
        points: Tensor | None,
        draws: Sequence[torch.Generator] | None,
        divisors: Divisors,
    ) -> dict[str, Tensor]:
        """L_mask: binary cross entropy and dice of the matched masks, on points.

        Sums over masks, divided by the number of targets.
        """
        layers, count = matched.shape
        queries = selected.mask_logits.shape[2]
        of_set = torch.arange(0, layers * queries, queries, device=matched.device)[:, None]
        rows = selected.index[targets.frame] * layers * queries + of_set + matched.clamp(min=0)
        masks = selected.mask_logits.flatten(0, 2).index_select(0, rows.flatten())
        masks = masks.unflatten(0, (layers, count)).float()
        found = (matched >= 0).to(masks.dtype)

        flat = masks.flatten(0, 1)[:, None]
        if points is None:
            of_clips = selected.of_clips(targets.frame_of)
            points = self._important_points(masks.detach(), of_clips, draws)
        else:
            points = send(points, masks.device).float().expand(layers * count, -1, -1)
        logits = _sample(flat, points)[:, 0].unflatten(0, (layers, count))
        # All prediction sets' points of a target in one list: its mask is not repeated.
        by_target = points.unflatten(0, (layers, count)).transpose(0, 1)
        truth = _sample(targets.masks[:, None], by_target.flatten(1, 2))[:, 0]
        truth = truth.unflatten(1, (layers, -1)).transpose(0, 1)

        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=2)
        inside = logits.sigmoid()
        both, area = (inside * truth).sum(dim=2), inside.sum(dim=2) + truth.sum(dim=2)
        dice = 1 - (2 * both + 1) / (area + 1)
        losses = _by_layer("loss_mask", (entropy * found).sum(dim=1) / divisors.targets)
        losses.update(_by_layer("loss_dice", (dice * found).sum(dim=1) / divisors.targets))
        return losses

    @torch.no_grad()
    def _important_points(
        self, masks: Tensor, of_clips: list[int], draws: Sequence[torch.Generator] | None
    ) -> Tensor:
        """[L * M, P, 2]: the least certain of many random points, and some random ones (PointRend).

        masks: [L, M, h, w] logits; of_clips: how many of the M are of each clip.
        """
        settings = self.settings
        uncertain = int(settings.mask_points * settings.importance)
        numbers = (
            int(settings.mask_points * settings.oversample),
            settings.mask_points - uncertain,
        )
        many, others = (masks.new_empty(*masks.shape[:2], number, 2) for number in numbers)
        for points in (many, others):
            _draw(points, 1, of_clips, draws)
        points = many.flatten(0, 1)
        certainty = _sample(masks.flatten(0, 1)[:, None], points)[:, 0].abs()
        best = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices
        best = points.gather(1, best[:, :, None].expand(-1, -1, 2))
        return torch.cat([best, others.flatten(0, 1)], dim=1)

    def consistency_losses(self, out: ComboOutput, divisors: Divisors) -> dict[str, Tensor]:
        """L_ada of the prediction sets before the last, over all valid frames (Eq. 6-7)."""
        first = 0 if self.consistency.initial else 1
        masks = out.masks
        if masks.shape[2] < first + 2 or self.weights["loss_cosine"] == 0:
            return {}
        # Of the last set, too: leaving it out would cost another array of the masks' size.
        loss = self.consistency.loss(masks, out.valid, divisors.consistency).unbind()
        return {f"loss_cosine_{i}": loss[i] for i in range(first, len(loss) - 1)}


def _padded(flags: np.ndarray, frames: int) -> np.ndarray:
    """[B, T', ...] bool -> [B, T, ...], False for the frames at the end."""
    missing = frames - flags.shape[1]
    return np.pad(flags, [(0, 0), (0, missing), *[(0, 0)] * (flags.ndim - 2)])


def _draw(
    points: Tensor, dim: int, of_clips: list[int], draws: Sequence[torch.Generator] | None
) -> None:
    """Fills points with random numbers, 0..1. of_clips: how many along `dim` are of each clip."""
    if draws is None:
        points.uniform_()
        return
    for part, generator in zip(points.split(of_clips, dim), draws, strict=True):
        part.uniform_(generator=generator)


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """maps: [R, C, h, w]; points: [R, P, 2], (x, y) in 0..1. Returns [R, C, P], bilinear."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False)[..., 0]


def _by_layer(name: str, values: Tensor) -> dict[str, Tensor]:
    """The last layer's loss has the bare name, those before it their number."""
    each: Sequence[Tensor] = values.unbind()
    losses = {name: each[-1]}
    losses.update({f"{name}_{i}": value for i, value in enumerate(each[:-1])})
    return losses
