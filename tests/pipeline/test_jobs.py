"""plan -> run -> commit -> finalise, and everything that may go wrong on the way."""

import contextlib
import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from combo.pipeline import durable
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, Summary, run_job, settle_plan, units_to_do
from combo.pipeline.jobs.status import stage_statuses
from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import (
    Finding,
    count_findings,
    repair_variant,
    verify_variant,
)
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.store import SplitStore


def run(job: Job, workers: int = 1, **options: object) -> Summary:
    chosen = Options(**options)  # type: ignore[arg-type]
    settle_plan(job, chosen)
    return run_job(job, chosen, LocalRunner(workers))


def findings(job: Job, inputs: bool = False) -> list[Finding]:
    found = verify_variant(job.split, job.variant, job if inputs else None)
    return [each for each in found if isinstance(each, Finding)]


def shards(root: Path) -> dict[str, bytes]:
    """Every data file of a store by its path, the records' times left aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "records" not in path.parts
    }


@pytest.fixture
def own_sample(sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample that a test may damage."""
    return shutil.copytree(sample, tmp_path / "own")


def test_a_finished_stage_has_every_clip_and_verifies(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "frames")
    summary = run(job)
    assert summary.finished is not None
    assert summary.finished.clips == 16
    assert not summary.failed
    assert findings(job) == []
    assert job.split.read_array(job.variant, "annotated")[:16].sum(1).tolist() == [1] * 16
    assert job.split.read_array(job.variant, "valid").sum() == 16


def test_a_second_run_computes_nothing(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "frames")
    run(job)
    before = shards(job.split.root)
    assert run(job).todo == 0
    assert shards(job.split.root) == before


def test_parts_share_the_units_and_the_last_one_finishes(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "frames")
    unfinished = [run(job, part=(part, 3)) for part in (1, 3)]
    assert [each.finished for each in unfinished] == [None, None]
    assert run(job, part=(2, 3)).finished is not None
    assert sum(each.units for each in unfinished) < job.plan.units
    assert findings(job) == []


def test_processes_write_what_one_process_writes(manifest: Manifest, manifest_file) -> None:
    alone = make_job(manifest, "s4", "train", "frames")
    run(alone)
    together = make_job(load_manifest(manifest_file(store="other")), "s4", "train", "frames")
    run(together, workers=3)
    assert shards(together.split.root) == shards(alone.split.root)


def test_ten_kills_leave_nothing_that_differs_from_an_undisturbed_run(manifest_file) -> None:
    undisturbed = make_job(load_manifest(manifest_file()), "s4", "train", "frames")
    run(undisturbed)
    job = make_job(
        load_manifest(manifest_file(store="killed", clips_per_unit=2)), "s4", "train", "frames"
    )
    moments = random.Random(1)
    command = [
        sys.executable, "-m", "combo", "preprocess", "frames", "--data", "s4", "--split", "train",
        "--manifest", str(manifest_file(store="killed")), "--overwrite", "--quiet",
    ]  # fmt: skip
    interrupted = 0
    for kill in range(10):
        # Half of the kills hit one process, half a parent with two workers.
        process = subprocess.Popen(
            [*command, "--workers", str(1 + kill % 2)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for_the_first_record(job, process)
        time.sleep(moments.random() * 0.25)
        interrupted += process.poll() is None
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()
        for finding in findings(job):
            assert (
                "not done" in finding.problem
                or "not finished" in finding.problem
                or ("left over" in finding.problem)
            ), finding
    assert interrupted >= 5, "the kills came too late to disturb anything"
    assert run(job).finished is not None
    assert shards(job.split.root) == shards(undisturbed.split.root)
    assert findings(job) == []


def wait_for_the_first_record(job: Job, process: subprocess.Popen) -> None:
    """Until a unit of this run is committed; --overwrite withdraws the old record first."""
    folder = job.split.records(job.variant)
    started = time.time()
    while process.poll() is None:
        newest = 0.0
        for path in present(folder):
            with contextlib.suppress(FileNotFoundError):  # withdrawn meanwhile
                newest = max(newest, path.stat().st_mtime)
        if newest > started:
            return
        time.sleep(0.002)


def present(folder: Path) -> list[Path]:
    return [path for path in folder.glob("0*.json") if path.exists()]


def test_a_killed_worker_is_replaced_and_its_unit_done(manifest: Manifest) -> None:
    import psutil

    job = make_job(manifest, "s4", "train", "frames")
    settle_plan(job, Options())
    killed: list[int] = []

    def kill_one(_record: object) -> None:
        for child in psutil.Process().children(recursive=True):
            # One that was killed just now may be gone, or there without a command line.
            with contextlib.suppress(psutil.NoSuchProcess):
                if len(killed) < 3 and "spawn_main" in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)
                    return

    summary = run_job(job, Options(), LocalRunner(2), on_unit=kill_one)
    assert killed
    assert summary.lost == []
    assert summary.finished is not None
    assert findings(job) == []


def test_a_clip_that_cannot_be_read_costs_nobody_else(own_sample: Path, manifest_file) -> None:
    job = make_job(load_manifest(manifest_file(own_sample)), "s4", "train", "frames")
    frame = job.clips[3].frames[2]
    whole = frame.read_bytes()
    frame.write_bytes(whole[: len(whole) // 2])
    summary = run(job)
    assert list(summary.failed) == [job.clips[3].name]
    assert str(frame) in summary.failed[job.clips[3].name]
    assert summary.finished is not None
    assert summary.finished.failed == summary.failed
    valid = job.split.read_array(job.variant, "valid")[:16]
    assert np.flatnonzero(valid == 0).tolist() == [3]
    assert findings(job) == []

    frame.write_bytes(whole)
    assert run(job).failed, "without --retry-failed the clip stays as it is"
    again = run(job, retry_failed=True)
    assert again.todo == 1
    assert not again.failed
    assert job.split.read_array(job.variant, "valid")[:16].all()


def test_other_settings_make_another_variant_beside_the_first(manifest_file) -> None:
    path = manifest_file()
    first = make_job(load_manifest(path), "s4", "val", "maskige")
    run(first)
    path.write_text(
        path.read_text().replace("at: stored", "at: stored, felzenszwalb: {scale: 400}")
    )
    second = make_job(load_manifest(path), "s4", "val", "maskige")
    run(second)
    assert second.variant.name != first.variant.name
    assert {v.name for v in first.split.variants("maskige")} == {
        first.variant.name,
        second.variant.name,
    }
    assert findings(first) == findings(second) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_shard_is_found_and_repaired(manifest: Manifest, damage: str) -> None:
    job = make_job(manifest, "s4", "test", "frames")
    run(job)
    whole = shards(job.split.root)
    shard = job.split.shards(job.variant, 1)[0]
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-100])
    else:
        shard.unlink()
    found = findings(job)
    assert [finding.unit for finding in found] == [1], found
    before = records.read_record(job.split, job.variant, 0)
    assert repair_variant(job, found) == found
    assert records.read_record(job.split, job.variant, 0) == before, "only the broken unit is made"
    assert shards(job.split.root) == whole
    assert findings(job) == []


def test_a_record_that_speaks_of_other_clips_counts_for_nothing(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "test", "frames")
    run(job)
    path = records.record_path(job.split, job.variant, 0)
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "plan": "0" * 64}))
    assert units_to_do(job, Options()) == [0]
    path.write_text("{")
    assert units_to_do(job, Options()) == [0]


def test_a_full_disk_is_one_line_and_leaves_a_store_to_go_on_with(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(manifest, "s4", "test", "frames")
    write = durable.os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(ComboError, match="disk is full"):
        run(job)
    monkeypatch.undo()
    assert not list(job.split.root.rglob("*.partial"))
    assert run(job).finished is not None
    assert findings(job) == []


def test_a_store_half_way_tells_how_far_it_is(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "frames")
    run(job, part=(1, 2))
    (state,) = stage_statuses(manifest.store_path, ["s4"])
    assert (state.done, state.failed, state.to_do, state.finished) == (8, 0, 8, False)
    assert state.clips_per_second is not None
    assert any("is not finished" in finding.problem for finding in findings(job))


def test_counts_of_the_published_data_set_are_expected_on_request(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "frames")
    run(job)
    (finding,) = count_findings(job.split)
    assert "16 clips" in finding.problem
    assert "3452" in finding.problem


def test_what_a_dead_process_left_over_goes_with_the_next_finish(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "test", "frames")
    settle_plan(job, Options())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    import socket

    mine, other = (f"{socket.gethostname()}.{pid}.00ff.partial" for pid in (dead.pid, 1))
    left = [
        job.split.root / f".plan.json.{mine}",
        job.split.tensors / f".zarr.json.{mine}",
        job.split.records(job.variant) / f".000001.json.{mine}",
        job.split.arrays(job.variant) / "frames" / "c" / "1" / f".0.{mine}",
    ]
    alive = job.split.root / f".plan.json.{other}"
    for path in (*left, alive):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert sum("left over" in finding.problem for finding in findings(job)) == len(left)
    run(job)
    assert not [path for path in left if path.exists()]
    assert alive.exists()


def test_a_store_without_a_plan_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ComboError, match="combo preprocess all --data s4 --split train"):
        SplitStore(tmp_path, "s4", "train").plan()
