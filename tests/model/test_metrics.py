"""M_J and M_F: the published evaluators' numbers, and what the protocols do differently."""

# ruff: noqa: SIM300 -- M_J and M_F are the names of scores, not of constants.

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from combo.model.metrics import (
    IGNORED,
    ObjectMetrics,
    SemanticMetrics,
    count_classes,
    count_objects,
    foreground,
)

DATA = Path(__file__).parents[1] / "data" / "metrics"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "combo" / "metrics.npz"

seeds = st.integers(0, 2**32 - 1)


def scores_of(probability: Tensor) -> Tensor:
    """Class scores whose softmax is nearly this probability: [T, H, W] -> [T, 2, H, W]."""
    return torch.stack([torch.zeros_like(probability), probability.logit(eps=1e-6)], dim=1)


def certain(prediction: Tensor) -> Tensor:
    """Scores of a network that is sure: [T, H, W] of 0 and 1 -> [T, 2, H, W]."""
    return torch.stack([1 - prediction, prediction], dim=1).float() * 100


def f_by_255_comparisons(probability: Tensor, truth: Tensor) -> Tensor:
    """The F-measure of one frame as its definition says, [255] float64."""
    curve: list[float] = []
    for threshold in torch.linspace(0, 1, 255):
        chosen = probability >= threshold
        hits = float((chosen & (truth == 1)).sum())
        if hits == 0:
            curve.append(0.0)
            continue
        precision, recall = hits / float(chosen.sum()), hits / float((truth == 1).sum())
        curve.append(1.3 * precision * recall / (0.3 * precision + recall))
    return torch.tensor(curve, dtype=torch.float64)


# --- two classes ------------------------------------------------------------------------------


@pytest.mark.golden
def test_soft_masks_score_as_in_the_published_evaluator() -> None:
    golden = np.load(DATA / "soft.npz")
    counts = count_objects(torch.from_numpy(golden["pred"]), torch.from_numpy(golden["gt"]))
    j, curves = counts.j_per_frame(), counts.f_curves()
    with_object = counts.has_object
    assert with_object.tolist() == [True, True, False, True, True, True, False, True]
    np.testing.assert_allclose(j.numpy(), golden["mask_iou_per_frame"], atol=1e-6)
    np.testing.assert_allclose(float(j.mean()), golden["mask_iou"], atol=1e-6)
    best = curves.max(dim=1).values
    np.testing.assert_allclose(best.numpy(), golden["fmeasure_per_frame"], atol=1e-6)
    mean_curve = curves[with_object].mean(dim=0)
    np.testing.assert_allclose(float(mean_curve.max()), golden["fmeasure"], atol=1e-6)
    chosen = [0, 5]
    precision = counts.hits[chosen] / counts.chosen[chosen].clamp(min=1e-20)
    recall = counts.hits[chosen] / counts.truth[chosen, None]
    np.testing.assert_allclose(precision.numpy(), golden["precision_frames_0_5"], atol=1e-6)
    np.testing.assert_allclose(recall.numpy(), golden["recall_frames_0_5"], atol=1e-6)


@pytest.mark.golden
def test_a_clip_with_an_empty_frame_scores_as_in_the_published_evaluator() -> None:
    golden = np.load(DATA / "object_clip.npz")
    metrics = ObjectMetrics()
    scores, labels = torch.from_numpy(golden["scores"]).float(), torch.from_numpy(golden["labels"])
    score = metrics.update(scores, labels)
    np.testing.assert_allclose([score.M_J, score.M_F], golden["miou_fscore"], atol=1e-6)
    assert metrics.result().clips == [score]


@pytest.mark.golden
def test_all_published_object_clips() -> None:
    if not SHARED.exists():
        pytest.skip("the golden data beside the repository is not there")
    golden = np.load(SHARED)
    metrics = ObjectMetrics()
    for scores, labels in zip(golden["clips.sem_seg"], golden["clips.gt"], strict=True):
        metrics.update(torch.from_numpy(scores).float(), torch.from_numpy(labels))
    result = metrics.result()
    per_clip = [[clip.M_J, clip.M_F] for clip in result.clips]
    np.testing.assert_allclose(per_clip, golden["clips.per_clip_miou_fscore"], atol=1e-6)
    rounded = result.protocols["avsbench"].rounded()
    assert rounded.M_J == float(golden["clips.final_mIoU"])
    assert rounded.M_F == float(golden["clips.final_f_score"])


@given(seed=seeds, levels=st.sampled_from([1, 2, 254, 1000, 0]))
@settings(max_examples=25)
def test_one_histogram_equals_255_comparisons(seed: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand((2, 9, 11), generator=generator)
    if levels:  # many pixels exactly on a threshold, at 0, 1/2 or 1
        probability = (probability * levels).round() / levels
    labels = (torch.rand((2, 9, 11), generator=generator) < 0.4).to(torch.uint8)
    labels[0, 0, 0] = 1
    counts = count_objects(probability, labels)
    for frame in range(2):
        expected = f_by_255_comparisons(probability[frame], labels[frame])
        torch.testing.assert_close(counts.f_curves()[frame], expected, atol=1e-12, rtol=0)
    assert torch.equal(counts.segmented, (probability > 0.5).sum((1, 2)).double())


def test_scores_beside_a_threshold_fall_on_the_right_side() -> None:
    thresholds = torch.linspace(0, 1, 255)
    half = torch.tensor(0.5)
    below = thresholds.nextafter(torch.tensor(0.0))
    above = thresholds.nextafter(torch.tensor(1.0))
    probability = torch.cat([thresholds, below, above, half.nextafter(half * 2)[None]])[None, None]
    counts = count_objects(probability, torch.ones_like(probability, dtype=torch.uint8))
    expected = (probability.flatten()[:, None] >= thresholds).sum(0)
    assert torch.equal(counts.chosen[0], expected.double())
    assert counts.segmented.item() == (probability > 0.5).sum()


def test_exactly_one_half_is_background() -> None:
    counts = count_objects(torch.full((1, 4, 4), 0.5), torch.ones(1, 4, 4, dtype=torch.uint8))
    assert counts.j_per_frame().tolist() == [0.0]
    assert counts.chosen[0, 127] == 16


def test_an_empty_truth_scores_the_background_for_j_and_stays_out_of_f() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[0, :2] = 1
    prediction = labels.clone()
    prediction[1, 0] = 1  # a quarter of the empty frame is wrong
    score = ObjectMetrics().update(certain(prediction), labels)
    assert score.M_J == pytest.approx((1 + 0.75) / 2)
    assert score.M_F == pytest.approx(1.0)


def test_ignored_pixels_count_nowhere() -> None:
    generator = torch.Generator().manual_seed(5)
    probability = torch.rand((3, 8, 10), generator=generator)
    labels = (torch.rand((3, 8, 10), generator=generator) < 0.5).to(torch.uint8)
    cut = count_objects(probability[..., :6], labels[..., :6])
    labels[..., 6:] = IGNORED
    whole = count_objects(probability, labels)
    assert torch.equal(whole.f_curves(), cut.f_curves())
    assert torch.equal(whole.j_per_frame(), cut.j_per_frame())


def test_frames_without_annotation_are_left_out() -> None:
    generator = torch.Generator().manual_seed(6)
    scores = torch.randn((5, 2, 8, 8), generator=generator)
    labels = (torch.rand((5, 8, 8), generator=generator) < 0.5).to(torch.uint8)
    annotated = torch.tensor([True, False, False, True, False])
    some, alone = ObjectMetrics(), ObjectMetrics()
    assert some.update(scores, labels, annotated) == alone.update(scores[[0, 3]], labels[[0, 3]])
    assert some.result() == alone.result()


def test_f_depends_on_the_batch_in_the_published_protocol_and_not_per_frame() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.uint8)
    labels[:, :5] = 1
    metrics = ObjectMetrics()
    # Each clip is perfect at thresholds of its own: below 0.3, above 0.7.
    metrics.update(scores_of(torch.where(labels == 1, 0.3, 0.1)), labels)
    metrics.update(scores_of(torch.where(labels == 1, 0.9, 0.7)), labels)
    metrics.update(scores_of(torch.full((1, 10, 10), 0.2)), torch.zeros_like(labels))
    single, all_in_one = metrics.result(), metrics.result(clips_per_batch=3)
    # Two perfect maxima and a clip without any object, which counts 0.
    assert single.protocols["avsbench"].M_F == pytest.approx(2 / 3)
    f = all_in_one.protocols["avsbench"].M_F
    assert f is not None
    assert f < 0.85
    assert f == all_in_one.protocols["frame"].M_F == single.protocols["frame"].M_F
    assert single.protocols["avsbench"].M_J == pytest.approx((0 + 0.5 + 1) / 3)
    assert single.protocols["frame_with_object"].M_J == pytest.approx(0.25)


def test_frames_and_clips_weigh_differently_when_clips_have_other_lengths() -> None:
    right, wrong = torch.ones(4, 6, 6, dtype=torch.uint8), torch.zeros(1, 6, 6, dtype=torch.uint8)
    metrics = ObjectMetrics()
    metrics.update(certain(right), right)
    metrics.update(certain(wrong), right[:1])
    protocols = metrics.result().protocols
    assert protocols["avsbench"].M_J == pytest.approx(1 / 2)
    assert protocols["frame"].M_J == pytest.approx(4 / 5)


def test_data_set_level_numbers_put_all_pixels_in_one_pot() -> None:
    small, large = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    small[:, 0, 0] = 1  # one pixel, missed
    large[:, :9] = 1  # ninety pixels, found
    metrics = ObjectMetrics()
    metrics.update(certain(torch.zeros_like(small)), small)
    metrics.update(certain(large), large)
    protocols = metrics.result().protocols
    assert protocols["frame"].M_J == pytest.approx(0.5)
    assert protocols["dataset"].M_J == pytest.approx(90 / 91)
    background = (99 + 10) / (100 + 10)
    two = protocols["dataset_two_classes"]
    assert two.M_J == pytest.approx((90 / 91 + background) / 2)
    assert two.M_F is None
    assert two.rounded().M_F is None
    precision, recall = 1.0, 90 / 91
    expected = 1.3 * precision * recall / (0.3 * precision + recall)
    assert protocols["dataset"].M_F == pytest.approx(expected)


def test_the_false_positive_rate_counts_clips_with_nothing_audible_in_sight() -> None:
    nothing = torch.zeros(2, 4, 4, dtype=torch.uint8)
    something = nothing.clone()
    something[1, 0, 0] = 1
    metrics = ObjectMetrics()
    metrics.update(certain(something), something)
    assert metrics.result().false_positive_rate is None
    metrics.update(certain(nothing), nothing)
    metrics.update(certain(nothing), nothing)
    metrics.update(certain(something), nothing)
    assert metrics.result().false_positive_rate == pytest.approx(1 / 3)
    # A clip that got a foreign sound counts too, though its labels show an object.
    metrics.update(certain(something), something, audible=False)
    assert metrics.result().false_positive_rate == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("probability", "label", "message"),
    [(float("nan"), 1, r"0\.\.1"), (1.5, 1, r"0\.\.1"), (-0.5, 1, r"0\.\.1"), (0.5, 2, "0, 1 or")],
)
def test_values_that_mean_nothing_are_refused(probability: float, label: int, message: str) -> None:
    values, labels = torch.full((1, 2, 2), 0.5), torch.ones(1, 2, 2, dtype=torch.uint8)
    values[0, 1, 1] = probability
    labels[0, 0, 1] = label
    with pytest.raises(ValueError, match=message):
        count_objects(values, labels)


def test_clips_that_do_not_fit_are_refused() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="do not fit"):
        ObjectMetrics().update(torch.zeros(2, 2, 5, 4), labels)
    with pytest.raises(ValueError, match="do not fit"):
        ObjectMetrics().update(torch.zeros(2, 2, 4, 4), labels.long())
    with pytest.raises(ValueError, match="2, H, W"):
        ObjectMetrics().update(torch.zeros(2, 71, 4, 4), labels)
    with pytest.raises(ValueError, match="without pixels"):
        ObjectMetrics().update(torch.zeros(2, 2, 4, 4), labels, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="without a labelled pixel"):
        ObjectMetrics().update(torch.zeros(2, 2, 4, 4), torch.full_like(labels, IGNORED))
    with pytest.raises(ValueError, match="no clip"):
        ObjectMetrics().result()
    with pytest.raises(ValueError, match="no clip"):
        SemanticMetrics(3).result()
    with pytest.raises(ValueError, match="annotated"):
        ObjectMetrics().update(torch.zeros(2, 2, 4, 4), labels, torch.ones(3, dtype=torch.bool))


def test_the_foreground_is_the_softmax_of_the_second_score() -> None:
    scores = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    assert foreground(scores).item() == pytest.approx(1 / (1 + np.exp(-2)))


# --- many classes -----------------------------------------------------------------------------


def golden_semantic(file: Path, prefix: str, scores: str, frames: str) -> SemanticMetrics:
    golden = np.load(file)
    all_scores = torch.from_numpy(golden[prefix + scores]).float() / 16
    labels = torch.from_numpy(golden[prefix + "gt" if prefix else "labels"])
    metrics = SemanticMetrics(71)
    lengths = golden[prefix + frames].tolist()
    for some, truth in zip(all_scores.split(lengths), labels.split(lengths), strict=True):
        metrics.update(some, truth)
    return metrics


@pytest.mark.golden
def test_semantic_clips_count_as_in_the_published_evaluator() -> None:
    golden = np.load(DATA / "semantic_clips.npz")
    metrics = golden_semantic(DATA / "semantic_clips.npz", "", "scores_times_16", "frames")
    for index, clip in enumerate(metrics.clips):
        one = SemanticMetrics(71, [clip])
        j, f, count = one.per_class()
        np.testing.assert_array_equal(count.numpy(), golden["class_count"][index])
        # The published sums are float32 sums of up to ten frames.
        np.testing.assert_allclose((j * count).numpy(), golden["iou_sum"][index], rtol=1e-6)
        np.testing.assert_allclose((f * count).numpy(), golden["fscore_sum"][index], rtol=1e-6)


@pytest.mark.golden
def test_all_published_semantic_clips() -> None:
    if not SHARED.exists():
        pytest.skip("the golden data beside the repository is not there")
    golden = np.load(SHARED)
    metrics = golden_semantic(SHARED, "ss.", "sem_seg_int8", "frames_per_clip")
    j, f, _ = metrics.per_class()
    np.testing.assert_allclose(j.numpy(), golden["ss.class_iou"], atol=1e-6)
    np.testing.assert_allclose(f.numpy(), golden["ss.class_fscore"], atol=1e-6)
    protocols = metrics.result().protocols
    everything = protocols["avsbench"]
    without_last = protocols["avsbench_published_without_background"]
    for ours, name in {
        everything.M_J: "mIoU",
        everything.M_F: "f_score",
        without_last.M_J: "mIoU_dropping_last_class",
        without_last.M_F: "f_score_dropping_last_class",
        everything.rounded().M_J: "final_mIoU",
        everything.rounded().M_F: "final_f_score",
    }.items():
        np.testing.assert_allclose(ours, golden[f"ss.{name}"], atol=1e-6)


def one_clip_of_three_classes() -> SemanticMetrics:
    # Frame 1: background and class 1, half of class 1 found. Frame 2: background only, all right.
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[0, :2] = 1
    predicted = torch.zeros(2, 4, 4, dtype=torch.long)
    predicted[0, 0] = 1
    scores = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    metrics = SemanticMetrics(3)
    metrics.update(scores, labels)
    return metrics


def test_a_class_counts_in_the_frames_that_show_or_predict_it() -> None:
    j, f, count = one_clip_of_three_classes().per_class()
    assert count.tolist() == [2, 1, 0]
    assert j.tolist() == pytest.approx([(8 / 12 + 1) / 2, 0.5, 0])
    assert f[1].item() == pytest.approx(1.3 * 1 * 0.5 / (0.3 * 1 + 0.5))


def test_semantic_protocols_differ_in_the_classes_of_the_mean() -> None:
    protocols = one_clip_of_three_classes().result().protocols
    background, one = (8 / 12 + 1) / 2, 0.5
    assert {name: score.M_J for name, score in protocols.items()} == pytest.approx(
        {
            "avsbench": (background + one + 0) / 3,
            "avsbench_without_background": (one + 0) / 2,
            "avsbench_published_without_background": (background + one) / 2,
            "seen_classes": (background + one) / 2,
            "dataset": (24 / 28 + one) / 2,
        }
    )


def test_of_equal_scores_the_first_class_wins() -> None:
    scores = torch.zeros(1, 5, 1, 3)
    scores[0, :, 0, 1] = torch.tensor([0.0, 2, 1, 2, 0])
    counts = count_classes(scores, torch.zeros(1, 1, 3, dtype=torch.uint8))
    assert counts.segmented.tolist() == [[2, 1, 0, 0, 0]]


@given(seed=seeds, classes=st.sampled_from([1, 2, 71, 255]))
@settings(max_examples=20)
def test_classes_are_counted_as_one_by_one(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (2, classes, 5, 6), generator=generator).float()
    labels = torch.randint(0, classes, (2, 5, 6), generator=generator).to(torch.uint8)
    labels[:, :1] = IGNORED
    counts = count_classes(scores, labels)
    predicted = torch.from_numpy(scores.numpy().argmax(axis=1))
    valid = labels != IGNORED
    for one in range(classes):
        chosen, truth = (predicted == one) & valid, (labels == one) & valid
        assert torch.equal(counts.segmented[:, one], chosen.sum((1, 2)).double())
        assert torch.equal(counts.truth[:, one], truth.sum((1, 2)).double())
        assert torch.equal(counts.overlap[:, one], (chosen & truth).sum((1, 2)).double())


def test_semantic_false_positives_and_refusals() -> None:
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    scores = torch.zeros(1, 3, 2, 2)
    metrics = SemanticMetrics(3)
    metrics.update(scores, labels)
    scores[0, 2, 0, 0] = 1
    metrics.update(scores, labels)
    assert metrics.result().false_positive_rate == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="below 3"):
        metrics.update(scores, labels + 3)
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(scores * float("nan"), labels)
    with pytest.raises(ValueError, match="T, 3, H, W"):
        metrics.update(torch.zeros(1, 4, 2, 2), labels)


@pytest.mark.gpu
def test_a_gpu_counts_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(9)
    probability = torch.rand((2, 30, 40), generator=generator)
    labels = (torch.rand((2, 30, 40), generator=generator) < 0.5).to(torch.uint8)
    ours = count_objects(probability.cuda(), labels.cuda())
    assert torch.equal(ours.chosen, count_objects(probability, labels).chosen)
    scores = torch.randn((2, 5, 30, 40), generator=generator).round()
    on_gpu = count_classes(scores.cuda(), labels.cuda())
    assert torch.equal(on_gpu.segmented, count_classes(scores, labels).segmented)
