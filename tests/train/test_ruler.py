"""`combo evaluate`: runs and published checkpoints, right and wrong sounds, mean and deviation."""

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from combo.cli import app
from combo.model import Combo
from combo.model.interface import Network
from combo.pipeline import protocols
from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.ruler.recognised import recognise
from combo.pipeline.train.evaluate import (
    SOUNDS,
    by_category,
    measure,
    measure_sounds,
    open_run,
    open_split,
)
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.sounds import MEANINGS, Sounds, other_class, same_class

from .conftest import OpenSplit, finished_run
from .test_training import TINY

CPU = torch.device("cpu")
KEYS = Path(__file__).parents[1] / "data" / "network" / "r50_s4_keys.json"


@pytest.fixture(scope="module")
def seeds(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Two runs that differ in the seed alone; not to be changed."""
    settings = [*TINY, "iterations=2"]
    return [
        finished_run(prepared, tmp_path_factory, [*settings, f"seed={seed}"]) for seed in (0, 1)
    ]


def evaluated(*words: object) -> Any:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


def refused(*words: object) -> str:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert isinstance(done.exception, ComboError), done.output + repr(done.exception)
    assert "\n" not in str(done.exception)
    return str(done.exception)


class Ear(Network):
    """Sees nothing: calls everything an object as soon as it hears anything."""

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        del maskige, valid
        heard = sound.abs().sum(2)[:, :, None, None].expand(-1, -1, *frames.shape[-2:])
        return torch.stack([(heard == 0).float(), (heard > 0).float()], dim=2)

    def scores(self, out: Tensor) -> Tensor:
        return out


# sounds


def test_sounds_of_one_pass_score_as_each_of_them_alone(seeds: list[RunFolder]) -> None:
    reader, network = open_split(seeds[0], "test"), open_run(seeds[0], CPU)
    seen: list[str] = []
    together = measure_sounds(
        network, reader, CPU, [*reversed(SOUNDS)], {}, lambda sound, *_: seen.append(sound)
    )
    assert list(together) == [*reversed(SOUNDS)]
    assert sorted(seen) == sorted(SOUNDS * len(reader))
    for sound in SOUNDS:
        alone = measure(network, reader, CPU, sound=sound)
        assert replace(together[sound], unchanged=alone.unchanged) == alone


def test_what_a_wrong_sound_changes_is_in_the_table(
    finished: Manifest, open_split: OpenSplit
) -> None:
    reader = open_split(finished, "s4", "test")
    found = measure_sounds(Ear(), reader, CPU, ["right", "silent", "swapped"], {})
    right, silent, swapped = found.values()
    assert (right.segmented, right.unchanged, right.false_positive_rate) == (1, 1, None)
    assert (silent.segmented, silent.unchanged, silent.false_positive_rate) == (0, 0, 0)
    assert (swapped.segmented, swapped.false_positive_rate) == (1, 1)
    assert swapped.unchanged == 1, "it hears that there is a sound, and not which"
    assert silent.m_j == 0 < right.m_j
    alone = measure_sounds(Ear(), reader, CPU, ["silent"], {})["silent"]
    assert alone.unchanged is None
    assert alone == replace(silent, unchanged=None)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_a_swap_by_category_stays_in_it_or_leaves_it(categories: list[str]) -> None:
    for place, other in enumerate(same_class(categories)):
        if other < 0:
            assert categories.count(categories[place]) == 1
        else:
            assert other != place
            assert categories[other] == categories[place]
    if len(set(categories)) > 1:
        others = other_class(categories)
        assert all(categories[o] != categories[p] for p, o in enumerate(others))
        if max(map(categories.count, categories)) <= len(categories) / 2:
            assert sorted(others) == list(range(len(categories)))


def test_sounds_that_a_split_does_not_have_are_one_line(
    finished: Manifest, open_split: OpenSplit
) -> None:
    reader = open_split(finished, "s4", "test")
    for names, categories, why in (
        (["same-class"], [], "the categories of s4/test's clips are not known"),
        (["other-class"], ["a", "b", ""], "are not known"),
        (["same-class"], ["a", "b", "c"], "is alone in its category"),
        (["other-class"], ["a", "a", "a"], "all clips of s4/test are a; use --sound same-class"),
    ):
        with pytest.raises(ComboError, match=why):
            Sounds(reader, names, categories)
    assert "'loud' is none; there are right, swapped" in refused("run", "--sound", "right,loud")
    assert "'right' is named twice" in refused("run", "--sound", "right,right")


def test_a_clip_alone_in_its_category_is_left_out_of_same_class_and_counted(
    finished: Manifest, open_split: OpenSplit
) -> None:
    reader = open_split(finished, "s4", "test")
    names = reader.plan.clips
    categories = dict(zip(names, ("dog", "cat", "dog"), strict=True))
    found = measure_sounds(Ear(), reader, CPU, ["right", "same-class", "other-class"], categories)
    same, other = found["same-class"], found["other-class"]
    assert (list(same.clips), same.without_sound) == ([names[0], names[2]], 1)
    assert (len(other.clips), other.without_sound) == (3, 0)
    assert same.false_positive_rate is None, "what is heard is in sight"
    assert other.false_positive_rate == 1
    right = found["right"]
    groups = by_category(right, categories)
    assert {name: count for name, (*_, count) in groups.items()} == {"cat": 1, "dog": 2}
    dogs = [right.clips[name][0] for name in (names[0], names[2])]
    assert groups["dog"][0] == pytest.approx(np.mean(dogs))


# runs


def test_runs_that_differ_in_the_seed_alone_are_one_row(
    seeds: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "all.csv"
    words = [seeds[0].root, seeds[1].root, "--sound", "silent,right,noise", "--csv", table]
    said = evaluated(*words)
    assert [(row["sound"], row["seeds"]) for row in said["rows"]] == [
        ("silent", [0, 1]), ("right", [0, 1]), ("noise", [0, 1])
    ]  # fmt: skip
    right = [each for each in said["evaluations"] if each["sound"] == "right"]
    assert [each["run"] for each in right] == [str(run.root) for run in seeds]
    row = said["rows"][1]
    for name, place in (("M_J", 0), ("M_F", 1)):
        values = [
            measure(open_run(run, CPU), open_split(run, "test"), CPU).protocols["avsbench"][place]
            for run in seeds
        ]
        assert row[name]["mean"] == pytest.approx(statistics.fmean(values), abs=1e-6)
        assert row[name]["deviation"] == pytest.approx(statistics.stdev(values), abs=1e-6)
    assert said["rows"][0]["unchanged_pixels"]["mean"] <= 1 == row["unchanged_pixels"]["mean"]

    lines = list(csv.DictReader(table.open()))
    of_clips = [line for line in lines if (line["of"], line["sound"]) == ("clip", "right")]
    assert [(line["network"], line["name"]) for line in of_clips] == [
        (each["run"], clip) for each in right for clip in each["per_clip"]
    ]
    assert float(of_clips[0]["M_J"]) == next(iter(right[0]["per_clip"].values()))["M_J"]
    categories = {line["name"] for line in lines if line["of"] == "category"}
    assert categories == set(right[0]["per_category"]) != set()

    monkeypatch.chdir(seeds[0].root.parent.parent)
    names = [str(run.root.relative_to(Path.cwd())) for run in seeds]
    shown = CliRunner().invoke(app, ["evaluate", *names])
    assert f"{names[0]} (2 seeds)" in shown.stdout
    mean, deviation = row["M_J"]["mean"], row["M_J"]["deviation"]
    assert f"{100 * mean:.2f} ± {100 * deviation:.2f}" in shown.stdout


def test_each_checkpoint_of_a_run_can_be_named(seeds: list[RunFolder]) -> None:
    run = seeds[0]
    best, last = evaluated(run.best, run.last)["evaluations"]
    whole = evaluated(run.root)
    assert {**best, "run": ""} == {**whole, "run": ""}
    assert (whole["sound"], whole["clips"]) == ("right", 3)
    assert last["run"] == str(run.last)


def test_a_run_is_evaluated_on_another_data_set_too(seeds: list[RunFolder]) -> None:
    told = evaluated(seeds[0].root, "--data", "avss", "--split", "train")
    assert told["data_set"] == "avss"
    assert "counts as an object" in told["classes"]
    assert evaluated(seeds[0].root, "--data", "s4", "--split", "train")["data_set"] == "s4"
    assert "avss" in refused(seeds[0].root, "--data", "avss", "--split", "dev")


def test_usage_that_makes_no_sense_is_refused(seeds: list[RunFolder]) -> None:
    for words in (
        ["evaluate"],
        ["evaluate", str(seeds[0].root), "--sound", "right,silent", "--predictions", "x"],
    ):
        assert CliRunner().invoke(app, words).exit_code == 2


# files that stand alone


def save(path: Path, network: torch.nn.Module, **more: object) -> Path:
    torch.save({"network": network.state_dict(), **more}, path)
    return path


def test_a_manifest_that_is_named_says_where_the_store_is(
    seeds: list[RunFolder], finished: Manifest, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    text = finished.file.read_text().replace("store: store", f"store: {tmp_path / 'nowhere'}")
    other.write_text(text)
    assert evaluated(seeds[0].root, "--manifest", finished.file)["data_set"] == "s4"
    said = refused(seeds[0].root, "--manifest", other)
    assert str(tmp_path / "nowhere") in said


def test_a_network_without_its_run_is_known_by_its_shapes(
    finished: Manifest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = Combo.from_preset("combo-small-s4", sem="shared")
    file = save(tmp_path / "small.pt", network, vggish={})
    found = recognise(file)
    assert (found.preset, found.kind, found.settings) == (
        "combo-small-s4",
        "combo",
        network.settings,
    )
    said = evaluated(file, "--data", "s4", "--manifest", finished.file)
    assert (said["run"], said["data_set"], said["clips"]) == (str(file), "s4", 3)
    assert evaluated(file, "--preset", "combo-small-s4", "--manifest", finished.file) == said
    on = ("--manifest", finished.file, "--split", "train")
    assert "does not say what it was trained on; say so: --data s4" in refused(file, *on)
    assert "tells 2 classes apart, and avss/train has" in refused(file, "--data", "avss", *on)
    assert "holds no split 'dev' of data set 's4'" in refused(
        file, "--data", "s4", "--manifest", finished.file, "--split", "dev"
    )


def test_what_is_in_no_preset_is_named(tmp_path: Path) -> None:
    file = save(tmp_path / "wide.pt", Combo.from_preset("combo-small-s4", width=32))
    with pytest.raises(ComboError, match=r"nearest is combo-small-s4: .* has shape .*, not"):
        recognise(file)
    with pytest.raises(ComboError, match=r"nearest is combo-r50-s4: .*missing|not part"):
        recognise(file, "combo-r50-s4")
    (tmp_path / "not.pt").write_bytes(b"no weights")
    with pytest.raises(ComboError, match="damaged, or not a weights file"):
        recognise(tmp_path / "not.pt")


def test_a_published_checkpoint_is_evaluated_as_it_is(finished: Manifest, tmp_path: Path) -> None:
    shapes = {name: tuple(shape) for name, shape, *_ in json.loads(KEYS.read_text())}
    one = torch.full((1,), 0.01)  # of which every parameter is a view, so that the file is small
    state = {name: one.expand(shape) for name, shape in shapes.items()}
    file = tmp_path / "avs_s4_r50.pth"
    torch.save({"model": state, "iteration": 1}, file)
    said = evaluated(file, "--data", "s4", "--split", "val", "--manifest", finished.file)
    assert (said["clips"], said["fidelity"], said["labels"]) == (2, "reference", "avsbench-s4")
    assert 0 <= said["M_J"] <= 1
    del state["sem_seg_head.predictor.query_feat.weight"]
    torch.save({"model": state}, file)
    assert "not COMBO as it was published: missing from the state: mask_decoder.query_feat" in (
        refused(file, "--data", "s4", "--manifest", finished.file)
    )


# words


@pytest.mark.parametrize(
    ("data_set", "words"), [("s4", protocols.OBJECTS), ("avss", protocols.CLASSES)]
)
def test_every_protocol_and_sound_is_explained(
    finished: Manifest, open_split: OpenSplit, data_set: str, words: dict[str, str]
) -> None:
    reader = open_split(finished, data_set, "train")
    network = Ear() if data_set == "s4" else Silent(len(reader.plan.classes))
    found = measure(network, reader, CPU)
    assert found.protocols.keys() == words.keys()
    assert bool(found.classes) == (data_set == "avss")
    done = CliRunner().invoke(app, ["evaluate", "--explain", "--json"])
    assert done.exit_code == 0
    said = {name for part in json.loads(done.stdout).values() for name in part}
    assert words.keys() | MEANINGS.keys() < said


class Silent(Ear):
    """Calls everything background."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        del maskige, sound, valid
        scores = torch.zeros(*frames.shape[:2], self.classes, *frames.shape[-2:])
        scores[:, :, 0] = 1
        return scores
