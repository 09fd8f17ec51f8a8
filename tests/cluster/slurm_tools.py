"""A real Slurm for tests, where there is one."""

import fcntl
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


def why_no_slurm() -> str | None:
    """Why there is no Slurm here, or None when one answers."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch on this machine"
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, check=False)
    return None if asked.returncode == 0 else f"Slurm does not answer: {asked.stderr.strip()}"


@contextmanager
def alone() -> Generator[None]:
    """One test at a time has the cluster, however many processes run tests."""
    with Path(tempfile.gettempdir(), "combo-slurm-tests.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def queue() -> dict[str, str] | None:
    """The state of every job and array task in the queue; None when Slurm is too busy to say."""
    time.sleep(0.5)  # asked without a pause it takes half a core from the jobs
    words = ["squeue", "--noheader", "--array", "--format=%i %T"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        return None
    return dict(line.split() for line in asked.stdout.splitlines() if line.strip())


def are_over(*jobs: str) -> bool:
    """Whether none of these jobs or arrays is in the queue any more."""
    there = queue()
    return there is not None and not {job.partition("_")[0] for job in there} & set(jobs)


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def wait_until(what: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)


def start_again(task: str) -> None:
    """Slurm lets what is queued again wait for two minutes; a person with no patience does this."""
    wait_until(lambda: "PENDING" in slurm("scontrol", "show", "job", task))
    # Slurm revokes, by the second, a task's right to run: one started in the same is refused.
    time.sleep(2)
    slurm("scontrol", "update", f"JobId={task}", "StartTime=now")
