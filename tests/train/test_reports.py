"""`combo report` and `combo show`: what they tell is what is there, and what the network said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from combo.cli import app
from combo.model.vggish import LogMel, consecutive
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.layouts import Clip
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.report.clips import StoredClips, columns
from combo.pipeline.report.files import files_of
from combo.pipeline.report.of_run import SWAPPED, Confusions, RunLooks, curves, look_at_run
from combo.pipeline.report.of_store import look_at_store
from combo.pipeline.report.page import differences, render
from combo.pipeline.report.sound import RATE, hear, spectrogram
from combo.pipeline.sample import write_sample
from combo.pipeline.source import open_source
from combo.pipeline.train.evaluate import measure, open_run, open_split
from combo.pipeline.train.loader import StoredBatch
from combo.pipeline.train.run_folder import RunFolder

from .conftest import finished_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(prepared, tmp_path_factory, ("iterations=2", "log_every=1"))


@pytest.fixture(scope="module")
def looks(run: RunFolder) -> RunLooks:
    return look_at_run(run.root, "test", CPU)


def test_a_run_is_told_with_the_numbers_that_evaluate_gives(
    run: RunFolder, looks: RunLooks
) -> None:
    network, reader = open_run(run, CPU), open_split(run, "test")
    for sound in ("right", "swapped", "silent"):
        alone = measure(network, reader, CPU, sound=sound)
        assert replace(looks.evaluations[sound], unchanged=alone.unchanged) == alone
    page = render([looks], [], 0.0)
    for name, (j, _) in looks.right.protocols.items():
        assert name in page
        assert f"{100 * j:.2f}" in page
    assert sum(sort.count for sort in looks.sorts) == 3
    worst, best = looks.worst[0].title, looks.best[0].title
    scores = {name: j for name, (j, _) in looks.right.clips.items()}
    assert scores[worst] == min(scores.values()) < max(scores.values()) == scores[best]
    frames, maskige, *painted = looks.worst[0].rows
    assert (frames, painted) == ("frames", ["truth", "prediction", SWAPPED])
    assert maskige.startswith("Maskige felzenszwalb-")


def test_curves_are_those_of_the_journal_without_a_line_that_was_cut_off(run: RunFolder) -> None:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [line["total"] for line in lines if line["kind"] == "train"]
    before = run.metrics.read_bytes()
    try:
        run.metrics.write_bytes(before + b'{"iteration": 3, "kind": "tra')
        iterations, totals = curves(run)["train"]["total"]
    finally:
        run.metrics.write_bytes(before)
    assert iterations.tolist() == [1, 2]
    assert totals.tolist() == losses


def test_a_confusion_matrix_counts_each_labelled_pixel_once() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0, 1, 2, 255], (1, 3, 4, 5)).astype(np.uint8))
    scores = torch.from_numpy(rng.random((3, 3, 4, 5)).astype(np.float32))
    annotated = torch.tensor([[True, False, True]])
    clip = StoredBatch(
        torch.zeros(1, 3, 3, 4, 5, dtype=torch.uint8), None, labels, torch.zeros(1, 3, 2),
        torch.ones(1, 3, dtype=torch.bool), annotated, ("a",), None,
    )  # fmt: skip
    found = Confusions(3)
    found.add(clip, scores)
    wanted = np.zeros((3, 3), int)
    for t in (0, 2):
        for y in range(4):
            for x in range(5):
                if labels[0, t, y, x] != 255:
                    wanted[labels[0, t, y, x], scores[t, :, y, x].argmax()] += 1
    assert (found.pixels == wanted).all()


def test_a_store_is_told_with_its_counts_its_failures_and_its_masks(
    prepared: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "sample"
    write_sample(sample, s4=(4, 0, 0), ms3=(0, 0, 0), avss=(0, 0, 0))
    broken = sorted(sample.rglob("visual_frames/train/*/*/*_2.png"))[1]
    broken.write_bytes(b"no picture")
    file = tmp_path / "broken.yaml"
    file.write_text(
        prepared.read_text()
        .replace("store: store", "store: broken")
        .replace(str(load_manifest(prepared).root("s4")), f"{sample}/AVSBench_object/Single-source")
    )
    manifest = load_manifest(file)
    for stage in ("frames", "maskige"):
        job = make_job(manifest, "s4", "train", stage)
        settle_plan(job, Options())
        run_job(job, Options())
    looks = look_at_store(manifest.store_path)
    (split,) = looks.splits
    frames, maskige = split.stages
    assert (split.clips, frames.status.done, frames.status.failed) == (4, 3, 1)
    assert frames.status.annotated == (3, 15)
    assert [(s, stage, name) for s, stage, name, _ in looks.failures] == [
        ("s4/train", stage, broken.parent.name) for stage in ("frames", "maskige")
    ]
    assert maskige.masks is not None
    assert len(maskige.masks) == 15
    assert maskige.masks.min() > 0
    home = manifest.store_path / "s4/train/tensors.zarr" / frames.variant.key
    assert frames.bytes == sum(
        f.stat().st_size for a in frames.sizes for f in (home / a).rglob("*") if f.is_file()
    )
    assert sum(speed.clips for speed in frames.speeds) == 4
    page = render([], [looks], 0.0)
    assert f"{broken}" in page
    assert "3 of 4" in page
    assert page.count("<article") == len(split.samples) == 3
    assert {len(panel.rows) for panel in split.samples} == {3}


def test_a_store_that_is_not_finished_is_shown_as_far_as_it_is(own: Manifest) -> None:
    home = own.store_path / "s4/train"
    for record in home.glob("records/maskige/*/finished.json"):
        record.unlink()
    for shard in home.glob("tensors.zarr/maskige/*/*/c/1"):
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    for record in home.glob("records/maskige/*/000001.json"):
        record.unlink()
    looks = look_at_store(own.store_path)
    (split,) = [each for each in looks.splits if str(each.source) == "s4/train"]
    stages = {stage.variant.stage: stage.status for stage in split.stages}
    assert (stages["frames"].finished, stages["maskige"].finished) == (True, False)
    assert stages["maskige"].to_do == 3
    assert {len(panel.rows) for panel in split.samples} == {3}
    assert "<em>open</em>" in render([], [looks], 0.0)


def test_a_store_that_is_damaged_is_told_beside_what_is_not(own: Manifest, tmp_path: Path) -> None:
    (own.store_path / "s4/val/plan.json").write_text("{")
    page = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(own.store_path), "--out", str(page)])
    assert done.exit_code == 1
    assert "combo preprocess all --data s4 --split val" in done.stderr
    assert "s4/val" in page.read_text()
    assert page.read_text().count("<article") > 8


def test_a_sound_that_is_gone_is_said_to_be_gone(own: Manifest, sample: Path) -> None:
    gone = sample.parent / "gone"
    for inputs in own.store_path.glob("*/*/inputs.json"):
        inputs.write_text(inputs.read_text().replace(str(sample), str(gone)))
    page = render([], [look_at_store(own.store_path)], 0.0)
    assert "<audio" not in page
    assert "No sound to play" in page
    assert str(gone) in page


def test_whatever_a_name_holds_is_text_on_the_page(looks: RunLooks) -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    panel = replace(looks.worst[0], title=evil, classes={3: evil}, notes=(evil,))
    clips = {evil if n == looks.worst[0].title else n: s for n, s in looks.right.clips.items()}
    evaluations = {s: replace(e, clips=clips) for s, e in looks.evaluations.items()}
    page = render([replace(looks, worst=[panel], evaluations=evaluations)], [], 0.0)
    assert page.count("<script") == 1
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") > 5


def test_settings_in_which_runs_differ_are_named() -> None:
    runs = [{"train": {"seed": 0, "power": 1}, "kind": "combo"}, {"train": {"seed": 3, "power": 1}}]
    assert differences(runs) == {"train.seed": ["0", "3"], "kind": ["combo", ""]}


def test_a_spectrogram_is_what_the_front_end_makes(prepared: Path) -> None:
    source = open_source(prepared.parent / "store", "s4", "test")
    clips = StoredClips(source, files_of(source))
    clip = clips.files.clip(clips.plan.clips[0])
    assert clip is not None
    heard = hear(clip, clips.audio)
    assert heard.seconds == 5
    mel = LogMel()(consecutive(torch.from_numpy(heard.waveform))).flatten(0, 1).numpy()
    picture = spectrogram(heard)[::-1].astype(int).sum(-1)
    loud, quiet = (
        np.unravel_index(mel.argmax(), mel.shape),
        np.unravel_index(mel.argmin(), mel.shape),
    )
    assert picture[loud[1], loud[0]] > picture[quiet[1], quiet[0]]
    assert picture.shape == (64, 500)
    assert [round(w.start, 2) for w in heard.windows] == [0, 0.96, 1.92, 2.88, 3.84]
    assert all(round(w.end - w.start, 3) == 0.975 for w in heard.windows)


def test_sound_lies_on_the_axis_of_the_frames(tmp_path: Path) -> None:
    import soundfile

    tick = np.zeros(4 * RATE)
    tick[int(2.5 * RATE)] = 1.0
    soundfile.write(tmp_path / "a.wav", tick, RATE, "FLOAT")
    clip = Clip("a", (), tmp_path / "a.wav", times=(1.5, 2.5, 3.5, 4.5), span=1.0)
    heard = hear(clip, {"windows": "centred", "encoder": "mel-stats"})
    assert np.flatnonzero(heard.waveform).tolist() == [int(1.5 * RATE)]
    assert len(heard.waveform) == 4 * RATE
    assert [(w.start + w.end) / 2 for w in heard.windows] == pytest.approx([0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize(
    ("count", "seconds", "wanted"),
    [(5, 1.0, (5, [0, 1, 2, 3, 4])), (1, 90.0, (1, [0])), (12, 2.0, (10, list(range(10))))],
)
def test_of_a_long_clip_the_first_seconds_are_shown(
    count: int, seconds: float, wanted: tuple[int, list[int]]
) -> None:
    assert columns(count, seconds) == wanted
    spoken_of, shown = columns(1000, 0.04)
    assert (spoken_of, len(shown), shown[0], shown[-1]) == (500, 10, 0, 499)


# --- the commands ------------------------------------------------------------------------------


def combo(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: object) -> str:
    with pytest.raises(ComboError) as error:
        CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    return str(error.value)


def test_a_clip_is_shown_with_all_that_is_known_of_it(
    run: RunFolder, prepared: Path, tmp_path: Path
) -> None:
    store, out = prepared.parent / "store", tmp_path / "clip.png"
    name = open_source(store, "s4", "test").plan().clips[0]
    said = json.loads(combo("show", store, name, "--run", run.root, "--out", out, "--json"))
    assert said["rows"][0] == "frames"
    assert said["rows"][1].startswith("Maskige felzenszwalb-")
    assert said["rows"][2:] == ["truth", "prediction"]
    source = open_source(store, "s4", "test")
    frame = StoredClips(source, files_of(source)).panel(0).rows["frames"][0]
    column = np.lib.stride_tricks.sliding_window_view(np.asarray(Image.open(out))[22:86], 64, 1)
    assert (column.transpose(1, 0, 3, 2) == frame).all((1, 2, 3)).any()
    combo("show", store, name, "--out", out)  # our own file may be written again
    assert "no clip nothing in" in refused("show", store, "nothing", "--out", out)
    assert "which clip?" in CliRunner().invoke(app, ["show", str(store)]).output


def test_a_file_that_is_not_of_our_making_is_never_replaced(
    prepared: Path, run: RunFolder, tmp_path: Path
) -> None:
    for name, arguments in (("a.png", ("show", "--data", "s4")), ("a.html", ("report", run.root))):
        (tmp_path / name).write_text("mine")
        manifest = ("--manifest", prepared)
        said = refused(*arguments, *manifest, "--out", tmp_path / name)
        assert "give another file with --out" in said
        assert (tmp_path / name).read_text() == "mine"


def test_a_data_set_is_seen_before_anything_is_computed(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", s4=(3, 1, 1), ms3=(0, 0, 0), avss=(2, 1, 1))
    file = tmp_path / "data_manifest.yaml"
    file.write_text(
        "store: store\ndata_sets:\n  avss: {layout: avsbench-avss, root: data}\n"
        "  s4: {layout: avsbench-s4, root: data}\nstages: {audio: {encoder: mel-stats}}\n"
    )
    out = tmp_path / "sheet.png"
    for name, clips in (("s4", 5), ("avss", 4)):
        said = json.loads(combo("show", "--data", name, "-m", file, "--out", out, "--json"))
        assert (said["clips"], said["wrong"]) == (clips, [])
    clip = next((tmp_path / "data/AVSBench_semantic").glob("v*/*"))
    assert combo("show", "avss", clip.name, "-m", file, "--out", out).endswith("frames, truth\n")
    for label in clip.glob("labels_semantic/*"):
        label.write_bytes(b"")
    done = CliRunner().invoke(app, ["show", "--data", "avss", "-m", str(file), "--out", str(out)])
    assert done.exit_code == 1
    assert str(clip) in done.stderr
    assert not (tmp_path / "store").exists()


def test_what_is_neither_run_nor_store_is_said(tmp_path: Path, prepared: Path) -> None:
    assert "is not there" in refused("report", tmp_path / "no")
    assert "neither a run" in refused("report", tmp_path)
    assert "neither a store nor a data set" in refused("show", tmp_path, "x", "-m", prepared)
