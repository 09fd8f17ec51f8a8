"""Which devices and cores processes get."""

import ctypes
import resource
import subprocess
import sys
import uuid
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from combo.pipeline.devices import cores as of_host
from combo.pipeline.devices import devices, keep_freed_memory, set_threads, threads
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.local import LocalRunner
from combo.pipeline.jobs.scheduler import cores


@dataclass
class Job:
    """As much of a job as a runner looks at."""

    stage: Any


NETWORK, NONE = (Job(SimpleNamespace(has_network=has)) for has in (True, False))


def test_cores_are_those_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    there = cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert cores() == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", str(there + 5))
    assert cores() == there


@pytest.mark.parametrize(("workers", "units", "processes"), [(None, 9, 1), (3, 9, 3), (3, 2, 2)])
def test_without_a_gpu_one_process_works_unless_more_are_asked_for(
    workers: int | None, units: int, processes: int
) -> None:
    for job in (NETWORK, NONE):
        places = LocalRunner(workers, "cpu").places(job, units)  # type: ignore[arg-type]
        assert [place.device for place in places] == ["cpu"] * processes
        assert all(place.threads == max(1, cores() // processes) for place in places)


@pytest.mark.gpu
def test_every_gpu_gets_a_process_and_more_on_request() -> None:
    import torch

    count = torch.cuda.device_count()
    if not count:
        pytest.skip("no CUDA device")
    places = LocalRunner(None, "auto", per_device=2).places(NETWORK, 100)  # type: ignore[arg-type]
    assert [place.device for place in places] == [f"cuda:{i % count}" for i in range(2 * count)]
    assert len(LocalRunner(None, "auto").places(NONE, 100)) == 1  # type: ignore[arg-type]


def test_a_stage_without_a_network_asks_for_no_device() -> None:
    assert LocalRunner(1, "nonsense").places(NONE, 5)[0].device == "cpu"  # type: ignore[arg-type]
    for strange in ("meta", "hpu", "privateuseone"):
        with pytest.raises(ComboError, match=rf"device {strange} cannot be used .*--device cpu"):
            devices(strange)
    with pytest.raises(ComboError, match=r"device nonsense cannot be used .*--device cpu"):
        devices("nonsense")


CLAIMS = """
import sys
from combo.pipeline.devices import claimed
with claimed(sys.argv[1:]) as position:
    print(position, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="claims are names in Linux's table of sockets")
def test_processes_that_come_and_go_spread_over_the_devices_of_their_host() -> None:
    names = [f"{uuid.uuid4()}" for _ in range(2)]

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMS, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    there = [start() for _ in range(4)]
    try:
        assert [position for _, position in there] == [0, 1, 0, 1]
        # One is killed, whichever: the next gets its device, not the one that its number says.
        there[1][0].kill()
        there[1][0].wait()
        there[1] = start()
        assert there[1][1] == 1
        # One leaves in good order.
        there[2][0].communicate()
        there[2] = start()
        assert there[2][1] == 0
    finally:
        for process, _ in there:
            process.communicate()


@pytest.mark.own_process
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_memory_that_was_freed_is_there_without_the_system() -> None:
    import torch

    def pages_fetched() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        maps = [torch.zeros(4 << 18) for _ in range(32)]  # 128 MiB
        del maps
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    several = (64 << 20) // resource.getpagesize()
    pages_fetched()
    assert pages_fetched() > several
    keep_freed_memory()
    pages_fetched()
    assert pages_fetched() < several // 10


def test_threads_are_no_more_than_cores_whatever_the_environment_says() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(of_host() + 3)  # as OMP_NUM_THREADS does
        set_threads()
        assert torch.get_num_threads() == of_host()
        with threads(of_host() + 1):
            assert torch.get_num_threads() == of_host() + 1
        assert torch.get_num_threads() == of_host()
    finally:
        torch.set_num_threads(before)
