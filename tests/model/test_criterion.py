"""The training loss against the public implementation, and against its definition in words."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from combo.model import Combo, ComboOutput, Criterion, parameter_groups
from combo.model.interface import label_values
from combo.model.matching import Targets, match, sample_rows
from combo.model.settings import Fusion, Queries, Sem
from combo.model.state_dicts import combo_key

from .golden import golden_batch
from .near_zero import NearZero, settled
from .test_network import clips, tiny

Arrays = dict[str, np.ndarray]
OPTIM = Path(__file__).parent.parent / "data" / "network" / "r50_s4_optim.json"
CASES = {"first_frame_only": "combo-r50-s4", "fully_annotated": "combo-r50-ms3"}
BITS = {"first_frame_only": "first_frame_only", "fully_annotated": "outputs"}
"""Where masks are zero within float noise, the public side is taken: losses follow from masks."""


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_and_the_first_step_are_the_public_ones(
    case: str, network_state: dict[str, Tensor], network_golden: Callable[[str], Arrays]
) -> None:
    golden = network_golden("loss")
    net = Combo.from_preset(CASES[case], fusion_dropout=0.0).train()
    net.load_state_dict(network_state)
    criterion = Criterion.from_preset(CASES[case])
    labels = torch.from_numpy(golden[f"{case}.labels"])
    batch, labels = golden_batch(case, network_golden("inputs"), labels)
    points = torch.from_numpy(golden["points"])

    with settled(net, NearZero.of(BITS[case]).logits):
        out = net(*batch)
    losses = criterion(out, labels, points=points)
    names = golden[f"{case}.loss_names"].tolist()
    assert set(losses) == set(names)
    for which, ours in (("unweighted", losses), ("weighted", losses.weighted)):
        values = [ours[name].item() for name in names]
        np.testing.assert_allclose(values, golden[f"{case}.loss_{which}"], rtol=1e-4, atol=1e-5)
    assert losses.total.item() == pytest.approx(golden[f"{case}.total_weighted"], rel=1e-4)

    selected = criterion.select(out, labels)
    targets, matched = criterion.match(selected, criterion.costs(selected, points))
    for layer, of_layer in enumerate(matched.numpy()):
        name = "last" if layer == 9 else f"aux{layer}"
        rows = np.stack([targets.frame_of, of_layer, targets.slot.numpy()], axis=1)
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        np.testing.assert_array_equal(rows, golden[f"{case}.match.{name}"])

    losses.total.backward()
    parameters = dict(net.named_parameters())
    norm = torch.stack([p.grad.double().square().sum() for p in parameters.values()]).sum().sqrt()
    assert norm.item() == pytest.approx(golden[f"{case}.total_grad_norm"], rel=1e-4)
    watched = [parameters[combo_key(name)] for name in golden["grad_names"]]
    norms = [p.grad.norm().item() for p in watched]
    np.testing.assert_allclose(norms, golden[f"{case}.grad_norms"], rtol=2e-3)
    for name in [name for name in golden if name.startswith(f"{case}.grad.")]:
        ours = parameters[combo_key(name.removeprefix(f"{case}.grad."))].grad.flatten()[:512]
        expected = golden[name]
        assert np.abs(ours.numpy() - expected).max() <= 1e-2 * expected.std(), name

    if case == golden["step.case"].item():
        before = [p.detach().clone() for p in watched]
        optimiser = torch.optim.AdamW(parameter_groups(net, 1e-4, 0.05))
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimiser.step()
        steps = [(p.detach() - old).norm().item() for p, old in zip(watched, before, strict=True)]
        np.testing.assert_allclose(steps, golden["step.update_norms"], rtol=1e-3)


def test_each_parameter_has_the_public_learning_rate_and_decay() -> None:
    with torch.device("meta"):
        net = Combo.from_preset("combo-r50-s4")
    groups = parameter_groups(net, 1e-4, 0.05)
    ours = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    listed = json.loads(OPTIM.read_text())["groups"]
    assert len(ours) == len(listed) == 440
    for name, lr, decay in listed:
        assert ours[combo_key(name)] == (pytest.approx(lr), decay), name


def test_the_pvt_network_learns_by_the_same_rules() -> None:
    """The public code: encoders at a tenth of the rate; norms and embeddings do not decay."""
    with torch.device("meta"):
        net = Combo.from_preset("combo-pvt-s4")
    groups = parameter_groups(net, 1e-4, 0.05)
    ours = {name: (g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert ours.keys() == {name for name, _ in net.named_parameters()}
    for name, (lr, decay) in ours.items():
        encoder = name.startswith(("siam_encoder.frames.", "siam_encoder.maskiges."))
        assert lr == pytest.approx(1e-5 if encoder else 1e-4), name
        # A PVT's norms all have "norm" in their names, and nothing else in it has.
        if encoder:
            assert decay == (0.0 if ".norm" in name else 0.05), name
    # Per encoder: 4 patch, 4 stage, 2 x 52 block and 49 reduction norms, each weight and bias.
    assert sum(decay == 0.0 and lr < 5e-5 for lr, decay in ours.values()) == 2 * 2 * 161
    embeddings = {
        "mask_decoder.query_feat", "mask_decoder.query_embed", "mask_decoder.level_embed",
        "bilateral_fusion.level_embed", "bilateral_fusion.audio_pos",
    }  # fmt: skip
    assert {ours[f"{name}.weight"] for name in embeddings} == {(1e-4, 0.0)}
    for name in ("pixel_decoder.level_embed", "bilateral_fusion.gamma_v"):
        assert ours[name] == (1e-4, 0.05)


def test_every_parameter_is_in_one_group() -> None:
    with torch.device("meta"):
        net = Combo.from_preset("combo-small-avss", sem="shared")
    grouped = [id(p) for group in parameter_groups(net, 1e-3, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())


# --- behaviour, on small made-up predictions -----------------------------------------------------

SMALL = {"classes": 3, "mask_points": 64, "fidelity": "reference"}


def predictions(
    batch: int = 2, frames: int = 5, queries: int = 4, classes: int = 3, layers: int = 3,
    size: int = 8, valid: Tensor | None = None,
) -> ComboOutput:  # fmt: skip
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    of_sets = (batch, frames, layers, queries)
    both = draw(*of_sets, classes + 1), draw(*of_sets, size, size)
    return ComboOutput(*both, (4 * size, 4 * size), valid)


def labelled(batch: int = 2, frames: int = 5, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randint(0, 3, (batch, frames, 4, 4), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(size // 4, dim=2).repeat_interleave(size // 4, dim=3)


def grid_points(count: int = 64) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(5))


def in_words(out: ComboOutput, labels: Tensor, points: Tensor) -> dict[str, float]:
    """The definition, frame by frame, mask by mask, every assignment tried."""

    def sampled(masks: Tensor) -> Tensor:
        grid = (2 * points - 1)[None, :, None].expand(len(masks), -1, -1, -1)
        return nn.functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]

    losses: dict[str, float] = {}
    for number, layer in enumerate(out.layers):
        suffix = "" if number == len(out.layers) - 1 else f"_{number}"
        entropy = weight = bce = dice = count = 0.0
        for logits, masks, frame in zip(
            layer.class_logits.flatten(0, 1), layer.mask_logits.flatten(0, 1),
            labels.flatten(0, 1), strict=True,
        ):  # fmt: skip
            values = [v for v in frame.unique().tolist() if v != 255]
            truth = sampled(torch.stack([(frame == v).float() for v in values]))
            x = sampled(masks)

            def pair(q: int, t: int, x: Tensor = x, truth: Tensor = truth) -> tuple[float, float]:
                p = x[q].sigmoid()
                e = nn.functional.binary_cross_entropy(p, truth[t]).item()
                overlap = 2 * (p * truth[t]).sum() + 1
                return e, (1 - overlap / (p.sum() + truth[t].sum() + 1)).item()

            best, least = (), float("inf")
            for chosen in itertools.permutations(range(len(x)), len(values)):
                cost = sum(
                    -2 * logits[q].softmax(0)[values[t]].item() + 5 * sum(pair(q, t))
                    for t, q in enumerate(chosen)
                )
                if cost < least:
                    best, least = chosen, cost
            classes = [3] * len(x)
            for t, q in enumerate(best):
                classes[q] = values[t]
                e, d = pair(q, t)
                bce, dice, count = bce + e, dice + d, count + 1
            for q, c in enumerate(classes):
                w = 0.1 if c == 3 else 1.0
                entropy -= w * logits[q].log_softmax(0)[c].item()
                weight += w
        losses[f"loss_ce{suffix}"] = entropy / weight
        losses[f"loss_mask{suffix}"] = bce / count
        losses[f"loss_dice{suffix}"] = dice / count
    return losses


@pytest.mark.parametrize("points", [64, 20, 63], ids="in {} points".format)
def test_the_losses_are_what_the_words_say(points: int) -> None:
    """A product of 64 points is 16 pieces, one of 20 is 4, one of 63 is whole."""
    out, labels, places = predictions(), labelled(), grid_points(points)
    labels[0, 1, :9] = 255
    losses = Criterion.from_preset("combo-r50-ms3", **SMALL)(out, labels, points=places)
    expected = in_words(out, labels, places)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    assert set(losses) - set(expected) == {"loss_cosine_0", "loss_cosine_1"}


def test_losses_are_computed_in_float32_under_autocast() -> None:
    out, labels, points = predictions(), labelled(), grid_points()
    criterion = Criterion.from_preset("combo-r50-ms3", **SMALL)
    exact = criterion(out, labels, points=points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = criterion(out, labels, points=points)
    for name in exact:
        torch.testing.assert_close(half[name], exact[name])


def test_the_order_of_queries_means_nothing() -> None:
    out, labels, points = predictions(), labelled(), grid_points()
    order = torch.tensor([2, 0, 3, 1])
    sets = (each[:, :, :, order] for each in (out.class_sets, out.mask_sets))
    turned = ComboOutput(*sets, out.image_size, None)
    criterion = Criterion.from_preset("combo-r50-ms3", **SMALL)
    one, two = (criterion(o, labels, points=points) for o in (out, turned))
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_a_clip_whose_first_frame_alone_has_labels_teaches_that_frame() -> None:
    out, labels, points = predictions(), labelled(), grid_points()
    criterion = Criterion.from_preset("combo-r50-s4", **SMALL)
    first_only = criterion(out, labels[:, :1], points=points)
    hidden = labels.clone()
    hidden[:, 1:] = 255
    rest_ignored = criterion(out, hidden, points=points)
    by_flag = torch.zeros(2, 5, dtype=torch.bool)
    by_flag[:, 0] = True
    flagged = criterion(out, labels, points=points, annotated=by_flag)
    for name, value in first_only.items():
        for other in (rest_ignored, flagged):
            torch.testing.assert_close(other[name], value)
    everything = criterion(out, labels, points=points)
    assert everything["loss_mask"] != first_only["loss_mask"]


def test_a_ten_frame_clip_is_two_groups_of_five_to_the_reference() -> None:
    long, points = predictions(batch=1, frames=10), grid_points()
    sets = (each.unflatten(1, (2, 5))[0] for each in (long.class_sets, long.mask_sets))
    split = ComboOutput(*sets, long.image_size, None)
    labels = labelled(2, 5)
    criterion = Criterion.from_preset("combo-r50-avss", **SMALL)
    one = criterion(long, labels.flatten(0, 1)[None], points=points)
    two = criterion(split, labels, points=points)
    for name in two:
        torch.testing.assert_close(one[name], two[name])


@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_a_clip_of_another_length_changes_nothing_for_its_neighbours(fidelity: str) -> None:
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    out, labels, points = predictions(valid=valid), labelled(), grid_points()
    criterion = Criterion.from_preset("combo-r50-ms3", **{**SMALL, "fidelity": fidelity})
    expected = criterion(out, labels, points=points)
    for layer in out.layers:
        layer.mask_logits[1, 3:] = 7.0
        layer.class_logits[1, 3:] = -7.0
    labels[1, 3:] = 1
    for name, value in criterion(out, labels, points=points).items():
        torch.testing.assert_close(value, expected[name])


def test_frames_without_an_object_teach_that_there_is_none() -> None:
    out = predictions(batch=1, frames=1)
    labels = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    criterion = Criterion.from_preset("combo-r50-ms3", **SMALL)
    flag = torch.ones(1, 1, dtype=torch.bool)
    losses = criterion(out, labels, points=grid_points(), annotated=flag)
    assert losses["loss_mask"] == 0
    logits = out.class_logits.flatten(0, 2)
    expected = nn.functional.cross_entropy(logits, torch.full((4,), 3))
    torch.testing.assert_close(losses["loss_ce"], expected)
    assert losses.total.isfinite()


@pytest.mark.parametrize("queries", get_args(Queries))
@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize(("sem", "layers"), [*((sem, 1) for sem in get_args(Sem)), ("shared", 0)])
def test_a_network_knows_whether_all_its_parameters_learn(
    fusion: str, queries: str, sem: str, layers: int
) -> None:
    settings = {"fusion": fusion, "queries": queries, "sem": sem, "pixel_layers": layers}
    net = tiny(backbone="resnet10t", mask_points=16, **settings).train()
    frames, maskige, sound = clips(1, 2)
    out = net(frames, None if sem == "off" else maskige, sound)
    labels = torch.zeros(1, 2, 64, 64, dtype=torch.uint8)
    for annotated in (torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)):
        losses = Criterion(net.settings)(out, labels, annotated=annotated)
        found = torch.autograd.grad(
            losses.total, list(net.parameters()), retain_graph=True, allow_unused=True
        )
        assert net.all_learn == all(gradient is not None for gradient in found)


@pytest.mark.parametrize("points", [None, grid_points()], ids=["drawn", "given"])
def test_clips_without_a_label_teach_consistency_alone(points: Tensor | None) -> None:
    out, labels = predictions(), labelled()
    leaves = [sets.requires_grad_() for sets in (out.class_sets, out.mask_sets)]
    criterion = Criterion.from_preset("combo-r50-ms3", **SMALL)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    losses = criterion(out, labels, points, annotated=nothing)
    whole = criterion(out, labels, points)
    assert losses.keys() == whole.keys()
    for name, value in losses.items():
        assert torch.equal(value, whole[name] if "cosine" in name else torch.zeros(())), name
    of_classes, of_masks = torch.autograd.grad(losses.total, leaves)
    assert not of_classes.any()
    assert of_masks.isfinite().all()
    assert of_masks.any()


def test_more_targets_than_queries_leaves_the_dearest_out() -> None:
    out, labels, points = predictions(queries=2), labelled(), grid_points()
    criterion = Criterion.from_preset("combo-r50-ms3", **SMALL)
    selected = criterion.select(out, labels)
    targets, matched = criterion.match(selected, criterion.costs(selected, points))
    crowded = [i for i in range(10) if (targets.frame_of == i).sum() == 3]
    assert crowded
    for frame in crowded:
        assert (matched[:, targets.frame_of == frame] == -1).sum(dim=1).tolist() == [1] * 3
    assert criterion(out, labels, points=points).total.isfinite()


def test_random_points_give_the_losses_of_injected_ones_on_average() -> None:
    out, labels = predictions(), labelled()
    torch.manual_seed(0)
    criterion = Criterion.from_preset(
        "combo-r50-ms3", **{**SMALL, "mask_points": 8192}, importance=0.0
    )
    drawn, injected = criterion(out, labels), criterion(out, labels, points=grid_points(8192))
    for name in ("loss_mask", "loss_dice", "loss_ce", "loss_mask_0"):
        assert drawn[name].item() == pytest.approx(injected[name].item(), rel=0.05)


def test_important_points_are_where_the_mask_is_least_certain() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-8, 8, 32).expand(1, 1, 32, 32)
    criterion = Criterion.from_preset("combo-r50-ms3", mask_points=400)
    points = criterion._important_points(ramp, [1], None)
    assert points.shape == (1, 400, 2)
    near = ((points[0, :300, 0] - 0.5).abs() < 0.2).float().mean()
    assert near > 0.95
    assert points.min() >= 0
    assert points.max() <= 1


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.full((2, 5, 32, 32), 7, dtype=torch.uint8), "7"),
        (torch.zeros(2, 6, 32, 32, dtype=torch.uint8), "6"),
        (torch.zeros(2, 5, 16, 32, dtype=torch.uint8), "16"),
        (torch.zeros(2, 5, 32, 32), "float32"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Criterion.from_preset("combo-r50-ms3", **SMALL)(predictions(), labels)


@settings(max_examples=30)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9), st.integers())
def test_rows_sampled_at_points_are_grid_samples(
    n: int, channels: int, h: int, w: int, seed: int
) -> None:
    torch.manual_seed(seed % 1000)
    maps = torch.randn(n, channels, h, w, dtype=torch.float64)
    points = torch.rand(n, 17, 2, dtype=torch.float64) * 1.4 - 0.2
    expected = nn.functional.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)
    torch.testing.assert_close(sample_rows(maps, points), expected[..., 0].transpose(1, 2))


def test_a_diverged_network_is_still_matched() -> None:
    labels = labelled(1, 1)[0]
    targets = Targets.of(labels, label_values(labels).numpy(), 3, torch.device("cpu"))
    nan = torch.full((1, 1, 4, 4), torch.nan)
    held, matched = match(nan, torch.full((1, 1, 4, 8, 8), torch.nan), targets,
                          grid_points()[None], (2.0, 5.0, 5.0))()  # fmt: skip
    assert held.all()
    assert len(set(matched[0])) == len(targets.frame_of)


@pytest.mark.parametrize("fidelity", ["reference", "paper"])
def test_losses_and_gradients_of_a_batchs_parts_add_up_to_the_batchs(fidelity: str) -> None:
    valid = torch.tensor([[True] * 5, [True] * 5, [True] * 2 + [False] * 3, [True] * 5])
    out, labels = predictions(batch=4, valid=valid), labelled(4)
    labels[0] = 1  # one target a frame, and three
    labels[1, 1:] = 255  # and frames without labels
    labels[3] = 255  # and a whole part
    leaves = [sets.requires_grad_() for sets in (out.class_sets, out.mask_sets)]
    settings = {**SMALL, "fidelity": fidelity, "query_count": 4}
    criterion = Criterion.from_preset("combo-r50-ms3", **settings)
    annotated = (labels != 255).flatten(2).any(dim=2)

    def draws(part: slice) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(clip) for clip in range(4)[part]]

    whole = criterion(out, labels, annotated=annotated, draws=draws(slice(4)))
    expected = torch.autograd.grad(whole.total, leaves)

    parts = (slice(0, 1), slice(1, 3), slice(3, 4))
    divisors = sum(criterion.divisors(labels[p], annotated[p], valid[p]) for p in parts)
    assert torch.equal(divisors, criterion.divisors(labels, annotated, valid))
    sums, gradients = dict.fromkeys(whole, 0.0), [torch.zeros_like(leaf) for leaf in leaves]
    for part in parts:
        mine = ComboOutput(*(sets[part] for sets in leaves), out.image_size, valid[part])
        losses = criterion(
            mine, labels[part], annotated=annotated[part], divisors=divisors, draws=draws(part)
        )
        for name, value in losses.items():
            sums[name] += value.item()
        for mean, gradient in zip(
            gradients, torch.autograd.grad(losses.total, leaves), strict=True
        ):
            mean += gradient
    assert sums == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
