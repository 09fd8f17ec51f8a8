"""Processes that share a job are killed at random until it is done."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from combo.pipeline.jobs.verify import Finding, verify_variant

from .conftest import CHEAP

UNITS, PROCESSES = 200, 4
SECONDS_A_UNIT = 0.08


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kill_every_ten_units_loses_nothing_and_repeats_only_what_was_in_flight(
    cheap: ModuleType, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    store, log = tmp_path / "store", tmp_path / "log"
    command = [sys.executable, CHEAP, store, log, str(UNITS), str(SECONDS_A_UNIT)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([str(word) for word in command])

    def begun() -> int:
        return len(log.read_text().split()) if log.exists() else 0

    # All of them have the whole job, as after submitting it four times.
    processes, killed, at_last_kill = [start() for _ in range(PROCESSES)], 0, 0
    while any(process.poll() is None for process in processes):
        if begun() < at_last_kill + 10:
            time.sleep(0.01)
            continue
        time.sleep(chance.random() * SECONDS_A_UNIT)
        at_last_kill = begun()
        victim = chance.randrange(PROCESSES)
        if processes[victim].poll() is None:
            processes[victim].kill()
            processes[victim].wait()
            killed += 1
            processes[victim] = start()
    assert killed >= 3
    assert [process.returncode for process in processes] == [0] * PROCESSES

    job = cheap.cheap_job(store, UNITS)
    verdicts = list(verify_variant(job.split, job.variant))
    assert not [each for each in verdicts if isinstance(each, Finding)]
    assert len(verdicts) == UNITS
    values = job.split.read_array(job.variant, "embedding")
    assert values[:, 0].tolist() == [1 + unit for unit in range(UNITS)]

    times = Counter(log.read_text().split())
    assert len(times) == UNITS
    assert sum(times.values()) - UNITS <= killed, "more was computed again than was in flight"
