"""What a job promises, each promise broken on purpose."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from commands import combo

from combo.pipeline import durable
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.claims import Claims
from combo.pipeline.jobs.estimate import estimate
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.parts import read_parts
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan, units_to_do
from combo.pipeline.jobs.status import stage_statuses
from combo.pipeline.jobs.stopping import Stop, Stopped, listening
from combo.pipeline.jobs.unit import Job
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.store import SplitStore, Variant

from .conftest import CHEAP
from .tools import begun, findings


def bytes_of(root: Path) -> dict[str, bytes]:
    """Every data file by its path; records hold times and stay aside."""
    files = (p for p in root.rglob("*") if p.is_file() and "records" not in p.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def wait_until(what: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


# -- kills ---------------------------------------------------------------------------------------


@pytest.mark.own_process
def test_a_worker_killed_at_any_step_leaves_no_unit_done_that_is_not(
    cheap: ModuleType, tmp_path: Path
) -> None:
    """The process dies before its first, second, ... call to the file system, until none kills.

    In a process of its own, which has no threads that its forks would lack.
    """
    assert _in_a_fork(_run_and_die, cheap, tmp_path / "whole", 0) == 0
    survived = False
    for step in range(1, 400):
        store = tmp_path / "killed"
        shutil.rmtree(store, ignore_errors=True)
        died = _in_a_fork(_run_and_die, cheap, store, step)
        assert died in (0, 9)
        assert _in_a_fork(_nothing_claims_too_much, cheap, store) == 0, f"step {step}"
        if died == 0:
            survived = True
            break
    assert survived
    assert step > 20, f"only {step} steps"
    assert bytes_of(store / "cheap") == bytes_of(tmp_path / "whole" / "cheap")


def _in_a_fork(target: Callable[..., None], *arguments: object) -> int:
    process = get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return abs(process.exitcode or 0)


def _run_and_die(cheap: ModuleType, store: Path, step: int) -> None:
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(store) in str(arguments):
            left -= 1  # from 0 on it never comes to that
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    job = cheap.cheap_job(store, 2)
    sys.addaudithook(hook)
    cheap.run_cheap(job)


def _nothing_claims_too_much(cheap: ModuleType, store: Path) -> None:
    """What is left counts nothing as done that cannot be read back, and can be gone on with."""
    job = cheap.cheap_job(store, 2)
    if job.split.read_plan() is not None and job.split.variants():
        for finding in findings(job):
            assert finding.unit is None, finding
    assert cheap.run_cheap(job).finished is not None
    assert findings(job) == []


def test_two_tasks_with_the_same_units_share_them(cheap: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, CHEAP, tmp_path / "store", log, "30", "0.05"]
    both = [subprocess.Popen([str(word) for word in command]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(log.read_text().split()) == [f"{unit:06d}" for unit in range(30)]
    assert findings(cheap.cheap_job(tmp_path / "store", 30)) == []


def test_workers_never_write_what_describes_a_group(manifest: Manifest) -> None:
    job = make_job(manifest, "s4", "train", "maskige")
    settle_plan(job, Options())
    job.split.create(job.variant, job.plan)

    def described() -> dict[Path, tuple[int, int]]:
        found = job.split.tensors.rglob("zarr.json")
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    before = described()
    assert len(before) == 7
    for part in range(1, 3):
        run_job(job, Options(part=(part, 2)), LocalRunner(2))
    assert described() == before
    assert findings(job) == []


# -- signals -------------------------------------------------------------------------------------


def start_slow_units(tmp_path: Path, seconds: float) -> tuple[subprocess.Popen[bytes], Path]:
    log = tmp_path / "log"
    words = [sys.executable, CHEAP, tmp_path / "store", log, "50", str(seconds)]
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL)
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 2)
    return process, log


def test_told_that_time_is_short_a_task_finishes_its_unit_and_stops(
    cheap: ModuleType, tmp_path: Path
) -> None:
    process, log = start_slow_units(tmp_path, 0.4)
    process.send_signal(signal.SIGUSR1)
    process.wait(300)
    job = cheap.cheap_job(tmp_path / "store", 50)
    begun = len(log.read_text().split())
    assert len(records.listing(job.split, job.variant)) == begun < 50
    assert [part.state for part in read_parts(job.split, job.variant)] == ["stopped"]


def test_told_to_go_a_task_leaves_its_unit_at_once(cheap: ModuleType, tmp_path: Path) -> None:
    process, log = start_slow_units(tmp_path, 0.4)
    process.send_signal(signal.SIGTERM)
    process.wait(300)
    job = cheap.cheap_job(tmp_path / "store", 50)
    begun = len(log.read_text().split())
    assert len(records.listing(job.split, job.variant)) in (begun - 1, begun)
    assert not list(tmp_path.rglob("*.partial"))
    assert cheap.run_cheap(job).finished is not None


def test_the_command_says_that_it_was_told_to_stop(manifest_file, tmp_path: Path) -> None:
    manifest = manifest_file(clips_per_unit=1)
    process = begun("preprocess", "frames", "--data", "s4", "--manifest", manifest)
    folder = tmp_path / "store/s4/train/records"
    wait_until(lambda: any(folder.glob("frames/*/0*.json")))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    if process.returncode != 0:  # else it was faster
        assert process.returncode == 75
        assert "told to stop; go on with: combo preprocess frames --data s4" in said
        assert "Traceback" not in said


def test_told_that_time_is_short_a_pool_does_not_wait_for_the_units_of_others(
    manifest: Manifest, tmp_path: Path
) -> None:
    """Neither those nor units of its own are begun any more."""
    job = make_job(manifest, "s4", "train", "maskige")
    settle_plan(job, Options())
    first = range(job.plan.units // 2)
    holder = get_context("fork").Process(target=_hold, args=(job, first, tmp_path / "held"))
    holder.start()
    try:
        wait_until(lambda: (tmp_path / "held").exists())
        stop = Stop()

        def ask(_record: object) -> None:
            stop.asked = True

        with pytest.raises(Stopped):
            run_job(job, Options(), LocalRunner(2), stop, on_unit=ask)
        assert holder.is_alive()
        done = set(records.listing(job.split, job.variant))
        assert done
        assert not done & set(first)
        with pytest.raises(Stopped):
            run_job(job, Options(), LocalRunner(2), stop)
        assert set(records.listing(job.split, job.variant)) == done
    finally:
        holder.kill()
        holder.join()


def _hold(job: Job, units: Iterable[int], held: Path) -> None:
    claims = Claims(job.split.records(job.variant))
    assert all(claims.take(unit) for unit in units)
    held.touch()
    signal.pause()


def test_a_variant_is_not_finished_when_a_unit_is_withdrawn_while_it_is_closed(
    cheap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = cheap.cheap_job(tmp_path, 3)
    cheap.run_cheap(job)
    job.split.finished_path(job.variant).unlink()
    before = records.leftovers

    def and_meanwhile(split: SplitStore, variant: Variant) -> Iterator[Path]:
        records.withdraw(split, variant, 1)  # all records were read, nothing is written yet
        return before(split, variant)

    monkeypatch.setattr(records, "leftovers", and_meanwhile)
    assert records.finalise(job.split, job.variant, job.plan) is None
    assert job.split.finished(job.variant) is None


# -- who is at work ------------------------------------------------------------------------------


def test_a_part_that_died_is_told_from_one_that_runs(cheap: ModuleType, tmp_path: Path) -> None:
    job = cheap.cheap_job(tmp_path / "store", 50)
    process, _ = start_slow_units(tmp_path, 0.2)
    (state,) = stage_statuses(tmp_path / "store")
    (part,) = state.parts
    assert (part.state, part.pid, part.units) == ("running", process.pid, 50)
    assert not state.finished
    process.kill()
    process.wait()
    (part,) = read_parts(job.split, job.variant)
    assert part.state == "died"


def test_a_part_on_another_host_has_died_when_it_is_silent(
    cheap: ModuleType, tmp_path: Path
) -> None:
    job = cheap.cheap_job(tmp_path, 4)
    cheap.run_cheap(job)
    (path,) = (job.split.records(job.variant) / "parts").iterdir()
    part = {**json.loads(path.read_text()), "host": "elsewhere", "state": "running"}
    path.write_text(json.dumps(part))
    assert [p.state for p in read_parts(job.split, job.variant)] == ["running"]
    os.utime(path, (time.time() - 600,) * 2)
    assert [p.state for p in read_parts(job.split, job.variant)] == ["died"]


def test_a_clock_that_jumps_changes_nothing_that_counts(cheap: ModuleType, tmp_path: Path) -> None:
    job = cheap.cheap_job(tmp_path, 6)
    run_job_of_part(cheap, job, (1, 2))
    done = sorted(records.listing(job.split, job.variant))
    for path in tmp_path.rglob("*"):
        os.utime(path, (4e9, 4e9))  # as written in the year 2096
    for unit in done[1:]:
        record = records.record_path(job.split, job.variant, unit)
        record.write_text(record.read_text().replace('"finished_at": 1', '"finished_at": 9'))
        os.utime(record, (1e6, 1e6))
    assert units_to_do(job, Options()) == [1, 3, 5]
    (state,) = stage_statuses(tmp_path)
    assert (state.done, state.to_do, state.seconds_left) == (3, 3, None)
    assert cheap.run_cheap(job).finished is not None
    assert findings(job) == []


def run_job_of_part(cheap: ModuleType, job: Job, part: tuple[int, int]) -> None:
    del cheap
    settle_plan(job, Options())
    run_job(job, Options(part=part))


def test_what_another_host_left_half_written_is_removed_when_it_is_old(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".0.elsewhere.{n}.abcd.partial" for n in (1, 2))
    for path in (fresh, old):
        path.touch()
    os.utime(old, (time.time() - 2 * durable.ABANDONED,) * 2)
    assert list(durable.leftovers(tmp_path)) == [old]


def test_what_this_host_left_half_written_is_removed_when_its_writer_is_gone(
    tmp_path: Path,
) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writing, of_killed, of_another = (
        tmp_path / f".0.{socket.gethostname()}.{pid}.{n}.partial"
        for n, pid in enumerate((os.getpid(), killed.pid, os.getpid()))
    )
    for path in (writing, of_killed, of_another):
        path.touch()
    # As in a container that is started anew, where each process has its number again.
    os.utime(of_another, (psutil.Process().create_time() - 2 * durable.CLOCKS_AGREE,) * 2)
    assert list(durable.leftovers(tmp_path)) == [of_another]
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody asked how
    assert {*durable.leftovers(tmp_path)} == {of_killed, of_another}
    killed.communicate()

    asked = tmp_path / f".clock.{socket.gethostname()}.{killed.pid}.0.partial"
    asked.touch()
    assert list(durable.leftovers(tmp_path, of="plan.json")) == [asked]


# -- what changes under a job --------------------------------------------------------------------


@pytest.fixture
def own_sample(sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample that a test may damage."""
    return shutil.copytree(sample, tmp_path / "own")


def test_changed_and_vanished_inputs_are_noticed_and_repaired(
    own_sample: Path, manifest_file
) -> None:
    path = manifest_file(own_sample)
    manifest = load_manifest(path)
    for stage in ("frames", "audio", "maskige"):
        job = make_job(manifest, "s4", "test", stage)
        settle_plan(job, Options())
        run_job(job, Options())
        assert findings(job, inputs=True) == []
    first, last = job.clips[0], job.clips[-1]
    shutil.copyfile(first.frames[1], first.frames[0])
    Path(str(last.frames[2])).unlink()

    verify = combo("verify", "--inputs", "--data", "s4", "--manifest", path, "--json")
    found = json.loads(verify.stdout)["findings"]
    assert verify.returncode == 1
    problems = [f["problem"] for f in found if "/maskige/" in f["where"]]
    assert problems[0] == f"the input files of clip {first.name} have changed"
    assert problems[1].startswith(f"an input of clip {last.name} is gone")
    assert str(last.frames[2]) in problems[1]
    assert not [f for f in found if "/audio/" in f["where"]], "no sound has changed"

    repair = combo("verify", "--inputs", "--repair", "--data", "s4", "--manifest", path, "--json")
    said = json.loads(repair.stdout)
    assert len(said["repaired"]) == 4
    assert said["findings"] == []
    assert repair.returncode == 0
    again = make_job(manifest, "s4", "test", "maskige")
    record = records.read_record(again.split, again.variant, 1)
    assert record is not None
    assert [clip.name for clip in record.failed] == [last.name]


def test_a_plan_replaced_while_a_task_runs_stops_the_task(
    cheap: ModuleType, tmp_path: Path
) -> None:
    job = cheap.cheap_job(tmp_path, 6)
    settle_plan(job, Options())

    def replace_it(_record: object) -> None:
        other = cheap.cheap_job(tmp_path, 5)
        settle_plan(other, Options(discard=True))
        other.split.create(other.variant, other.plan)

    with pytest.raises(ComboError, match=r"plan of cheap/train .* was replaced while this job ran"):
        run_job(job, Options(), on_unit=replace_it)
    (kept,) = records.done_units(job.split, job.variant, cheap.cheap_job(tmp_path, 5).plan)
    assert kept.unit == 0, "what was done before was taken over, and nothing is added to it"


@pytest.mark.parametrize("which", ["zarr.json", "valid/zarr.json"])
def test_a_damaged_description_is_one_line_and_removing_it_mends_it(
    cheap: ModuleType, tmp_path: Path, which: str
) -> None:
    job = cheap.cheap_job(tmp_path, 2)
    cheap.run_cheap(job)
    file = job.split.arrays(job.variant) / which
    whole = file.read_bytes()
    file.write_bytes(b"x" + whole[1:])
    again = cheap.cheap_job(tmp_path, 2)
    with pytest.raises(ComboError, match=r"zarr.json is damaged; run: combo verify --repair"):
        run_job(again, Options(overwrite=True))
    file.unlink()
    assert cheap.run_cheap(cheap.cheap_job(tmp_path, 2)).finished is not None
    assert file.read_bytes() == whole
    assert findings(cheap.cheap_job(tmp_path, 2)) == []


def test_a_unit_whose_clips_all_failed_is_no_measure(cheap: ModuleType, tmp_path: Path) -> None:
    job = cheap.cheap_job(tmp_path, 2)
    cheap.run_cheap(job)
    (record, other) = records.done_units(job.split, job.variant, job.plan)
    records.withdraw(job.split, job.variant, other.unit)
    records.withdraw(job.split, job.variant, record.unit)
    assert not estimate(job, 1, 1).measured
    failed = tuple(replace(clip, failed=True, reason="not a video") for clip in record.clips)
    records.commit(job.split, job.variant, replace(record, clips=failed))
    assert not estimate(job, 1, 1).measured
    records.commit(job.split, job.variant, other)
    assert estimate(job, 1, 1).measured


def test_a_variant_that_the_manifest_does_not_make_is_verified_but_not_repaired(
    manifest_file,
) -> None:
    path = manifest_file()
    job = make_job(load_manifest(path), "s4", "test", "maskige")
    path.write_text(path.read_text().replace("at: stored", "at: native"))
    other = make_job(load_manifest(path), "s4", "test", "maskige")
    for each in (job, other):
        settle_plan(each, Options())
        run_job(each, Options())
        each.split.shards(each.variant, 0)[0].unlink()
    repair = combo("verify", "--repair", "--data", "s4", "--manifest", path, "--json")
    assert repair.returncode == 1
    assert [job.variant.key in f["where"] for f in json.loads(repair.stdout)["findings"]] == [True]
    assert [other.variant.key in f["where"] for f in json.loads(repair.stdout)["repaired"]] == [
        True
    ]
    assert f"{job.variant.key} cannot be made or compared here" in repair.stderr
    assert findings(other) == []


# -- parts that are queued again ------------------------------------------------------------------


@pytest.mark.own_process
def test_a_unit_that_always_kills_its_process_keeps_no_other_from_being_done(
    cheap: ModuleType, tmp_path: Path
) -> None:
    """Unit 0 kills the process of the only part that has it, however often that is queued again."""
    store, units = tmp_path / "store", 6
    for _ in range(60):
        if _in_a_fork(_run_part_with_a_poisoned_unit, cheap, store, units) == 0:
            break
        job = cheap.cheap_job(store, units)
        if sorted(records.listing(job.split, job.variant)) == [2, 4]:
            break
    assert sorted(records.listing(job.split, job.variant)) == [2, 4]


def _run_part_with_a_poisoned_unit(cheap: ModuleType, store: Path, units: int) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "/.000000.json." in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    job = cheap.cheap_job(store, units)
    settle_plan(job, Options())
    sys.addaudithook(hook)
    run_job(job, Options(part=(1, 2)))


def test_units_made_again_need_no_more_disk(cheap: ModuleType, tmp_path: Path) -> None:
    job = cheap.cheap_job(tmp_path, 4)
    cheap.run_cheap(job)
    assert estimate(job, 4, 1).bytes > 0
    assert estimate(job, 4, 1, new=0).bytes == 0
    told = []
    run_job(job, Options(overwrite=True), on_estimate=told.append)
    assert [(each.units, each.bytes) for each in told] == [(4, 0)]


def test_a_closed_terminal_is_an_order_to_stop_but_for_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped), listening():
            signal.raise_signal(signal.SIGHUP)
        with listening(at_once=False) as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with listening() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)
