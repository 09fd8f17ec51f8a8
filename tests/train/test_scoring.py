"""`combo score`: masks that any program saved, by the numbers that networks get."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from combo.cli import app
from combo.model.interface import Network
from combo.model.metrics import count_objects
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import PlannedSplit, planned
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.saved_masks import SavedMasks, write_clip
from combo.pipeline.scoring import Scored, score
from combo.pipeline.train.evaluate import measure

from .conftest import OpenSplit

METRICS = Path(__file__).parents[1] / "data" / "metrics"


class Bright(Network):
    """Nothing learned: class k is where the picture is about as bright as k of the classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        del maskige, sound, valid
        grey = frames.float().mean(2)
        steps = torch.arange(self.classes, dtype=torch.float32) * (255 / (self.classes - 1))
        return -(grey[:, :, None] - steps[:, None, None]).abs() / 30

    def scores(self, out: Tensor) -> Tensor:
        return out


@pytest.mark.parametrize(("data_set", "split"), [("s4", "val"), ("avss", "train")])
def test_a_saved_evaluation_scores_what_it_scored(
    finished: Manifest, open_split: OpenSplit, tmp_path: Path, data_set: str, split: str
) -> None:
    reader = open_split(finished, data_set, split)

    def save(clip: Any, scores: Tensor) -> None:
        write_clip(tmp_path, clip.clips[0], scores, clip.present[0].nonzero()[:, 0].tolist())

    network = Bright(len(reader.plan.classes))
    evaluation = measure(network, reader, torch.device("cpu"), on_clip=save)
    scored = score(planned(finished, data_set, split), tmp_path)
    assert scored.protocols == evaluation.protocols
    assert scored.clips == evaluation.clips
    assert scored.false_positive_rate == evaluation.false_positive_rate
    assert 0 < scored.protocols["avsbench"][0] < 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_eight_bits_hold_all_that_the_metrics_ask_of_a_probability(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    root = tmp_path_factory.mktemp("masks")
    generator = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0, 1, 255)
    around = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1)]).clamp(0, 1)
    if seed % 2:  # else the numbers themselves are saved
        around = around[around != 0.5]
    chosen = torch.randint(len(around), (1, 16, 16), generator=generator)
    probability = torch.where(
        torch.rand(chosen.shape, generator=generator) < 0.5,
        around[chosen],
        torch.rand(chosen.shape, generator=generator),
    )
    logits = torch.stack(
        [torch.zeros_like(probability), torch.logit(probability).clamp(-60, 60)], dim=1
    )
    exact = logits.softmax(1)[:, 1]
    write_clip(root, "clip", logits, [0])
    saved = SavedMasks.below(root, ["clip"])
    values = saved.read("clip", [0])
    scale = 255 if values.dtype == np.uint8 else 1
    again = torch.from_numpy(values.astype(np.float32) / np.float32(scale))
    labels = (torch.rand(chosen.shape, generator=generator) < 0.5).to(torch.uint8)
    one, two = count_objects(exact, labels), count_objects(again, labels)
    assert all(torch.equal(vars(one)[name], vars(two)[name]) for name in vars(one))


# trees and values


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> PlannedSplit:
    """A data set of two clips of three frames, the second one's last frame without a label."""
    root = tmp_path_factory.mktemp("objects")
    random = np.random.default_rng(0)
    for clip in ("dog_1", "dog_2"):
        (root / "data" / clip / "labels").mkdir(parents=True)
        for n in range(3):
            picture = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8))
            picture.save(root / "data" / clip / f"{n}.png")
            label = Image.fromarray(255 * random.integers(0, 2, (12, 16), np.uint8))
            if (clip, n) != ("dog_2", 2):
                label.save(root / "data" / clip / "labels" / f"{n}.png")
    (root / "m.yaml").write_text(
        "store: store\ndata_sets: {mine: {layout: folders, root: data}}\n"
        "stages: {frames: {size: 64}, audio: {encoder: mel-stats},"
        " maskige: {generator: felzenszwalb}}\n"
    )
    return planned(load_manifest(root / "m.yaml"), "mine", "all")


MASKS = {
    (clip, n): np.random.default_rng(10 * n + len(clip) + int(clip[-1])).integers(0, 2, (12, 16))
    for clip in ("dog_1", "dog_2")
    for n in range(3)
}


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def saved(root: Path, name: str, top: int = 255, dtype: type = np.uint8) -> Path:
    for (clip, n), mask in MASKS.items():
        place = root / name.format(clip=clip, n=n, m=n + 1)
        grey(place, (mask * top).astype(dtype))
    return root


def numbers(there: PlannedSplit, root: Path) -> Scored:
    found = score(there, root)
    assert len(found.clips) == 2
    return found


@pytest.fixture
def plain(objects: PlannedSplit, tmp_path: Path) -> Scored:
    return numbers(objects, saved(tmp_path / "plain", "{clip}/{n}.png"))


@pytest.mark.parametrize(
    ("name", "top"),
    [
        ("dogs/{clip}/{clip}_{n}.png", 255),  # AVSBench's, with its categories
        ("{clip}/{clip}_{m}.png", 255),  # counted from 1
        ("{clip}/frame-{n:04d}_mask.png", 1),  # 0 and 1
        ("{clip}_{n}.png", 255),
        ("a/b/{clip}/masks/{m:05d}.tif", 255),
    ],
)
def test_every_tree_that_tells_clip_and_frame_gives_the_same_numbers(
    objects: PlannedSplit, plain: Scored, tmp_path: Path, name: str, top: int
) -> None:
    assert numbers(objects, saved(tmp_path / "other", name, top)) == plain
    assert 0 < plain.protocols["avsbench"][0] < 1


def test_values_are_told_by_the_whole_tree(
    objects: PlannedSplit, plain: Scored, tmp_path: Path
) -> None:
    assert numbers(objects, saved(tmp_path / "wide", "{clip}/{n}.png", 65535, np.uint16)) == plain
    for clip in ("dog_1", "dog_2"):
        masks = np.stack([MASKS[clip, n] for n in range(3)])
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(tmp_path / "arrays" / f"{clip}.npy", masks.astype(np.float16))
    assert numbers(objects, tmp_path / "arrays") == plain
    palette = saved(tmp_path / "palette", "{clip}/{n}.png")
    for path in palette.rglob("*.png"):
        Image.open(path).convert("P").save(path)
    assert numbers(objects, palette) == plain
    soft = saved(tmp_path / "soft", "{clip}/{n}.png")
    grey(soft / "dog_1" / "0.png", np.where(MASKS["dog_1", 0], 100, 0).astype(np.uint8))
    found = numbers(objects, soft)
    assert found.protocols["frame"][0] < plain.protocols["frame"][0]  # none above a half
    assert found.protocols["frame"][1] == plain.protocols["frame"][1]  # M_F has its own threshold


def test_masks_of_another_size_are_held_against_labels_of_that_size(
    objects: PlannedSplit, plain: Scored, tmp_path: Path
) -> None:
    root = saved(tmp_path / "large", "{clip}/{n}.png")
    for path in root.rglob("*.png"):
        Image.open(path).resize((48, 36), Image.Resampling.NEAREST).save(path)
    for name, (j, f) in numbers(objects, root).protocols.items():
        assert (j, f or 0) == pytest.approx(
            (plain.protocols[name][0], plain.protocols[name][1] or 0)
        )


def test_frames_that_have_a_label_and_no_mask_are_named(
    objects: PlannedSplit, tmp_path: Path
) -> None:
    root = saved(tmp_path / "masks", "{clip}/{n}.png")
    (root / "dog_2" / "2.png").unlink()  # it has no label either
    assert score(objects, root).missing == []
    (root / "dog_2" / "1.png").unlink()
    with pytest.raises(ComboError, match=r"no mask of frame 1 of dog_2 of mine/all; .*--allow-m"):
        score(objects, root)
    assert score(objects, root, allow_missing=True).missing == ["frame 1 of dog_2"]
    for path in (root / "dog_2").iterdir():
        path.unlink()
    found = score(objects, root, allow_missing=True)
    assert (found.missing, list(found.clips)) == (["dog_2"], ["dog_1"])
    words = ["score", str(root), "--data", "mine", "--split", "all", "--allow-missing"]
    done = CliRunner().invoke(app, [*words, "--manifest", str(objects.manifest.file)])
    assert done.exit_code == 0, done.output
    assert "left out, no mask of dog_2\n" in done.stderr


def test_what_is_no_mask_of_these_labels_is_one_line(
    objects: PlannedSplit, finished: Manifest, tmp_path: Path
) -> None:
    def refused(there: PlannedSplit, root: Path, why: str) -> None:
        with pytest.raises(ComboError, match=why):
            score(there, root)

    refused(objects, tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(objects, tmp_path / "empty", "no mask of any of the 2 clips")
    refused(objects, saved(tmp_path / "classes", "{clip}/{n}.png", 70), "no value above 70")
    twice = saved(tmp_path / "twice", "{clip}/{n}.png")
    grey(twice / "dog_1" / "0_mask.png", MASKS["dog_1", 0].astype(np.uint8))
    refused(objects, twice, r"0_mask\.png and .*0\.png are both of the same frame")
    far = tmp_path / "far"
    grey(far / "dog_1" / "7.png", MASKS["dog_1", 0].astype(np.uint8))
    refused(objects, far, r"7\.png: the lowest frame; frames are counted from 0 or from 1")
    painted = saved(tmp_path / "painted", "{clip}/{n}.png")
    grey(painted / "dog_1" / "0.png", np.full((12, 16, 3), (200, 0, 0), np.uint8))
    refused(objects, painted, r"a mask in colours, .*dog_1/0\.png")
    for clip in ("dog_1", "dog_2"):
        (tmp_path / "logits").mkdir(exist_ok=True)
        np.save(tmp_path / "logits" / f"{clip}.npy", np.full((3, 12, 16), -4.5))
    refused(objects, tmp_path / "logits", "values from -4.5 to -4.5, no probabilities")
    classes = planned(finished, "avss", "train")
    for name in classes.clips.names:
        for n in range(10):
            grey(tmp_path / "object masks" / name / f"{n}.png", np.full((8, 8), 255, np.uint8))
    refused(classes, tmp_path / "object masks", "values up to 255, where the labels have classes")


def test_saved_masks_score_as_in_the_published_evaluator(tmp_path: Path) -> None:
    golden = np.load(METRICS / "object_clip.npz")
    labels, scores = golden["labels"], torch.from_numpy(golden["scores"]).float()
    clip = tmp_path / "data" / "clip"
    for n, label in enumerate(labels):
        grey(clip / f"{n}.png", np.zeros((*label.shape, 3), np.uint8))
        grey(clip / "labels" / f"{n}.png", (label * 255).astype(np.uint8))
    (tmp_path / "m.yaml").write_text("data_sets: {mine: {layout: folders, root: data}}\n")
    write_clip(tmp_path / "masks", "clip", scores, range(len(labels)))
    command = ["score", str(tmp_path / "masks"), "--data", "mine", "--split", "all", "--json"]
    table = tmp_path / "clips.csv"
    done = CliRunner().invoke(
        app, [*command, "--csv", str(table), "--manifest", str(tmp_path / "m.yaml")]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    np.testing.assert_allclose([found["M_J"], found["M_F"]], golden["miou_fscore"], atol=5.1e-5)
    header, (row) = table.read_text().splitlines()[0], table.read_text().splitlines()[1]
    assert header == "clip,M_J,M_F"
    np.testing.assert_allclose(
        [float(x) for x in row.split(",")[1:]], golden["miou_fscore"], atol=1.1e-6
    )
