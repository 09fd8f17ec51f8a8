"""How combo speaks: lines, bars, times, states."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from combo.cli import app
from combo.pipeline.console import Bar, Output, wrapped
from combo.pipeline.errors import counted
from combo.pipeline.jobs.outlook import Share, seconds_left
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.manifest import Manifest
from combo.pipeline.train.journal import Journal
from combo.pipeline.train.run_folder import RunFolder

WORD = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=30)


@given(st.lists(WORD, min_size=1, max_size=20), st.integers(10, 60))
def test_lines_are_broken_between_words_and_nothing_is_lost(words: list[str], width: int) -> None:
    lines = wrapped(" ".join(words), width).split("\n")
    assert " ".join(lines).split() == " ".join(words).split()
    assert all(" " not in line.strip() for line in lines if len(line) > 2 * width)


def test_a_command_to_be_copied_is_one_word() -> None:
    text = "combo: nothing there; run: combo preprocess all --data s4 --split train; or wait"
    lines = wrapped(text, 50).split("\n")
    assert "  combo preprocess all --data s4 --split train; or" in lines
    assert all(len(line) <= 50 for line in lines)


def test_one_is_no_several() -> None:
    told = [counted(1, "unit"), counted(0, "clip"), counted(1200, "class")]
    assert told == ["1 unit", "0 clips", "1,200 classes"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that passes, as the test says."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_bar_knows_the_time_left_also_when_one_takes_40_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Bar(Output(), "frames", 10) as bar:
        assert bar.said() == ""
        for _ in range(2):
            clock[0] += 40
            bar.advance()
        assert bar.said() == "40.0 s each, 5 min 20 s left"
        clock[0] += 10
        assert bar.said() == "40.0 s each, 5 min 10 s left"
        clock[0] += 310
        bar.advance(8)
    assert bar.said() == "took 6 min 40 s"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "frames: 1/10, 40.0 s each, 6 min 00 s left"
    assert told[-1] == "frames: 10/10, took 6 min 40 s"


def test_what_takes_days_is_told_less_often(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    day = 24 * 3600
    with Bar(Output(), "training", 2 * day // 10) as bar:
        for _ in range(2 * day // 10):
            clock[0] += 10.001
            bar.advance(note="loss 1", more=", 2.0 clips/s")
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("training: 1/17280, ")
    assert all(line.endswith(" left, loss 1, 2.0 clips/s") for line in told[:-1])
    places = [int(line.split()[1].partition("/")[0]) for line in told]
    apart = [b - a for a, b in pairwise(places)]
    assert max(apart) <= 31, "ten seconds each"
    assert 600 < len(told) < 1000


@pytest.mark.parametrize(("width", "said"), [(100, "loss 1"), (160, "loss 1, 2.0 clips/s")])
def test_a_terminal_is_told_more_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], width: int, said: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    with Bar(Output(), "training", 4) as bar:
        clock[0] += 1
        bar.advance(note="loss 1", more=", 2.0 clips/s")
        assert bar.said() == f"1.0 s each, 3 s left, {said}"


def test_the_time_left_is_that_of_all_stages_as_far_as_they_are_known(
    clock: list[float], manifest: Manifest
) -> None:
    frames, audio, maskige = (
        make_job(manifest, "s4", "train", stage) for stage in ("frames", "audio", "maskige")
    )
    now, later, unknown = (
        Share(frames, [0, 1, 2], None), Share(audio, [0, 1], 30.0), Share(maskige, [0], None),
    )  # fmt: skip
    shares = [now, later, unknown]
    assert seconds_left(shares) == (30.0, [now, unknown])
    now.begin()
    clock[0] += 40
    now.unit(failed=1)
    assert seconds_left(shares) == (80.0 + 30.0, [unknown])
    clock[0] += 10
    assert seconds_left(shares)[0] == 70.0 + 30.0
    assert seconds_left([unknown]) == (None, [unknown])
    clock[0] += 30
    now.unit(0)
    now.unit(0)
    assert seconds_left([now, later]) == (30.0, [])


def test_tensorboard_keeps_the_point_at_which_a_run_was_resumed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    first = Journal(run, 0, 0)
    for iteration in range(1, 6):
        first.write(iteration, "train", {"total": 1.0})
    again = Journal(run, 3, 3)  # the checkpoint it goes on from
    for iteration in range(4, 7):
        again.write(iteration, "train", {"total": 2.0})
    shown = EventAccumulator(str(run.tensorboard)).Reload().Scalars("train/total")
    assert [(each.step, each.value) for each in shown] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0),
    ]  # fmt: skip


def combo(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_split_whose_clips_all_failed_is_not_called_finished(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"no video")
    file = tmp_path / "own.yaml"
    file.write_text(
        "data_sets: {mine: {layout: folders, root: clips}}\n"
        f"store: {tmp_path / 'store'}\nstages: {{audio: {{encoder: mel-stats}}, "
        "maskige: {generator: felzenszwalb}}\n"
    )
    done = combo("preprocess", "all", "--manifest", str(file))
    assert done.exit_code == 1
    assert done.stdout.count("2 clips failed; NOT usable: all its clips failed") == 3
    assert done.stderr.count("mine/all a.mp4: frames, audio, maskige: damaged video") == 1
    shown = combo("status", "--manifest", str(file), "--watch").stdout
    assert shown.startswith("mine/all: 2 clips\n")
    assert shown.count("all failed  0 done, 2 failed") == 3
    assert "finished" not in shown


def test_advice_asks_for_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    file = tmp_path / "my own.yaml"
    file.write_text("store: store\ndata_sets: {s4: {layout: folders, root: clips}}\n")
    words = ("--manifest", str(file), "--encoder", "mel-stats")
    said = str(combo("train", "--preset", "combo-small-s4", *words).exception)
    assert said.endswith(
        f"run: combo preprocess all --data s4 --encoder mel-stats --manifest '{file}'"
    )
