"""A run from start to evaluation with a tiny network: it goes on, it stops, it refuses."""

import dataclasses
import hashlib
import json
import math
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from rewritten import rewrite_unit
from safetensors import safe_open

from combo.model import Combo
from combo.pipeline import durable
from combo.pipeline.devices import choose_device
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job
from combo.pipeline.manifest import Manifest
from combo.pipeline.state_files import load_state
from combo.pipeline.store import SplitStore
from combo.pipeline.train import checkpoint
from combo.pipeline.train.checkpoint import Checkpoint
from combo.pipeline.train.evaluate import (
    SOUNDS,
    Evaluation,
    measure,
    open_run,
    open_split,
)
from combo.pipeline.train.optimisation import learning_rate_factor
from combo.pipeline.train.pace import Step
from combo.pipeline.train.presets import resolve, train_settings
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.sounds import other_clips
from combo.pipeline.train.start import free_folder, resume, start
from combo.pipeline.train.trainer import Trainer

from .conftest import OF_PACE, finished_run, small_run

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=4",
    "batch_size=2", "evaluate_every=2", "log_every=1", "warmup=0", "threads=1",
    "augment=resize-crop-colour-flip", "device=cpu",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run; not to be changed."""
    return finished_run(prepared, tmp_path_factory, TINY)


def tiny(manifest: Manifest, folder: Path, *changes: str) -> Trainer:
    return small_run(manifest, folder, *TINY, *changes)


def log(run: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_PACE} for line in lines]


def same_state(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_state(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_state, left, right))
    return left == right


class Stopped(Exception):
    """Something that ends a run in the middle."""


def stop_at(iteration: int):
    def on_step(step: Step) -> None:
        if step.iteration == iteration:
            raise Stopped

    return on_step


def test_a_run_leaves_settings_log_and_networks_behind(trained: RunFolder) -> None:
    settings = trained.settings()
    assert settings.train.iterations == 4
    assert (settings.network.classes, settings.network.image_size) == (2, 64)
    data = trained.data()
    assert data["data_set"] == "s4"
    assert data["splits"]["train"]["clips"] == 16
    assert data["splits"]["val"]["variants"]["audio"]["name"].startswith("mel-stats-avsbench-")
    assert json.loads((trained.root / "versions.json").read_text())["torch"] == torch.__version__
    assert any(trained.tensorboard.iterdir())

    entries = log(trained)
    train = [entry for entry in entries if entry["kind"] == "train"]
    assert [entry["iteration"] for entry in train] == [1, 2, 3, 4]
    assert all(math.isfinite(entry["total"]) for entry in train)
    rates = [entry["learning_rate"] for entry in train]
    assert rates == pytest.approx([1e-3 * (1 - i / 4) ** 0.9 for i in range(4)])
    val = [entry for entry in entries if entry["kind"] == "val"]
    assert [entry["iteration"] for entry in val] == [2, 4]

    best = torch.load(trained.best, weights_only=True)
    assert best.keys() == {"network", "iteration", "best", "run", "settings"}
    assert best["best"] == max(entry["M_J"] for entry in val)
    (entry,) = (entry for entry in val if entry["iteration"] == best["iteration"])
    assert entry["M_J"] == best["best"]
    file = trained.best.with_suffix(".safetensors")
    assert same_state(load_state(file), dict(best["network"]))
    with safe_open(file, "pt") as opened:
        told = {k: str(entry[k]) for k in ("iteration", "M_J")}
        said = opened.metadata()
        assert json.loads(said.pop("settings")) == json.loads(json.dumps(best["settings"]))
        assert said == {**told, "run": best["run"]}
    last = checkpoint.load(trained.last)
    assert last.iteration == 4
    assert last.settings == best["settings"] == settings.as_dict()


def test_training_lowers_the_loss_of_what_it_sees(finished: Manifest, tmp_path: Path) -> None:
    trainer = tiny(finished, tmp_path / "run", "iterations=30", "evaluate_every=30", "augment=none")
    losses: list[float] = []
    trainer.train(lambda step: losses.append(step.loss))
    assert len(losses) == 30
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    trained: RunFolder, finished: Manifest, tmp_path: Path, stop: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        tiny(finished, folder).train(stop_at(stop))
    torch.manual_seed(99)  # another process would stand elsewhere
    resume(folder).train()
    again, whole = RunFolder(folder), trained
    for name in ("last", "best"):
        left, right = (torch.load(getattr(run, name), weights_only=True) for run in (again, whole))
        assert left.pop("run") != right.pop("run"), "names of their own"
        for part in left:
            assert same_state(left[part], right[part]), (name, part)
    assert log(again) == log(whole)


def test_a_finished_run_that_is_resumed_has_nothing_to_do(
    finished: Manifest, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    tiny(finished, folder, "iterations=1").train()
    before = {p: p.read_bytes() for p in (folder / "last.pt", folder / "metrics.jsonl")}
    resume(folder).train()
    assert {p: p.read_bytes() for p in before} == before


def test_another_seed_is_another_run(trained: RunFolder, finished: Manifest, tmp_path) -> None:
    tiny(finished, tmp_path / "run", "seed=1").train()
    other = RunFolder(tmp_path / "run")
    assert log(other)[0]["total"] != log(trained)[0]["total"]


def test_clips_that_failed_are_left_out_and_counted(own: Manifest, tmp_path: Path) -> None:
    job = make_job(own, "s4", "train", "audio")
    unit = records.read_record(job.split, job.variant, 1)
    assert unit is not None
    arrays = job.split.read_unit(job.variant, job.plan, 1)
    arrays["valid"][0] = 0
    failed = dataclasses.replace(unit.clips[0], failed=True, reason="no sound at all")
    rewrite_unit(job.split, job.variant, 1, arrays, clips=(failed, *unit.clips[1:]))

    trainer = tiny(own, tmp_path / "run", "iterations=1")
    noted = trainer.run.data()["splits"]["train"]
    assert noted["clips"] == 15
    assert noted["left_out"] == {job.plan.clips[3]: "no sound at all"}
    trainer.train()


def test_an_unfinished_store_is_refused_before_anything_is_written(
    own: Manifest, tmp_path: Path
) -> None:
    split = SplitStore(own.store_path, "s4", "val")
    (variant,) = split.variants("maskige")
    durable.remove(split.finished_path(variant))
    with pytest.raises(ComboError, match="combo preprocess maskige --data s4 --split val"):
        tiny(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_in_the_store_says_what_to_run(
    finished: Manifest, tmp_path: Path
) -> None:
    manifest = finished.model_copy(update={"store": "nowhere"})
    with pytest.raises(ComboError, match="combo preprocess all --data s4"):
        tiny(manifest, tmp_path / "run")


def test_a_store_that_changed_is_refused_on_resume(own: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        tiny(own, folder).train(stop_at(3))
    job = make_job(own, "s4", "train", "frames")
    run_job(job, Options(overwrite=True))
    resume(folder)  # the same bytes again are no change

    arrays = job.split.read_unit(job.variant, job.plan, 0)
    arrays["frames"][0, 0, 0, 0, 0] ^= 1
    rewrite_unit(job.split, job.variant, 0, arrays)
    with pytest.raises(ComboError, match=r"s4/train .* has changed .* combo train --preset"):
        resume(folder)


def test_a_folder_that_holds_something_is_not_written_into(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(ComboError, match=r"is not empty; .*--resume"):
        tiny(finished, trained.root)
    assert free_folder(trained.root) == trained.root.with_name("run-2")
    assert free_folder(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(ComboError, match=r"is no run folder: settings.json is missing"):
        resume(tmp_path)


def test_a_run_may_start_from_another_runs_network(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    trainer = tiny(finished, tmp_path / "run", f"initialisation={trained.root}")
    assert same_state(dict(trainer.network.state_dict()), checkpoint.network_of(trained.best))
    with pytest.raises(ComboError, match=r"another network .* does not fit"):
        tiny(finished, tmp_path / "other", f"initialisation={trained.root}", "width=64")


@pytest.mark.parametrize(
    "changes",
    [
        ("sem=shared", "fusion=none"),
        ("sem=off", "queries=all"),
        ("fusion=audio", "queries=none", "lambda_ada=0"),
        ("fidelity=paper", "fusion=visual", "queries=all"),
    ],
)
def test_the_papers_ablations_train(
    finished: Manifest, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    # L_ada is that of intermediate layers, so there must be one.
    once = ("iterations=1", "evaluate_every=1", "decoder_layers=2")
    trainer = tiny(finished, tmp_path / "run", *once, *changes)
    trainer.train()
    lines = log(RunFolder(tmp_path / "run"))
    (step,) = (line for line in lines if line["kind"] == "train")
    assert math.isfinite(step["total"])
    assert any("cosine" in name for name in step) == ("lambda_ada=0" not in changes)


def detectron2_pickle(path: Path, change: str | None = None) -> dict[str, np.ndarray]:
    """A ResNet-50 of random numbers, in the form of the public R-50.pkl; returned as written."""
    state = {}
    for key, value in torchvision.models.resnet50().state_dict().items():
        name = key if key.startswith("layer") else f"stem.{key}"
        name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        state[name] = value.numpy()
    if change is not None:
        state[change] = state[change][:1]
    whole = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(whole, protocol=2))
    return state


def with_weights(prepared: Path, folder: Path, name: str, file: Path) -> Manifest:
    """The finished store's manifest that gives a file of weights."""
    from combo.pipeline.manifest import load_manifest

    text = prepared.read_text().replace("store: store", f"store: {prepared.parent / 'store'}")
    given = f"{{path: {file}, sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}}}"
    path = folder / "data_manifest.yaml"
    path.write_text(f"{text}weights:\n  {name}: {given}\n")
    return load_manifest(path)


def test_both_encoders_start_from_the_public_pickle(prepared: Path, tmp_path: Path) -> None:
    state = detectron2_pickle(tmp_path / "R-50.pkl")
    manifest = with_weights(prepared, tmp_path, "resnet50", tmp_path / "R-50.pkl")
    changes = ("backbone=resnet50", "initialisation=imagenet")
    net = tiny(manifest, tmp_path / "run", *changes).network
    for encoder in ("frames", "maskiges"):
        body = net.siam_encoder.get_submodule(f"{encoder}.body")
        for ours, theirs in (
            ("conv1.weight", "stem.conv1.weight"),
            ("layer2.0.downsample.0.norm.running_var", "res3.0.shortcut.norm.running_var"),
            ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
        ):
            np.testing.assert_array_equal(body.state_dict()[ours].numpy(), state[theirs])


def test_a_pickle_of_another_shape_is_one_line_that_names_the_key(
    prepared: Path, tmp_path: Path
) -> None:
    detectron2_pickle(tmp_path / "R-50.pkl", change="res4.1.conv2.weight")
    manifest = with_weights(prepared, tmp_path, "resnet50", tmp_path / "R-50.pkl")
    changes = ("backbone=resnet50", "initialisation=imagenet")
    with pytest.raises(ComboError, match=r"R-50\.pkl.*res4\.1\.conv2\.weight") as raised:
        tiny(manifest, tmp_path / "run", *changes)
    assert "\n" not in str(raised.value)


@given(iteration=st.integers(0, 99), warmup=st.integers(0, 50))
def test_the_learning_rate_rises_then_falls_to_nothing(iteration: int, warmup: int) -> None:
    settings = dataclasses.replace(train_settings("combo-r50-s4"), iterations=100, warmup=warmup)
    factor = learning_rate_factor(settings, iteration)
    decay = (1 - iteration / 100) ** 0.9
    assert 0 < factor <= decay
    if iteration + 1 >= warmup:
        assert factor == decay
    else:
        assert factor == pytest.approx(decay * (iteration + 1) / warmup)


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(ComboError, match=r"device nonsense cannot be used .*--set device=cpu"):
        choose_device("nonsense")


# -- checkpoints ---------------------------------------------------------------------------------


def a_checkpoint(iteration: int) -> Checkpoint:
    network = {"weight": torch.full((1000, 100), float(iteration))}
    return Checkpoint(network, {}, {}, iteration, 0.5)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, a_checkpoint(1))
    # The next one is written by a process that gets as far as flushing it to the disk.
    write = (
        "import sys, time; from pathlib import Path; from combo.pipeline import durable\n"
        "from combo.pipeline.train import checkpoint\n"
        "path = Path(sys.argv[1]); state = checkpoint.load(path); state.iteration = 2\n"
        "durable.os.fsync = lambda _: time.sleep(600)\n"
        "checkpoint.save(path, state)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", write, str(path)])
    try:
        while not any(p.stat().st_size > 400_000 for p in tmp_path.glob(".*.partial")):
            assert writer.poll() is None
            time.sleep(0.05)
    finally:
        writer.kill()
        writer.wait()
    assert checkpoint.load(path).iteration == 1
    assert len(list(durable.leftovers(tmp_path))) == 1
    checkpoint.save(path, a_checkpoint(3))
    assert checkpoint.load(path).iteration == 3


def test_a_damaged_checkpoint_is_one_line_and_a_full_disk_leaves_the_old_one(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    data = trained.last.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ComboError, match="is cut short or no checkpoint"):
        checkpoint.load(path)
    with pytest.raises(ComboError, match="no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    checkpoint.save(path, a_checkpoint(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, a_checkpoint(2))
    monkeypatch.undo()
    assert checkpoint.load(path).iteration == 1
    assert list(tmp_path.iterdir()) == [path]


# -- evaluation ----------------------------------------------------------------------------------


def heard(run: RunFolder, sound: str) -> tuple[Evaluation, list[torch.Tensor]]:
    sounds: list[torch.Tensor] = []
    evaluation = measure(
        open_run(run, CPU), open_split(run, "test"), CPU, sound=sound,
        on_clip=lambda clip, _: sounds.append(clip.sound[0]),
    )  # fmt: skip
    return evaluation, sounds


def test_evaluation_hears_what_it_is_told_to_hear(trained: RunFolder) -> None:
    reader = open_split(trained, "test")
    right = [reader.sound([i])[0] for i in range(len(reader))]
    results = {sound: heard(trained, sound) for sound in SOUNDS}
    for evaluation, _ in results.values():
        assert 0 <= evaluation.m_j <= 1
        assert 0 <= evaluation.m_f <= 1
        assert list(evaluation.clips) == list(reader.plan.clips)
        assert evaluation.left_out == 0
    assert same_state(results["right"][1], right)
    swapped = results["swapped"][1]
    assert same_state(swapped, [right[1], right[2], right[0]])
    assert not any(sound.any() for sound in results["silent"][1])
    noise = torch.stack(results["noise"][1])
    mean, deviation = reader.sound_statistics()
    assert ((noise.mean((0, 1)) - mean).abs() <= deviation * 1.5 + 1e-6).all()
    assert heard(trained, "noise")[0] == results["noise"][0]


def test_evaluation_is_the_mean_of_its_clips(trained: RunFolder) -> None:
    evaluation, _ = heard(trained, "right")
    assert evaluation.m_j == pytest.approx(np.mean([j for j, _ in evaluation.clips.values()]))
    assert evaluation == heard(trained, "right")[0]


def test_scores_come_clip_by_clip_at_the_size_of_the_frames(trained: RunFolder) -> None:
    shapes: list[tuple[int, ...]] = []
    names: list[str] = []

    def on_clip(clip, scores) -> None:
        shapes.append(tuple(scores.shape))
        names.extend(clip.clips)

    reader = open_split(trained, "val")
    measure(open_run(trained, CPU), reader, CPU, on_clip=on_clip)
    assert shapes == [(5, 2, 64, 64)] * 2
    assert names == list(reader.plan.clips)


def test_clips_of_five_and_ten_frames_are_trained_and_scored_by_classes(
    finished: Manifest, tmp_path: Path
) -> None:
    changes = [*TINY, "iterations=1", "augment=colour-flip"]
    trainer = start(finished, "combo-small-avss", changes, tmp_path / "run")
    classes = len(trainer.readers["train"].plan.classes)
    assert trainer.network.settings.classes == classes > 2
    trainer.train()
    run = RunFolder(tmp_path / "run")
    assert not run.best.exists()  # without a val split nothing is best
    evaluation = measure(open_run(run, CPU), open_split(run, "train"), CPU)
    assert len(evaluation.clips) == 3
    assert 0 <= evaluation.m_j <= 1


def test_a_split_that_the_data_set_does_not_have_is_refused(trained: RunFolder) -> None:
    with pytest.raises(
        ComboError, match="no split 'dev'; give another with --split; it has test, train, val"
    ):
        open_split(trained, "dev")


@given(count=st.integers(2, 200))
def test_swapped_sounds_are_nobodys_own_and_everybodys_once(count: int) -> None:
    others = other_clips(count)
    assert not (others == np.arange(count)).any()
    assert sorted(others) == list(range(count))


def test_the_sound_of_a_single_clip_cannot_be_swapped() -> None:
    with pytest.raises(ComboError, match="--sound silent"):
        other_clips(1)


def test_the_networks_of_small_presets_are_built_from_their_settings() -> None:
    network = Combo(resolve("combo-small-s4", TINY).network)
    assert sum(p.numel() for p in network.parameters()) < 3_000_000
