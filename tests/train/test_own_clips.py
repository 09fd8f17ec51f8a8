"""A user's own clips, labelled in part: what is counted, what is said, what is refused."""

import json
import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import combo
from PIL import Image

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.evaluate import as_json, measure, open_run, open_split
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume, start

TINY = (
    "data=mine", "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16",
    "decoder_layers=1", "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64",
    "iterations=2", "batch_size=2", "evaluate_every=1", "log_every=1", "threads=1", "device=cpu",
)  # fmt: skip
CPU = torch.device("cpu")
MANIFEST = """\
store: store
data_sets:
  mine: {layout: folders, root: clips}
stages:
  frames: {size: 64}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""


def write_clip(folder: Path, frames: int, labels: int, name: str = "labels") -> None:
    """A disc that wanders over noise; its first `labels` frames are labelled."""
    random = np.random.default_rng(frames)
    (folder / name).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :64]
    for t in range(frames):
        y, x = random.integers(15, 49, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 140
        picture = random.integers(0, 90, (64, 64, 3), np.uint8)
        picture[disc] = (230, 80, 30)
        Image.fromarray(picture).save(folder / f"{t}.png")
        if t < labels:
            Image.fromarray(disc.astype(np.uint8) * 255).save(folder / name / f"{t}.png")
    with wave.open(str(folder / "s.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(random.integers(-999, 999, 16_000 * frames, np.int16).tobytes())


def test_names_are_utf_8_whatever_the_locale_says(tmp_path: Path) -> None:
    folder = tmp_path / "été"
    write_clip(folder / "clips" / "é", 2, 1)
    (folder / "data_manifest.yaml").write_text(MANIFEST, encoding="utf-8")
    says = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("preprocess", "frames", "--workers", "2", "--quiet")
    for environment in (says, {}):  # the second finds nothing changed
        done = subprocess.run(
            [sys.executable, "-m", "combo", *words],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads((folder / "store" / "mine" / "all" / "plan.json").read_bytes())
    assert plan["clips"] == ["é"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips in split folders, preprocessed; not to be changed."""
    folder = tmp_path_factory.mktemp("own")
    for split, clips in {
        "train": ((2, 2), (3, 1), (2, 0)),
        "val": ((2, 1), (2, 0)),
        "test": ((2, 0), (3, 3), (2, 2)),
        "unlabelled": ((2, 0), (2, 0)),
    }.items():
        for number, (frames, labels) in enumerate(clips):
            write_clip(folder / "clips" / split / f"clip{number}", frames, labels)
    write_clip(folder / "clips" / "unlabelled" / "clip2", 2, 2, "masks")
    (folder / "data_manifest.yaml").write_text(MANIFEST)
    done = combo("preprocess", "all", folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture
def manifest(home: Path) -> Manifest:
    return load_manifest(home / "data_manifest.yaml")


def test_every_command_says_how_many_frames_are_annotated_and_what_is_not_read(home: Path) -> None:
    wanted = {"train": (3, 7), "val": (1, 4), "test": (5, 7), "unlabelled": (0, 6)}
    said = (home / "said.txt").read_text()
    doctor = combo("doctor", folder=home).stdout
    for split, (annotated, frames) in wanted.items():
        text = f"{annotated} of {frames} frames annotated"
        assert any(f"mine/{split} frames/" in line and text in line for line in said.splitlines())
        assert any(f"mine/{split}" in line and text in line for line in doctor.splitlines())
    assert said.count("mine/unlabelled: not read: masks/ in 1 clip") == 1
    assert "not read: masks/ in 1 clip" in doctor
    states = json.loads(combo("status", "--json", folder=home).stdout)
    of_frames = {s["split"]: tuple(s["annotated"]) for s in states if s["stage"] == "frames"}
    assert of_frames == wanted
    assert "5 of 7 frames" in combo("status", folder=home).stdout


def test_clips_without_a_label_are_left_out_of_the_metrics_and_counted(
    home: Path, manifest: Manifest, tmp_path: Path
) -> None:
    trainer = start(manifest, "combo-small-ms3", TINY, tmp_path / "run")
    trainer.train()
    assert trainer.best > -1
    run = RunFolder(tmp_path / "run")
    network, reader = open_run(run, CPU), open_split(run, "test")
    result = measure(network, reader, CPU)
    assert (set(result.clips), result.without_labels) == ({"clip1", "clip2"}, 1)
    assert as_json(result)["clips_without_labels"] == 1
    # The sound of a clip without labels still goes to another one.
    assert set(measure(network, reader, CPU, sound="swapped").clips) == {"clip1", "clip2"}
    said = combo("evaluate", str(run.root), folder=home)
    assert "1 clip left out: no frame of theirs has a label" in said.stderr
    with pytest.raises(ComboError, match="no frame of mine/unlabelled has a label"):
        measure(network, open_split(run, "unlabelled"), CPU)


@pytest.mark.parametrize("changes", [("batch_size=1",), ("batch_size=3", "micro_batch=1")], ids=str)
def test_a_batch_or_a_part_of_one_without_a_label_is_trained_on(
    manifest: Manifest, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    start(manifest, "combo-small-ms3", (*TINY, "iterations=3", *changes), tmp_path / "run").train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    assert [line["skipped"] for line in told] == [0, 0, 0]
    # Each clip once: the third one has no label.
    assert [line["loss_ce"] == 0 for line in told].count(True) == ("micro_batch=1" not in changes)


def renamed(home: Path, folder: Path, **splits: str) -> Manifest:
    """A copy of the store under other names of splits."""
    for old, new in splits.items():
        split = folder / "store" / "mine" / new
        shutil.copytree(home / "store" / "mine" / old, split)
        plan = json.loads((split / "plan.json").read_text())
        (split / "plan.json").write_text(json.dumps(plan | {"of": f"mine/{new}"}))
    (folder / "data_manifest.yaml").write_text(MANIFEST.replace("clips", str(home / "clips")))
    return load_manifest(folder / "data_manifest.yaml")


def test_a_train_split_without_one_label_is_refused_before_the_first_step(
    home: Path, tmp_path: Path
) -> None:
    manifest = renamed(home, tmp_path, unlabelled="train", val="val")
    with pytest.raises(ComboError, match="no frame of mine/train has a label") as caught:
        start(manifest, "combo-small-ms3", TINY, tmp_path / "run")
    assert "combo preprocess frames --overwrite --data mine" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_val_split_without_one_label_is_no_reason_to_stop(home: Path, tmp_path: Path) -> None:
    manifest = renamed(home, tmp_path, train="train", unlabelled="val")
    start(manifest, "combo-small-ms3", TINY, tmp_path / "run").train()
    assert RunFolder(tmp_path / "run").last.exists()
    assert not RunFolder(tmp_path / "run").best.exists()


def test_clips_straight_in_the_root_are_divided_by_the_setting_that_the_error_names(
    tmp_path: Path,
) -> None:
    for number in range(6):
        write_clip(tmp_path / "clips" / f"clip{number}", 2, 2)
    file = tmp_path / "data_manifest.yaml"
    file.write_text(MANIFEST)
    assert combo("preprocess", "all", folder=tmp_path).returncode == 0
    with pytest.raises(ComboError, match="as one split, 'all'") as caught:
        start(load_manifest(file), "combo-small-ms3", TINY, tmp_path / "run")
    setting = str(caught.value).partition("`")[2].partition("`")[0]
    assert setting == "split: {train: 0.8, val: 0.1, test: 0.1}"
    file.write_text(MANIFEST.replace("root: clips", f"root: clips, {setting}"))
    refused = combo("preprocess", "all", folder=tmp_path)
    assert "of its 6 clips falls to split" in refused.stderr
    seed = refused.stderr.partition("`")[2].partition("`")[0]
    file.write_text(MANIFEST.replace("root: clips", f"root: clips, {setting}, {seed}"))
    assert combo("preprocess", "all", folder=tmp_path).returncode == 0
    start(load_manifest(file), "combo-small-ms3", TINY, tmp_path / "run").train()


def test_a_store_that_moved_is_asked_for(home: Path, tmp_path: Path) -> None:
    manifest = renamed(home, tmp_path, train="train", val="val")
    start(manifest, "combo-small-ms3", TINY, tmp_path / "run").train()
    (tmp_path / "store").rename(tmp_path / "moved")
    for opened in (resume, lambda run: open_split(RunFolder(run), "val")):
        with pytest.raises(ComboError, match=r"is not there; --store says where it lies now"):
            opened(tmp_path / "run")
    assert resume(tmp_path / "run", tmp_path / "moved").iteration == 2


@pytest.mark.parametrize("length", [0, 100, 40_000])
def test_a_checkpoint_that_was_cut_short_names_the_other_one(
    home: Path, tmp_path: Path, length: int
) -> None:
    manifest = renamed(home, tmp_path, train="train", val="val")
    start(manifest, "combo-small-ms3", TINY, tmp_path / "run").train()
    run = RunFolder(tmp_path / "run")
    run.last.write_bytes(run.last.read_bytes()[:length])
    with pytest.raises(ComboError, match=r"last\.pt is cut short or no checkpoint") as caught:
        resume(run.root)
    assert f"cp {run.previous} {run.last}" in str(caught.value)
    shutil.copy(run.previous, run.last)
    assert resume(run.root).iteration == 0
    run.last.unlink()
    with pytest.raises(ComboError, match=r"no checkpoint .*last\.pt; .*previous\.pt .* cp"):
        checkpoint.load(run.last)
    shutil.copy(run.best, run.last)
    with pytest.raises(ComboError, match=r"a network alone"):
        resume(run.root)
