"""Two processes train like one: the same losses and weights, the same end, and nothing lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.train import checkpoint, run_folder
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume

from .conftest import OF_PACE
from .together import ALIKE, COMMON, S4, begin

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("together.py")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def both(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    root = tmp_path_factory.mktemp("both")
    words = [str(free_port()), str(prepared), str(root)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", WORKER.stem, str(rank), *words],
            cwd=WORKER.parent, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 9], said
    return root


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves of the same runs."""
    root = tmp_path_factory.mktemp("alone")
    for name, changes in ALIKE.items():
        begin(load_manifest(prepared), root / name, changes).train()
    return root


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_PACE} for line in found]


def found(both: Path, rank: int) -> dict[str, Any]:
    return torch.load(both / f"found-{rank}.pt", weights_only=True)


def last(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(RunFolder(folder).last)


def apart(one: dict[str, Tensor], other: dict[str, Tensor], begun: dict[str, Tensor]) -> float:
    """How far two networks are from each other, as a share of their way from where they began."""
    difference, way = (
        torch.cat([(a[k] - b[k]).double().flatten() for k in one if one[k].is_floating_point()])
        for a, b in ((one, other), (one, begun))
    )
    return float(difference.norm() / way.norm())


@pytest.mark.parametrize("name", ALIKE)
def test_losses_and_weights_are_those_of_one_process(
    both: Path, alone: Path, finished: Manifest, tmp_path: Path, name: str
) -> None:
    one, two = lines(alone / name), lines(both / name)
    for word in ("kind", "precision"):
        assert [line.pop(word, None) for line in one] == [line.pop(word, None) for line in two]
    assert {key.split("_")[1] for key in one[0] if key.startswith("loss_")} == {
        "ce", "mask", "dice", "cosine",
    }  # fmt: skip
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    for line, other in zip(one, two, strict=True):
        assert line == pytest.approx(other, rel=5e-4, abs=1e-6)  # noise that has grown
    begun = begin(finished, tmp_path / "run", ALIKE[name]).network.state_dict()
    networks = [last(root / name).network for root in (alone, both)]
    assert apart(*networks, dict(begun)) < 0.01


def test_both_have_the_same_network_and_score_each_clip_once(both: Path) -> None:
    one, other = (found(both, rank)["weights"] for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    for rank in (0, 1):
        scores = found(both, rank)["scores"]
        assert scores[0] == scores[1], "right sound: shared by two, and by one alone"
        assert scores[2] == scores[3], "noise"
        assert scores[4] == scores[5], "same-class, which some clips do not have"
        assert len(scores[0]["clips"]) == 16


def test_killed_and_resumed_two_processes_end_with_the_same_bits(both: Path) -> None:
    # Micro-batches, augmentation, dropout and a mean of the networks.
    assert [found(both, rank)["killed at 4"] for rank in (0, 1)] == ["Killed: "] * 2
    whole, again = (
        torch.load(both / name / "last.pt", weights_only=True) for name in ("reference", "again")
    )
    assert whole["averaged"]
    assert whole.pop("run") != again.pop("run"), "names of their own"
    assert str(whole) == str(again)
    for part in ("network", "averaged"):
        assert all(torch.equal(whole[part][name], again[part][name]) for name in whole[part])
    assert lines(both / "reference") == lines(both / "again")


def test_all_stop_after_the_same_step_when_one_is_told_to(both: Path) -> None:
    for asked, stopped in ((1, 2), (3, 3)):
        ends = [found(both, rank)[f"told at {asked}"] for rank in (0, 1)]
        assert ends[0] == f"Stopped: go on with: combo train --resume {both / 'told'}"
        assert ends[1] == "SystemExit: 75"
        assert found(both, 0)[f"goes on from after {asked}"] == stopped
    # And the run ends as if nothing had been.
    one, two = (last(both / name).network for name in ("s4", "told"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines(both / "s4") == lines(both / "told")


def test_a_gradient_that_is_no_number_on_one_is_skipped_by_all_and_kept_whole(both: Path) -> None:
    (problem,) = found(both, 0)["problems"]
    assert "the gradient is nan at iteration 2: step not taken" in problem
    assert found(both, 1)["problems"] == []
    kept = torch.load(both / "bad" / "skipped" / "000002.pt", weights_only=True)
    assert len(kept["clips"]) == len(kept["batch"]["frames"]) == 4
    assert last(both / "bad").skipped == 1


def test_when_one_is_gone_the_other_saves_and_says_how_to_go_on_with_fewer(
    both: Path, alone: Path, finished: Manifest, tmp_path: Path
) -> None:
    said = found(both, 0)["dead"]
    run = both / "dead"
    assert said == (
        f"another process of {run} is gone, or does not answer; "
        f"iteration 3 is saved, go on with: combo train --resume {run}"
    )
    assert last(run).iteration == 3
    resume(run).train()  # by one process
    begun = begin(finished, tmp_path / "run", S4).network.state_dict()
    assert apart(last(run).network, last(alone / "s4").network, dict(begun)) < 0.01


def test_a_batch_that_cannot_be_shared_is_refused(finished: Manifest, tmp_path: Path) -> None:
    from combo.pipeline.train.processes import Processes

    with pytest.raises(ComboError, match="3 processes cannot share a batch of 4 evenly"):
        begin(finished, tmp_path / "run", S4, Processes(0, 3))


def torchrun(*words: str) -> list[str]:
    """The command that trains with two processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*start, "--master-port", str(free_port()), "-m", "combo", "train", *words]


def begun(prepared: Path, run: RunFolder, iterations: int) -> subprocess.Popen[str]:
    """Such a run, three steps of which are done."""
    changes = (*COMMON, f"iterations={iterations}", "batch_size=2", "micro_batch=1")
    changes = (*changes, f"evaluate_every={iterations}")
    settings = [word for each in changes for word in ("--set", each)]
    words = ("--preset", "combo-small-s4", "--manifest", str(prepared), "--out", str(run.root))
    command = torchrun(*words, *settings)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not run.metrics.exists() or run.metrics.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    return process


def test_when_the_first_is_killed_another_one_saves_and_says_how_to_go_on(
    prepared: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    process = begun(prepared, run, 1000)
    _, first = (run.root / "lock").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    iteration = last(run.root).iteration
    (line,) = (line for line in said.splitlines() if line.startswith("combo: "))
    assert line == (
        f"combo: another process of {run.root} is gone, or does not answer; "
        f"iteration {iteration} is saved, go on with: combo train --resume {run.root}"
    )
    assert 3 <= iteration <= lines(run.root)[-1]["iteration"] + 1 < 1000
    assert (run.root / "lock").read_text() == ""
    resume(run.root, changes=[f"iterations={iteration + 1}"]).train()


def test_who_ended_by_itself_or_lives_is_not_inherited_from(
    finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "FREE_WITHIN", 0.2)
    run = begin(finished, tmp_path / "run", S4).run
    with run.inherited() as mine:
        assert not mine, "the one before left in order"
    (run.root / "lock").write_text("elsewhere 1\n")
    with run.inherited() as mine, run.inherited() as another:
        assert (mine, another) == (True, False)
    with run.inherited() as mine:
        assert not mine


def test_torchrun_told_to_stop_leaves_a_run_that_it_goes_on_with(
    prepared: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    process = begun(prepared, run, 16)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0
    lines_said = [line for line in said.splitlines() if line.startswith("combo: ")]
    assert lines_said == [f"combo: told to stop; go on with: combo train --resume {run.root}"]
    assert last(run.root).iteration == lines(run.root)[-1]["iteration"] < 16
    resumed = subprocess.run(
        torchrun("--resume", str(run.root)), capture_output=True, text=True, check=True
    )
    assert re.fullmatch(rf"{run.root}: trained 16 iterations; best M_J .*\n", resumed.stdout)
    assert "2 processes" in resumed.stderr
    assert "Warning" not in resumed.stderr
    numbers = [line["iteration"] for line in lines(run.root) if line["kind"] == "train"]
    assert numbers == list(range(1, 17))
