"""A second network, which reads no Maskiges, goes the whole road through the seam alone.

An honest baseline: COMBO's frame encoder, each level scaled and shifted by the sound (FiLM), summed
from coarse to fine, and a class for every pixel.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from combo.cli import app
from combo.model import (
    NETWORKS,
    Losses,
    Network,
    NetworkCriterion,
    NetworkKind,
    NetworkSettings,
)
from combo.model.backbones import Backbone
from combo.model.clips import ClipLayout
from combo.pipeline.clip_checks import clip_checks
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.report.of_run import SWAPPED, look_at_run
from combo.pipeline.report.sheet import write_sheet
from combo.pipeline.store import ArraySpec, SplitStore
from combo.pipeline.train import checkpoint
from combo.pipeline.train.evaluate import measure, open_run, open_split
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume, start

from .conftest import OF_PACE

CPU = torch.device("cpu")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class FilmSettings(NetworkSettings):
    backbone: str = "test_convnext2"
    width: int = 32

    @property
    def reads_maskige(self) -> bool:
        return False


@dataclass(frozen=True)
class FilmOutput:
    """logits: [F, K, H, W] of the frames that exist."""

    logits: Tensor
    layout: ClipLayout


class Film(Network):
    def __init__(self, settings: FilmSettings, pretrained: bool = False) -> None:
        super().__init__()
        width = settings.width
        self.encoder = Backbone(settings.backbone, settings.image_size, pretrained=pretrained)
        self.levels = nn.ModuleList(nn.Conv2d(c, width, 1) for c in self.encoder.channels)
        self.films = nn.ModuleList(
            nn.Linear(settings.audio_dim, 2 * width) for _ in self.encoder.channels
        )
        self.classify = nn.Conv2d(width, settings.classes, 3, padding=1)

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> FilmOutput:
        assert maskige is None, "nobody reads what this network does not ask for"
        layout = ClipLayout.of(frames.shape[0], frames.shape[1], valid, frames.device)
        features = self.encoder((layout.pack(frames) - 116.0) / 58.0)
        heard, pixels = layout.pack(sound), None
        for feature, level, film in reversed(
            list(zip(features, self.levels, self.films, strict=True))
        ):
            scale, shift = film(heard)[:, :, None, None].chunk(2, dim=1)
            here = level(feature) * (1 + scale) + shift
            if pixels is not None:
                here = here + F.interpolate(pixels, here.shape[-2:])
            pixels = here.relu()
        logits = F.interpolate(self.classify(pixels), frames.shape[-2:], mode="bilinear")
        return FilmOutput(logits, layout)

    def scores(self, out: FilmOutput) -> Tensor:
        return out.layout.unpack(out.logits.float().softmax(dim=1))


class FilmCriterion(NetworkCriterion):
    def __init__(self, settings: FilmSettings) -> None:
        super().__init__()
        del settings

    def divisors(self, labels: Tensor, annotated: Tensor, present: Tensor) -> Tensor:
        return (labels[annotated & present] != 255).sum()

    def forward(
        self,
        out: FilmOutput,
        labels: Tensor,
        *,
        annotated: Tensor,
        values: Tensor | None = None,
        divisors: Any = None,
        draws: Any = None,
    ) -> Losses:
        del values, draws
        chosen = out.layout.pack(annotated)
        truth = out.layout.pack(labels)[chosen].long()
        logits = out.logits[chosen].float()
        loss = F.cross_entropy(logits, truth, ignore_index=255, reduction="sum")
        pixels = (truth != 255).sum() if divisors is None else divisors
        return Losses({"loss_pixel": loss / pixels}, {"loss_pixel": 1.0})


PRESETS = {f"film-small-{data}": FilmSettings() for data in ("s4", "avss")}
TRAINING = {
    "initialisation": "random", "iterations": 60, "batch_size": 2, "micro_batch": 2,
    "learning_rate": 2e-3, "backbone_lr_factor": 1.0, "clip_norm": 1.0, "evaluate_every": 30,
    "precision": "fp32", "log_every": 1, "threads": 1, "device": "cpu",
}  # fmt: skip
FILM = NetworkKind(FilmSettings, PRESETS, dict.fromkeys(PRESETS, TRAINING), Film, FilmCriterion)


@pytest.fixture(autouse=True)
def film(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry that `model/networks.py` would have."""
    monkeypatch.setitem(NETWORKS, "film", FILM)


@pytest.fixture(scope="module")
def unpainted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a store that has no Maskiges; not to be changed."""
    path = tmp_path_factory.mktemp("unpainted") / "data_manifest.yaml"
    path.write_text(prepared.read_text())
    manifest = load_manifest(path)
    for split in SPLITS:
        for stage in ("frames", "audio"):
            job = make_job(manifest, "s4", split, stage)
            settle_plan(job, Options())
            assert run_job(job, Options()).finished is not None
    return path


def combo(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (done.exception, done.output)
    return done.stdout


def refused(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, ComboError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_PACE} for line in lines]


@pytest.mark.own_process
def test_it_is_trained_evaluated_and_drawn_from_a_store_without_maskiges(
    unpainted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    combo("train", "--preset", "film-small-s4", "--manifest", unpainted, "--out", folder,
          "--set", "augment=none")  # fmt: skip
    losses = [line["loss_pixel"] for line in log(folder) if line["kind"] == "train"]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])

    saved = json.loads((folder / "settings.json").read_text())
    assert saved["kind"] == "film"
    assert saved["network"] == {
        "classes": 2, "image_size": 64, "audio_dim": 128, "max_frames": 10,
        "backbone": "test_convnext2", "width": 32,
    }  # fmt: skip
    data = json.loads((folder / "data.json").read_text())
    assert data["splits"]["train"]["variants"].keys() == {"frames", "audio"}

    for sound in ("right", "swapped"):
        said = json.loads(combo("evaluate", folder, "--split", "test", "--sound", sound, "--json"))
        assert (said["sound"], said["clips"]) == (sound, 3)
        assert 0 < said["M_J"] < 1
        assert "fidelity" not in said

    looks = look_at_run(folder, "test", CPU)
    panels = [*looks.worst, *looks.best]
    assert [list(each.rows) for each in panels] == [["frames", "truth", "prediction", SWAPPED]] * 2
    write_sheet(tmp_path / "sheet.png", panels)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_run_that_was_stopped_ends_with_the_same_bits(unpainted: Path, tmp_path: Path) -> None:
    manifest = load_manifest(unpainted)

    class Stopped(Exception):
        pass

    def stop(step: Any) -> None:
        if step.iteration == 3:
            raise Stopped

    for name in ("whole", "stopped"):
        changes = ("iterations=4", "evaluate_every=2", "augment=resize-crop-colour-flip")
        trainer = start(manifest, "film-small-s4", changes, tmp_path / name)
        if name == "whole":
            trainer.train()
            continue
        with pytest.raises(Stopped):
            trainer.train(stop)
        torch.manual_seed(99)
        resume(tmp_path / name).train()
    whole, again = (RunFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert log(whole.root) == log(again.root)
    one, two = (checkpoint.load(run.last).network for run in (whole, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.own_process
def test_it_is_trained_from_a_packed_file_without_maskiges(unpainted: Path, tmp_path: Path) -> None:
    file = tmp_path / "s4.h5"
    where = ("pack", "--to", file, "--manifest", unpainted)
    assert "run: combo preprocess maskige --data s4" in refused(*where)
    twice = CliRunner().invoke(app, [*map(str, where), "--no-maskige", "--variant", "maskige=x"])
    assert twice.exit_code == 2
    packed = json.loads(combo(*where, "--no-maskige", "--json"))
    assert [list(each["variants"]) for each in packed["splits"]] == [["frames", "audio"]] * 3
    assert json.loads(combo("verify", file, "--json"))["findings"] == []
    few = ("--set", "iterations=3", "--set", "evaluate_every=3", "--manifest", unpainted)
    for name, store in (("one", ()), ("two", ("--store", file))):
        combo("train", "--preset", "film-small-s4", *few, "--out", tmp_path / name, *store)
    assert log(tmp_path / "one") == log(tmp_path / "two")
    assert resume(tmp_path / "one", file).iteration == 3
    said = refused("train", "--preset", "combo-small-s4", "--manifest", unpainted, "--store", file)
    assert "no maskige of s4/train" in said


def test_combo_asks_for_the_maskiges_that_it_reads(unpainted: Path, tmp_path: Path) -> None:
    command = ("train", "--manifest", unpainted, "--out", tmp_path / "run")
    said = refused(*command, "--preset", "combo-small-s4")
    assert "combo preprocess maskige --data s4 --split train" in said
    said = refused(*command, "--preset", "film-small-s4", "--variant", "maskige=some")
    assert "no maskige is read here; leave --variant maskige=NAME out" in said
    assert not (tmp_path / "run").exists()


def test_combo_without_its_siam_encoder_reads_none_either(unpainted: Path, tmp_path: Path) -> None:
    tiny = (
        "sem=off", "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "decoder_layers=1",
        "query_count=4", "mask_points=64", "iterations=2", "evaluate_every=2", "log_every=1",
    )  # fmt: skip
    trainer = start(load_manifest(unpainted), "combo-small-s4", tiny, tmp_path / "run")
    assert trainer.readers["train"].choice.maskige is None
    trainer.train()
    assert [line["kind"] for line in log(tmp_path / "run")] == ["train", "train", "val"]


def test_maskiges_that_are_there_are_not_read_and_clips_may_differ_in_length(
    finished: Manifest, tmp_path: Path
) -> None:
    changes = ("iterations=2", "evaluate_every=2", "augment=colour-flip")
    trainer = start(finished, "film-small-avss", changes, tmp_path / "run")
    reader = trainer.readers["train"]
    assert reader.read([0]).label_map is None
    trainer.train()
    scored: list[int] = []
    result = measure(
        open_run(RunFolder(tmp_path / "run"), CPU), reader, CPU,
        on_clip=lambda _, scores: scored.append(int((scores.sum(dim=1) > 0.99).sum())),
    )  # fmt: skip
    assert len(result.clips) == 3
    assert [count // 64**2 for count in scored] == [5, 5, 10]  # no score where no frame is


@pytest.mark.parametrize("preset", ["film-small-s4", "combo-small-s4"])
def test_sound_of_another_width_is_the_data_s(own: Manifest, tmp_path: Path, preset: str) -> None:
    for split in SPLITS:
        narrow_sound(SplitStore(own.store_path, "s4", split), 7)
    changes = ("iterations=2", "batch_size=2", "evaluate_every=2", "device=cpu")
    trainer = start(own, preset, changes, tmp_path / "run")
    assert trainer.run.settings().network.audio_dim == 7
    assert trainer.readers["train"].read([0]).sound.shape == (1, 5, 7)
    trainer.train()
    run = RunFolder(tmp_path / "run")
    evaluation = measure(open_run(run, CPU), open_split(run, "test"), CPU, sound="noise")
    assert len(evaluation.clips) == 3


def narrow_sound(split: SplitStore, width: int) -> None:
    """Puts the first numbers of each sound in the place of all."""
    (wide,) = split.variants("audio")
    plan = split.plan()
    units = [
        (split.read_unit(wide, plan, record.unit), record)
        for record in records.done_units(split, wide, plan)
    ]
    for folder in (split.arrays(wide), split.records(wide)):
        shutil.rmtree(folder)
    shape = (plan.frames_per_clip, width)
    narrow = replace(wide, arrays=(ArraySpec("embedding", shape, "float32"),))
    split.create(narrow, plan)
    for arrays, record in units:
        arrays["embedding"] = arrays["embedding"][..., :width]
        outputs = split.write_unit(narrow, plan, record.unit, arrays)
        checks = clip_checks(arrays, len(record.clips))
        records.commit(split, narrow, replace(record, outputs=outputs, checks=checks))
    assert records.finalise(split, narrow, plan) is not None


def test_a_run_of_a_network_that_is_not_there_is_one_line(
    unpainted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(load_manifest(unpainted), "film-small-s4", ["iterations=1"], tmp_path / "run")
    monkeypatch.delitem(NETWORKS, "film")
    assert "the run's network is 'film', and this combo has combo;" in refused(
        "evaluate", tmp_path / "run"
    )
    said = refused("train", "--preset", "film-small-s4", "--manifest", unpainted)
    assert "no preset 'film-small-s4'; did you mean combo-small-s4? There are combo-r50-s4" in said


def test_a_network_without_encoders_does_not_start_from_imagenet(
    unpainted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(settings: FilmSettings, pretrained: bool) -> Network:
        network = Film(settings, pretrained)
        network.encoder = nn.Identity()
        return network

    monkeypatch.setitem(NETWORKS, "film", replace(FILM, build=bare))
    changes = ["initialisation=imagenet"]
    with pytest.raises(ComboError, match=r"no encoder .* --set initialisation=random"):
        start(load_manifest(unpainted), "film-small-s4", changes, tmp_path / "run")
