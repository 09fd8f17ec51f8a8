"""Processes that were frozen at the worst moment and wake when others have gone on."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.identity import fingerprint
from combo.pipeline.jobs import records, unit
from combo.pipeline.jobs.run import Options, run_job
from combo.pipeline.jobs.status import stage_statuses
from combo.pipeline.jobs.stopping import Stop, Stopped
from combo.pipeline.jobs.unit import Busy
from combo.pipeline.store import SplitStore, Variant

from .conftest import CHEAP
from .worlds import World, finished


def test_a_writer_that_wakes_under_another_plan_withdraws_its_unit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked at the plan and is about to commit, while others bring in another list."""
    job = world.job("abcdef")
    world.settle(job)
    commit, other = records.commit, world.job("fedcba")

    def frozen(split: SplitStore, variant: Variant, record: records.UnitRecord) -> None:
        monkeypatch.undo()
        world.run("fedcba", discard=True)
        commit(split, variant, record)

    monkeypatch.setattr(records, "commit", frozen)
    with pytest.raises(ComboError, match="was replaced while this job ran"):
        run_job(job, Options())
    assert sorted(records.listing(other.split, other.variant)) == [1]
    assert other.split.finished(other.variant) is None
    assert world.run("fedcba") == ["f", "e", "d"]


@pytest.mark.parametrize("list_after", ["abcdef", "fedcba"])
def test_a_finaliser_that_wakes_later_leaves_no_stale_manifest(
    world: World, monkeypatch: pytest.MonkeyPatch, list_after: str
) -> None:
    """It has read all records and is about to write, while others make everything again."""
    world.run("abcdef")
    job, other = world.job("abcdef"), world.job(list_after)
    job.split.finished_path(job.variant).unlink()
    write = records.durable.write_json

    def frozen(path: Path, value: object) -> None:
        if path == job.split.finished_path(job.variant):
            monkeypatch.undo()
            world.settle(other)
            (world.home / "sounds" / "a").write_text("new")
            assert finished(other, overwrite=True)
        write(path, value)

    monkeypatch.setattr(records.durable, "write_json", frozen)
    assert (records.finalise(job.split, job.variant, job.plan) is None) == (other.plan != job.plan)
    done = list(records.done_units(other.split, other.variant, other.plan))
    there = other.split.finished(other.variant)
    assert there is None or there.outputs == fingerprint([record.outputs for record in done])


def test_a_frozen_holder_of_a_claim_is_named_by_whoever_waits_and_by_status(
    cheap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    words = [sys.executable, CHEAP, tmp_path / "store", log, "2", "60"]
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL)
    try:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGSTOP)
        job, waited, stop = cheap.cheap_job(tmp_path / "store", 2), list[Busy](), Stop()
        (state,) = stage_statuses(tmp_path / "store")
        (holder,) = state.held
        assert (holder.unit, holder.pid, holder.host) == (0, process.pid, socket.gethostname())
        assert 0 <= time.time() - holder.since < 60

        def told(busy: Busy) -> None:
            waited.append(busy)
            stop.asked = True

        monkeypatch.setattr(unit, "TOLD_AFTER", 0.1)
        with pytest.raises(Stopped):
            run_job(job, Options(), stop=stop, on_wait=told)
        assert [busy.holder for busy in waited] == [holder]
        assert sorted(records.listing(job.split, job.variant)) == [1], "the other unit was free"
    finally:
        process.kill()
        process.wait()
    assert [state.held for state in stage_statuses(tmp_path / "store")] == [()]
