"""Units on Dask workers, which come, go and are killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.jobs.stopping import Stop, Stopped
from combo.pipeline.jobs.unit import Job
from combo.pipeline.jobs.verify import Finding, verify_variant
from combo.pipeline.manifest import ClusterSettings, Manifest, load_manifest

pytestmark = pytest.mark.slow


def is_good(job: Job) -> bool:
    verdicts = verify_variant(job.split, job.variant)
    return not [each for each in verdicts if isinstance(each, Finding)]


def bytes_of(job: Job) -> dict[str, bytes]:
    root = job.split.root
    files = (p for p in root.rglob("*") if p.is_file() and "records" not in p.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


MAIN = """
from combo.cli import main
main()
"""
HIDDEN = (
    """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # as if they were not installed
"""
    + MAIN
)


def begun_by(
    code: str, *words: object, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own that this code begins."""
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def without(modules: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A command where these modules are not installed."""
    return begun_by(HIDDEN, modules, *words, timeout=120)


@contextmanager
def local(tmp_path: Path, workers: int):
    from combo.pipeline.jobs.dask_cluster import dask_runner

    runner = dask_runner(
        "local",
        workers=workers,
        device="cpu",
        cluster=ClusterSettings(),
        lifetime=None,
        logs=tmp_path / "logs",
    )
    with patch.dict(os.environ), runner as made:  # Dask sets variables for its workers, and stays
        yield made


def test_killed_workers_are_replaced_and_the_bytes_are_those_of_one_process(
    manifest: Manifest, manifest_file, tmp_path: Path
) -> None:
    alone = make_job(load_manifest(manifest_file(store="alone")), "s4", "train", "maskige")
    settle_plan(alone, Options())
    run_job(alone, Options(), LocalRunner(1))
    job = make_job(manifest, "s4", "train", "maskige")
    settle_plan(job, Options())
    killed: list[int] = []
    with local(tmp_path, 2) as (runner, dashboard):
        assert re.match(r"http://.+/status", dashboard)

        def kill_one(_record: object) -> None:
            if len(killed) < 2:
                # One killed just now does not answer any more.
                pids = runner.client.run(os.getpid, on_error="ignore")
                for pid in [pid for pid in pids.values() if pid not in killed][:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

        summary = run_job(job, Options(), runner, on_unit=kill_one)
        assert len(set(killed)) == 2
        assert summary.finished is not None
        assert summary.lost == []
        assert is_good(job)
        assert bytes_of(job) == bytes_of(alone)

        # The same workers take the next job.
        frames = make_job(manifest, "s4", "test", "frames")
        settle_plan(frames, Options())
        assert run_job(frames, Options(), runner).finished is not None

        # Told to stop, it finishes what workers have begun and takes back the rest.
        stopped = make_job(load_manifest(manifest_file(store="other")), "s4", "train", "maskige")
        settle_plan(stopped, Options())
        stop = Stop()

        def ask(_record: object) -> None:
            stop.asked = True

        with pytest.raises(Stopped):
            run_job(stopped, Options(), runner, stop, on_unit=ask)
        assert run_job(stopped, Options(), runner).finished is not None
        assert is_good(stopped)


def test_workers_of_a_cluster_that_is_there_are_used_and_may_come_late(
    manifest_file, tmp_path: Path
) -> None:
    scheduler_file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [
        subprocess.Popen(
            [
                *[sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"],
                *["--host", "127.0.0.1", "--dashboard-address", ":0"],
                *["--scheduler-file", str(scheduler_file)],
            ],
            **quiet,  # type: ignore[arg-type]
        )
    ]
    try:
        end = time.monotonic() + 300
        while not scheduler_file.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        address = re.search(r"tcp://[\d.]+:\d+", scheduler_file.read_text())
        assert address is not None
        words = ("preprocess", "frames", "--data", "s4", "--manifest", str(manifest_file()))
        command = [sys.executable, "-m", "combo", *words, "--dask", address.group()]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(2)
        started += [
            subprocess.Popen(
                [
                    *[sys.executable, "-m", "distributed.cli.dask_worker"],
                    *["--scheduler-file", str(scheduler_file), "--nthreads", "1"],
                ],
                cwd=tmp_path,
                **quiet,  # type: ignore[arg-type]
            )
            for _ in range(2)
        ]
        said, notes = process.communicate(timeout=300)
        assert process.returncode == 0, notes
        assert Counter(re.findall("finished", said))["finished"] == 3
    finally:
        for each in started:
            each.terminate()
        for each in started:
            each.wait()


def test_an_address_where_nobody_answers_is_one_line(manifest_file) -> None:
    words = ("preprocess", "audio", "--data", "s4", "--manifest", manifest_file())
    done = begun_by(MAIN, *words, "--dask", "nonsense")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search("--dask nonsense: .*; give local, slurm, or an address such as tcp://", line)


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("04:00:00", 14400), ("30:00", 1800), ("1-00:00:00", 86400), ("1-02:03", 93780), ("0:45", 45)],
)
def test_time_limits_are_read_as_slurm_writes_them(walltime: str, seconds: int) -> None:
    assert ClusterSettings(walltime=walltime).seconds == seconds


def test_a_scheduler_that_is_gone_is_one_line_and_what_is_done_stays(
    manifest: Manifest, tmp_path: Path
) -> None:
    job = make_job(manifest, "s4", "train", "maskige")
    settle_plan(job, Options())
    said = r"the Dask scheduler is gone .* run the same command"
    with local(tmp_path, 1) as (runner, _), pytest.raises(ComboError, match=said):
        # What the client does when the scheduler has not answered for half a minute.
        run_job(job, Options(), runner, on_unit=lambda _: runner.client.close())
    assert run_job(job, Options()).finished is not None
    assert is_good(job)


def test_workers_as_jobs_without_the_extra_are_one_line_that_names_it(manifest_file) -> None:
    words = ("preprocess", "frames", "--data", "s4", "--manifest", manifest_file())
    done = without("dask_jobqueue", *words, "--dask", "slurm")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--dask slurm needs the extra combo-avs[cluster]" in line
    assert "run: pip install 'combo-avs[cluster]'" in line


def test_without_the_extra_there_is_no_dashboard_and_all_else_works(manifest_file) -> None:
    words = ("preprocess", "frames", "--data", "s4", "--split", "val")
    dask = ("--manifest", manifest_file(), "--dask", "local", "--workers", "1")
    done = without("bokeh,dask_jobqueue", *words, *dask)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "dashboard: none without bokeh, which is in the extra combo-avs[cluster]" in done.stderr


SLOW_LOOP = (
    """
import asyncio, sys, time
soon = asyncio.new_event_loop

def late():
    time.sleep(10.5)  # Dask waits for its own for ten seconds
    return soon()

asyncio.new_event_loop = asyncio.events.new_event_loop = late
"""
    + MAIN
)


def test_a_machine_on_which_an_event_loop_starts_slowly(manifest_file) -> None:
    words = ("preprocess", "audio", "--data", "s4", "--manifest", manifest_file())
    dask = ("--dask", "local", "--workers", "1")
    done = begun_by(SLOW_LOOP, *words, *dask)
    assert done.returncode == 0, done.stderr
    assert Counter(re.findall("finished", done.stdout))["finished"] == 3
