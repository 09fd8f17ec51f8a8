"""M_J and M_F in every protocol in use, counted in one pass over the predictions.

M_J is a mean intersection over union, M_F a mean F-measure with beta^2 = 0.3. Published numbers
differ in what the means run over, so much that they cannot be compared (one model: 78.8 and 89.4).
Each clip is therefore counted once, into numbers from which every protocol follows, and `result`
gives all of them side by side under their names; `ObjectMetrics` and `SemanticMetrics` list theirs.

Pixels labelled 255 count nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

BETA2 = 0.3
THRESHOLDS = 255
IGNORED = 255

Counts = TypeVar("Counts", "ObjectCounts", "SemanticCounts")

_EDGES = THRESHOLDS + 1
_HALF = THRESHOLDS // 2 + 1
_CELLS = 1 << 16
"""Cells of the table that finds a score's place among the edges; see `_edges_reached`."""


@dataclass(frozen=True)
class Score:
    """M_J and M_F of one protocol, 0..1; M_F is None where the protocol has none."""

    M_J: float
    M_F: float | None

    def rounded(self, digits: int = 4) -> "Score":
        """As the public evaluators print it."""
        f = None if self.M_F is None else round(self.M_F, digits)
        return Score(round(self.M_J, digits), f)


@dataclass(frozen=True)
class Result:
    """What a split scored.

    protocols: by name, see `ObjectMetrics` and `SemanticMetrics`.  clips: one score a clip in the
    order of the updates, by the protocol "avsbench" as if it were the only clip.
    false_positive_rate: share of the clips with nothing audible in sight in which something is
    segmented; None when there is no such clip.
    """

    protocols: dict[str, Score]
    clips: list[Score]
    false_positive_rate: float | None


def foreground(scores: Tensor) -> Tensor:
    """Probability of the object: [..., 2, H, W] class scores -> [..., H, W], softmax over the two.

    The scores are COMBO's sums over queries, so the result is nearly a step function.
    """
    if scores.ndim < 3 or scores.shape[-3] != 2:
        raise ValueError(f"scores must be [..., 2, H, W], not {list(scores.shape)}")
    return scores.float().softmax(dim=-3).select(-3, 1)


# --- counting one clip ------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectCounts:
    """One clip of two classes, counted; float64 on the CPU.

    The axis of 255 runs over the thresholds linspace(0, 1, 255), where a pixel belongs to the
    prediction when p >= threshold.

    hits: [T, 255] object pixels in the prediction.  chosen: [T, 255] pixels in the prediction.
    overlap, segmented: [T] the same two at p > 0.5.  truth, pixels: [T] object pixels, all pixels.
    """

    hits: Tensor
    chosen: Tensor
    overlap: Tensor
    segmented: Tensor
    truth: Tensor
    pixels: Tensor

    @property
    def has_object(self) -> Tensor:
        """[T] bool: the frame's truth is not empty."""
        return self.truth > 0

    def j_per_frame(self) -> Tensor:
        """Intersection over union of each frame, [T]; of the background where truth is empty.

        With an empty truth the union with anything predicted would give 0 however little it is; the
        benchmark counts (pixels predicted background) / (all pixels) instead.
        """
        of_object = self.overlap / (self.truth + self.segmented - self.overlap).clamp(min=1)
        of_background = 1 - self.segmented / self.pixels
        return torch.where(self.has_object, of_object, of_background)

    def f_curves(self) -> Tensor:
        """F-measure of each frame at each threshold, [T, 255]; 0 where the truth is empty."""
        return _f_measure(self.hits, self.chosen, self.truth[:, None])


def count_objects(probability: Tensor, labels: Tensor) -> ObjectCounts:
    """Count a clip once for all thresholds.

    probability: [T, H, W] in 0..1, of the object.  labels: [T, H, W] uint8, 0, 1 or 255 (ignored).
    Raises ValueError for other shapes, types, values, and frames without a labelled pixel.
    """
    _check_pair(probability, labels)
    lowest, highest = probability.aminmax()
    if not bool((lowest >= 0) & (highest <= 1)):  # NaN fails both
        raise ValueError("probabilities must lie in 0..1")
    kind = labels + 1  # in bytes: ignored 0, background 1, object 2
    if bool(kind.max() > 2):
        raise ValueError("labels must be 0, 1 or 255 (ignored)")
    # One histogram a frame over (kind of pixel, edges reached) holds all that a comparison for each
    # threshold would find.
    cells = _edges_reached(probability.float()).add_(kind.int(), alpha=_EDGES + 1)
    length = 3 * (_EDGES + 1)
    histogram = torch.stack([torch.bincount(cell, minlength=length) for cell in cells.flatten(1)])
    histogram = histogram.view(-1, 3, _EDGES + 1)[:, 1:].cpu().double()
    totals = histogram.sum(dim=2)
    if not bool(totals.any(dim=1).all()):
        raise ValueError("a frame without a labelled pixel cannot be scored")
    at_least = histogram.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:]
    above_half = at_least[..., _HALF]
    at_least = torch.cat([at_least[..., :_HALF], at_least[..., _HALF + 1 :]], dim=-1)
    return ObjectCounts(
        hits=at_least[:, 1],
        chosen=at_least.sum(dim=1),
        overlap=above_half[:, 1],
        segmented=above_half.sum(dim=1),
        truth=totals[:, 1],
        pixels=totals.sum(dim=1),
    )


@dataclass(frozen=True)
class SemanticCounts:
    """One clip of C classes, counted per frame and class: each [T, C] float64 on the CPU."""

    overlap: Tensor
    segmented: Tensor
    truth: Tensor

    @property
    def union(self) -> Tensor:
        return self.segmented + self.truth - self.overlap


def count_classes(scores: Tensor, labels: Tensor) -> SemanticCounts:
    """Count a clip whose prediction is the class of the highest score, of equals the first.

    scores: [T, C, H, W], C <= 255.  labels: [T, H, W] uint8 below C, or 255 (ignored).
    Raises ValueError for other shapes, types and values, and for scores that are NaN.
    """
    if scores.ndim != 4 or not 1 <= scores.shape[1] <= IGNORED:
        raise ValueError(f"scores must be [T, C, H, W], C <= 255, not {list(scores.shape)}")
    best = scores.amax(dim=1)
    _check_pair(best, labels)
    if bool(best.isnan().any()):
        raise ValueError("scores must not be NaN")
    predicted = torch.stack(list(map(_first_class_of, scores, best)))
    return count_predicted(predicted, labels, scores.shape[1])


def count_predicted(predicted: Tensor, labels: Tensor, classes: int) -> SemanticCounts:
    """Count a clip whose class is known for each pixel.

    predicted: [T, H, W] uint8 below classes <= 255.  labels: [T, H, W] uint8 below it, or 255
    (ignored). Raises ValueError for other shapes, types and values.
    """
    _check_pair(predicted, labels)
    ignored = labels == IGNORED
    if bool((labels >= classes).logical_and_(~ignored).any()):
        raise ValueError(f"labels must be below {classes} or 255 (ignored)")
    if bool((predicted >= classes).any()):
        raise ValueError(f"predicted classes must be below {classes}")
    frames = len(labels)
    # A confusion matrix a frame, with one more row for the ignored pixels.
    cells = labels.long().masked_fill_(ignored, classes) * classes + predicted
    cells += (classes + 1) * classes * _frame_numbers(labels)
    confusion = torch.bincount(cells.flatten(), minlength=frames * (classes + 1) * classes)
    confusion = confusion.view(frames, classes + 1, classes)[:, :classes].cpu().double()
    return SemanticCounts(
        overlap=confusion.diagonal(dim1=1, dim2=2),
        segmented=confusion.sum(dim=1),
        truth=confusion.sum(dim=2),
    )


# --- the protocols ----------------------------------------------------------------------------


@dataclass
class ObjectMetrics:
    """M_J and M_F of S4 and MS3, clip by clip.

    Protocols of `result`:

    - "avsbench": the benchmark's and COMBO's. J per frame (background where the truth is empty),
      mean over the frames of a batch, mean over batches. F curves over 255 thresholds, mean over
      the frames of a batch that have an object, the maximum, mean over batches; a batch without any
      object counts F = 0. Both depend on `clips_per_batch`; COMBO evaluates with 1.
    - "frame": every frame once. J as above; F curves averaged over all frames with an object, then
      the maximum: one threshold for the data set.
    - "frame_with_object": the same without the frames whose truth is empty.
    - "dataset": pixels of all frames in one pot, of the object.
    - "dataset_two_classes": the mean of that IoU and the background's; no M_F.
    """

    clips: list[ObjectCounts] = field(default_factory=list)
    false_alarms: list[bool] = field(default_factory=list)

    def update(
        self,
        scores: Tensor,
        labels: Tensor,
        annotated: Tensor | None = None,
        audible: bool = True,
    ) -> Score:
        """Count one clip and return its own score.

        scores: [T, 2, H, W] class scores.  labels: [T, H, W] uint8, 0, 1 or 255 (ignored).
        annotated: [T] bool, the frames to count; all by default.  audible: False when the clip was
        given a sound of nothing in sight, whatever its labels say; it then counts for the false
        positive rate.
        """
        scores, labels = _annotated(scores, labels, annotated)
        return self.add(foreground(scores), labels, audible)

    def add(self, probability: Tensor, labels: Tensor, audible: bool = True) -> Score:
        """As `update`, of the object's probability [T, H, W], 0..1; all frames count."""
        counts = count_objects(probability, labels)
        self.clips.append(counts)
        if not audible or not bool(counts.has_object.any()):
            self.false_alarms.append(bool(counts.segmented.any()))
        return _batch_score([counts])

    def result(self, clips_per_batch: int = 1) -> Result:
        """All protocols over the clips so far. Raises ValueError when there is none."""
        frames = _join(self.clips)
        starts = range(0, len(self.clips), clips_per_batch)
        batches = [_batch_score(self.clips[start : start + clips_per_batch]) for start in starts]
        j, has_object = frames.j_per_frame(), frames.has_object
        f = _best_mean_f(frames)
        truth, pixels = frames.truth.sum(), frames.pixels.sum()
        overlap, segmented = frames.overlap.sum(), frames.segmented.sum()
        union = truth + segmented - overlap
        # Nothing there and nothing found is a full agreement.
        of_object = _ratio(overlap, union, empty=1.0)
        of_background = _ratio(pixels - union, pixels - overlap, empty=1.0)
        pooled = _f_measure(frames.hits.sum(dim=0), frames.chosen.sum(dim=0), truth)
        with_object = _ratio(j[has_object].sum(), has_object.sum(), empty=0.0)
        return Result(
            protocols={
                "avsbench": _mean_score(batches),
                "frame": Score(float(j.mean()), f),
                "frame_with_object": Score(with_object, f),
                "dataset": Score(of_object, float(pooled.max())),
                "dataset_two_classes": Score((of_object + of_background) / 2, None),
            },
            clips=[_batch_score([clip]) for clip in self.clips],
            false_positive_rate=_share(self.false_alarms),
        )


@dataclass
class SemanticMetrics:
    """M_J and M_F of AVSS, clip by clip; class 0 is the background.

    Per frame and class an IoU and an F-measure (0 where undefined); a class counts in a frame when
    it is in the truth or in the prediction, and scores the mean over the frames it counts in.
    Protocols of `result`, each a mean over classes:

    - "avsbench": all classes, the background included; a class that never counted scores 0.
    - "avsbench_without_background": the same without class 0.
    - "avsbench_published_without_background": without the LAST class, which is what the public
      code logs under the name "noBg".
    - "seen_classes": all classes that counted somewhere.
    - "dataset": the pixels of all frames in one pot, over the classes seen.
    """

    classes: int
    clips: list[SemanticCounts] = field(default_factory=list)
    false_alarms: list[bool] = field(default_factory=list)

    def update(
        self,
        scores: Tensor,
        labels: Tensor,
        annotated: Tensor | None = None,
        audible: bool = True,
    ) -> Score:
        """Count one clip and return its own score, the mean over the classes it shows or predicts.

        scores: [T, C, H, W].  labels: [T, H, W] uint8.  annotated, audible: as for ObjectMetrics.
        """
        scores, labels = _annotated(scores, labels, annotated)
        if scores.ndim != 4 or scores.shape[1] != self.classes:
            raise ValueError(f"scores must be [T, {self.classes}, H, W], not {list(scores.shape)}")
        return self._add(count_classes(scores, labels), audible)

    def add(self, predicted: Tensor, labels: Tensor, audible: bool = True) -> Score:
        """As `update`, of each pixel's class [T, H, W] uint8; all frames count."""
        return self._add(count_predicted(predicted, labels, self.classes), audible)

    def _add(self, counts: SemanticCounts, audible: bool) -> Score:
        self.clips.append(counts)
        if not audible or not bool(counts.truth[:, 1:].any()):
            self.false_alarms.append(bool(counts.segmented[:, 1:].any()))
        return _clip_score(counts)

    def per_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """IoU, F-measure and the number of frames it counted in of each class, each [C] float64."""
        return _class_means(_join(self.clips))

    def result(self) -> Result:
        """All protocols over the clips so far. Raises ValueError when there is none."""
        frames = _join(self.clips)
        j, f, count = _class_means(frames)
        seen = count > 0
        overlap, segmented, truth, union = (
            part.sum(dim=0)[seen]
            for part in (frames.overlap, frames.segmented, frames.truth, frames.union)
        )
        return Result(
            protocols={
                "avsbench": _mean_of(j, f),
                "avsbench_without_background": _mean_of(j[1:], f[1:]),
                "avsbench_published_without_background": _mean_of(j[:-1], f[:-1]),
                "seen_classes": _mean_of(j[seen], f[seen]),
                "dataset": _mean_of(overlap / union, _f_measure(overlap, segmented, truth)),
            },
            clips=[_clip_score(clip) for clip in self.clips],
            false_positive_rate=_share(self.false_alarms),
        )


# --- means ------------------------------------------------------------------------------------


def _f_measure(hits: Tensor, chosen: Tensor, truth: Tensor) -> Tensor:
    """(1 + b2) P R / (b2 P + R) with P = hits / chosen and R = hits / truth; 0 where undefined."""
    return (1 + BETA2) * hits / (BETA2 * truth + chosen).clamp(min=1e-20)


def _best_mean_f(frames: ObjectCounts) -> float:
    """Maximum over the thresholds of the mean F over frames with an object; 0 if there is none."""
    curves = frames.f_curves()[frames.has_object]
    return float(curves.mean(dim=0).max()) if len(curves) else 0.0


def _batch_score(clips: Sequence[ObjectCounts]) -> Score:
    frames = _join(clips)
    return Score(float(frames.j_per_frame().mean()), _best_mean_f(frames))


def _class_means(frames: SemanticCounts) -> tuple[Tensor, Tensor, Tensor]:
    """IoU and F of each class over the frames it counts in, and how many those are: each [C]."""
    union = frames.union
    count = (union > 0).sum(dim=0)
    j = (frames.overlap / union.clamp(min=1)).sum(dim=0)
    f = _f_measure(frames.overlap, frames.segmented, frames.truth).sum(dim=0)
    return j / count.clamp(min=1), f / count.clamp(min=1), count


def _clip_score(clip: SemanticCounts) -> Score:
    j, f, count = _class_means(clip)
    return _mean_of(j[count > 0], f[count > 0])


def _mean_of(j: Tensor, f: Tensor) -> Score:
    return Score(float(j.mean()), float(f.mean()))


def _mean_score(scores: Sequence[Score]) -> Score:
    f = [score.M_F for score in scores if score.M_F is not None]
    return Score(sum(score.M_J for score in scores) / len(scores), sum(f) / len(f))


def _ratio(part: Tensor, whole: Tensor, empty: float) -> float:
    return float(part / whole) if float(whole) else empty


def _share(happened: Sequence[bool]) -> float | None:
    return sum(happened) / len(happened) if happened else None


def _join(clips: Sequence[Counts]) -> Counts:
    """All frames of several clips as one."""
    if not clips:
        raise ValueError("no clip has been counted")
    parts = {part.name: [getattr(clip, part.name) for clip in clips] for part in fields(clips[0])}
    return type(clips[0])(**{name: torch.cat(values) for name, values in parts.items()})


# --- pixels -----------------------------------------------------------------------------------


def _check_pair(values: Tensor, labels: Tensor) -> None:
    if values.ndim != 3 or values.shape != labels.shape or labels.dtype != torch.uint8:
        raise ValueError(
            f"scores of {list(values.shape)} pixels and labels {list(labels.shape)} "
            f"{labels.dtype} do not fit: labels must be [T, H, W] uint8 of the scores' size"
        )
    if labels.numel() == 0:
        raise ValueError("a clip without pixels cannot be scored")


def _annotated(scores: Tensor, labels: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor]:
    labels = labels.to(scores.device)
    if annotated is None:
        return scores, labels
    if annotated.dtype != torch.bool or annotated.shape != labels.shape[:1]:
        raise ValueError(f"annotated must be [{len(labels)}] bool")
    chosen = annotated.to(scores.device)
    return scores[chosen], labels[chosen]


def _frame_numbers(labels: Tensor) -> Tensor:
    return torch.arange(len(labels), dtype=torch.int32, device=labels.device)[:, None, None]


def _first_class_of(scores: Tensor, best: Tensor) -> Tensor:
    """First class that has the best score: [C, H, W], [H, W] -> [H, W] uint8.

    What argmax gives, at a third of its time on a CPU.
    """
    ranks = torch.arange(len(scores), 0, -1, device=scores.device).to(torch.uint8)
    is_best = (scores == best).view(torch.uint8)
    return len(scores) - is_best.mul_(ranks[:, None, None]).amax(dim=0)


def _edges() -> Tensor:
    """Where a score begins to count more: the thresholds and the first number above one half.

    [256] float32, ascending.  p > 0.5 is the same as p >= the number after 0.5, which makes the
    condition of the IoU one more threshold; it stands at index `_HALF`.
    """
    after_half = torch.tensor([0.5]).nextafter(torch.tensor([1.0]))
    return torch.cat([torch.linspace(0, 1, THRESHOLDS), after_half]).sort().values


def _edges_reached(probability: Tensor) -> Tensor:
    """How many edges e have p >= e: float32 in 0..1 -> int32 of the same shape, 1..256.

    The same as a binary search over the edges at a tenth of its time: the first 16 bits of p name
    a cell of a table, and only in the few cells with an edge inside must p be compared.
    """
    flat = probability.flatten()
    # A multiplication by a power of two is exact, so p lies in its cell for certain.
    reached = _edge_table(flat.device).index_select(0, (flat * _CELLS).int())
    split = (reached == 0).nonzero().squeeze(1)
    edges = _edges().to(flat.device)
    reached[split] = torch.bucketize(flat[split], edges, right=True, out_int32=True)
    return reached.view(probability.shape)


@cache
def _edge_table(device: torch.device) -> Tensor:
    """Edges reached in each cell of 2^-16 of 0..1, 0 where one lies inside: [65537] int32."""
    starts = torch.arange(_CELLS + 1, dtype=torch.float32) / _CELLS
    edges = _edges()  # made on the CPU, so that they are the same numbers on every device
    reached = torch.bucketize(starts, edges, right=True, out_int32=True)
    before_next = torch.bucketize(starts[1:], edges, right=False, out_int32=True)
    reached[:-1].masked_fill_(before_next != reached[:-1], 0)
    return reached.to(device)
