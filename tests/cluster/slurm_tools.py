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


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def wait_until(what: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)
