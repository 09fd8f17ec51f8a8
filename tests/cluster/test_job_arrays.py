"""Job arrays as combo means them: how they are divided, and what their scripts do in a shell."""

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import scheduler
from combo.pipeline.jobs.job_array import JobArray
from combo.pipeline.manifest import ClusterSettings


def array_of(tasks: int, at_once: int | None = None) -> JobArray:
    return JobArray(
        name="combo-audio",
        folder=Path("/store/jobs/audio-001"),
        parts=tasks,
        tasks=tasks,
        at_once=at_once,
        arguments=["audio", "--data", "s4"],
        finalise=["audio", "--data", "s4"],
        cluster=ClusterSettings(),
        environment={},
    )


@given(
    st.integers(1, 10_000),
    st.one_of(st.none(), st.integers(1, 10_000)),
    st.one_of(st.none(), st.integers(1, 10_000)),
)
def test_divided_arrays_hold_every_part_once_and_no_more_tasks_run_than_allowed(
    tasks: int, largest: int | None, at_once: int | None
) -> None:
    whole = array_of(tasks, at_once)
    arrays = whole.divided(largest)
    parts = [part for each in arrays for part in range(each.first, each.first + each.tasks)]
    assert parts == list(range(1, tasks + 1))
    assert all(1 <= each.tasks <= (largest or tasks) for each in arrays)
    assert {each.parts for each in arrays} == {tasks}
    # An array begins when the one `lanes` before it has ended: so many follow each other.
    lanes = whole.lanes(len(arrays))
    if at_once is None:
        assert lanes == len(arrays)
    else:
        limits = [each.at_once for each in arrays]
        together = [limits[i : i + lanes] for i in range(len(arrays) - lanes + 1)]
        assert all(sum(limit or 0 for limit in some) == at_once for some in together)
        assert all(limits)


def begun(script: str, number: int) -> tuple[str, float]:
    """Which part a task of an array would compute, and after how many seconds."""
    # Functions of the shell, in place of the two words that would take time.
    before = 'sleep() { echo "waits $1"; }; exec() { echo "$@"; }\n'
    variables = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": str(number)}
    done = subprocess.run(
        ["bash", "-euc", before + script], env=variables, capture_output=True, text=True, check=True
    )
    waits, command = done.stdout.splitlines()
    part = re.fullmatch(r".*-m combo preprocess audio --data s4 --part (\S+) --requeue", command)
    assert part is not None
    return part.group(1), float(waits.removeprefix("waits "))


def test_ten_tasks_begin_each_second_and_none_waits_longer_than_a_minute() -> None:
    slurm = scheduler.named("slurm")
    first, second = (slurm.script(each) for each in array_of(1500).divided(1000))
    assert begun(first, 1) == ("1/1500", 0.0)
    assert begun(first, 17) == ("17/1500", 1.6)
    assert begun(first, 600) == ("600/1500", 59.9)
    assert begun(first, 750) == ("750/1500", 14.9)
    assert begun(second, 1) == ("751/1500", 0.0)
    assert begun(second, 750) == ("1500/1500", 14.9)
    # A task that takes another's place need not wait for more than those beside it.
    assert begun(slurm.script(array_of(1000, at_once=16)), 1000) == ("1000/1000", 0.7)


def test_a_scheduler_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(ComboError, match="no scheduler 'abacus'; there is slurm"):
        scheduler.named("abacus")
    assert scheduler.named(None) is scheduler.SCHEDULERS["slurm"]
