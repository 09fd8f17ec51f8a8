"""Where protocols say the same they agree, and where they say nothing of order, none counts."""

# ruff: noqa: SIM300 -- M_J and M_F are the names of scores, not of constants.

import random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from combo.model.metrics import IGNORED, ObjectMetrics, Result, SemanticMetrics

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(1, 4), min_size=1, max_size=5)
CLASSES = 4


def objects(seed: int, frames: list[int], empty: bool = True) -> list[tuple[Tensor, Tensor]]:
    """Clips as probabilities and labels [T,5,6], some ignored. empty: some truths are."""
    generator = torch.Generator().manual_seed(seed)
    clips: list[tuple[Tensor, Tensor]] = []
    for count in frames:
        shape = (count, 5, 6)
        labels = (torch.rand(shape, generator=generator) < 0.4).to(torch.uint8)
        if empty:
            labels *= (torch.rand(count, 1, 1, generator=generator) < 0.6).to(torch.uint8)
        labels[torch.rand(shape, generator=generator) < 0.1] = IGNORED
        labels[:, 0, 0] = 0 if empty else 1
        clips.append((torch.rand(shape, generator=generator), labels))
    return clips


def classes(seed: int, frames: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Clips as each pixel's class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    both = [
        torch.randint(0, CLASSES, (2, count, 3, 3), generator=generator).to(torch.uint8)
        for count in frames
    ]
    return [(predicted, labels) for predicted, labels in both]


def of_objects(clips: list[tuple[Tensor, Tensor]], clips_per_batch: int = 1) -> Result:
    metrics = ObjectMetrics()
    for probability, labels in clips:
        metrics.add(probability, labels)
    return metrics.result(clips_per_batch)


def of_classes(clips: list[tuple[Tensor, Tensor]]) -> Result:
    metrics = SemanticMetrics(CLASSES)
    for predicted, labels in clips:
        metrics.add(predicted, labels)
    return metrics.result()


def same(one: Result, two: Result, *names: str) -> None:
    """The protocols of these names, or all, agree; sums may be in another order."""
    for name in names or one.protocols:
        agree(one.protocols[name], two.protocols[name])


def agree(one: object, two: object) -> None:
    for name, value in vars(one).items():
        assert value == (None if value is None else pytest.approx(vars(two)[name], abs=1e-12))


@given(seeds, lengths, st.integers(1, 6))
@settings(max_examples=60)
def test_protocols_of_objects_agree_where_they_say_the_same(
    seed: int, frames: list[int], batch: int
) -> None:
    clips = objects(seed, frames)
    found = of_objects(clips)
    # One clip is its own batch, and so is a batch of all.
    one = of_objects(clips[:1]).protocols
    agree(one["avsbench"], one["frame"])
    agree(one["avsbench"], found.clips[0])
    everything = of_objects(clips, len(clips)).protocols
    agree(everything["avsbench"], everything["frame"])
    # Clips of one length weigh as their frames do.
    alike = of_objects(objects(seed, [3] * len(frames))).protocols
    assert alike["avsbench"].M_J == pytest.approx(alike["frame"].M_J)
    # No frame is empty: none is left out.
    full = of_objects(objects(seed, frames, empty=False)).protocols
    agree(full["frame"], full["frame_with_object"])
    # A single frame is the data set.
    (single,) = objects(seed, [1], empty=False)
    alone = of_objects([single]).protocols
    agree(alone["frame"], alone["dataset"])
    # Only the benchmark's own numbers know of batches.
    others = [name for name in found.protocols if name != "avsbench"]
    same(found, of_objects(clips, batch), *others)


@given(seeds, lengths)
@settings(max_examples=60)
def test_protocols_of_classes_agree_where_they_say_the_same(seed: int, frames: list[int]) -> None:
    clips = classes(seed, frames)
    metrics = SemanticMetrics(CLASSES)
    for predicted, labels in clips:
        metrics.add(predicted, labels)
    protocols = metrics.result().protocols
    j, f, count = metrics.per_class()
    # The means without a class are the whole mean less that class.
    for name, left_out in (
        ("avsbench_without_background", 0),
        ("avsbench_published_without_background", -1),
    ):
        whole, rest = protocols["avsbench"], protocols[name]
        assert whole.M_J * CLASSES == pytest.approx(rest.M_J * (CLASSES - 1) + float(j[left_out]))
        assert (whole.M_F or 0) * CLASSES == pytest.approx(
            (rest.M_F or 0) * (CLASSES - 1) + float(f[left_out])
        )
    seen = int((count > 0).sum())
    assert protocols["avsbench"].M_J * CLASSES == pytest.approx(
        protocols["seen_classes"].M_J * seen
    )
    # A single frame is the data set, and the clip.
    predicted, labels = clips[0]
    alone = of_classes([(predicted[:1], labels[:1])])
    agree(alone.protocols["seen_classes"], alone.protocols["dataset"])
    agree(alone.protocols["seen_classes"], alone.clips[0])


@given(seeds, lengths)
@settings(max_examples=60)
def test_scores_do_not_depend_on_the_order_of_the_clips(seed: int, frames: list[int]) -> None:
    assume(len(frames) > 1)
    for clips, score in ((objects(seed, frames), of_objects), (classes(seed, frames), of_classes)):
        order = list(range(len(clips)))
        random.Random(seed).shuffle(order)
        found, again = score(clips), score([clips[place] for place in order])
        same(found, again)
        assert again.clips == [found.clips[place] for place in order]
        assert again.false_positive_rate == found.false_positive_rate
