"""Runs units in this process, or in several processes on this machine that may die at any time."""

import multiprocessing as mp
import os
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

from ..errors import ComboError
from .records import UnitRecord
from .unit import Job

ATTEMPTS = 3
"""How often a unit may take its process down with it before it is given up."""


@dataclass(frozen=True)
class Lost:
    """A unit that killed its process every time; it stays undone."""

    unit: int
    exit_code: int


@dataclass
class _Process:
    process: SpawnProcess
    pipe: Any
    unit: int | None = None


def run_units(job: Job, units: Sequence[int], workers: int) -> Iterator[UnitRecord | Lost]:
    """Compute and commit `units`; yields each unit's record as it is committed.

    workers: 1 computes in this process; more start that many, each with the stage loaded once. A
    process that dies (killed, out of memory) is replaced and its unit tried again.
    """
    if workers == 1 or len(units) < 2:
        if units:
            run = job.open(os.cpu_count() or 1)
            yield from (run(unit) for unit in units)
        return
    yield from _run_in_processes(job, units, min(workers, len(units)))


def _run_in_processes(job: Job, units: Sequence[int], workers: int) -> Iterator[UnitRecord | Lost]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    waiting, deaths = deque(units), Counter[int]()
    pool = [_start(job, threads) for _ in range(workers)]
    try:
        for member in pool:
            _assign(member, waiting)
        while any(member.unit is not None for member in pool):
            ready = wait([member.pipe for member in pool if member.unit is not None])
            for place, member in enumerate(pool):
                if member.pipe not in ready or member.unit is None:
                    continue
                try:
                    answer = member.pipe.recv()
                except (EOFError, OSError):
                    member.process.join()
                    deaths[member.unit] += 1
                    if deaths[member.unit] < ATTEMPTS:
                        waiting.appendleft(member.unit)
                    else:
                        yield Lost(member.unit, member.process.exitcode or 0)
                    pool[place] = member = _start(job, threads)
                else:
                    member.unit = None
                    if isinstance(answer, BaseException):
                        raise answer
                    yield answer
                _assign(member, waiting)
    except BaseException:
        for member in pool:
            member.process.terminate()
        raise
    finally:
        for member in pool:
            member.pipe.close()  # tells it to leave
        for member in pool:
            member.process.join()


def _start(job: Job, threads: int) -> _Process:
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, job, threads), daemon=True)
    process.start()
    there.close()
    return _Process(process, here)


def _assign(member: _Process, waiting: deque[int]) -> None:
    member.unit = None
    if waiting:
        unit = waiting.popleft()
        member.unit = unit
        try:
            member.pipe.send(unit)
        except OSError:
            return  # it is dead; the next wait finds the closed pipe and tries the unit elsewhere


def _stop(_signal: int, _frame: object) -> NoReturn:
    sys.exit(1)


def _work(pipe: Any, job: Job, threads: int) -> None:
    # SIGTERM unwinds the stack, so that a half-written temporary file is removed. The terminal's
    # SIGINT is for the parent, which then sends SIGTERM.
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = None
    while True:
        try:
            unit = pipe.recv()
        except (EOFError, OSError):
            return  # the parent is gone
        try:
            run = run or job.open(threads)
            answer: UnitRecord | ComboError = run(unit)
        except ComboError as error:
            answer = ComboError(str(error))
        except Exception as error:
            traceback.print_exc()
            answer = ComboError(f"unit {unit} of {job.split}: {type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return
