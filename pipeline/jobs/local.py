"""Runs units in this process, or in several processes on this machine that may die at any time."""

import multiprocessing as mp
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

from ..devices import Place, devices
from ..errors import ComboError
from .scheduler import cores
from .stopping import Stop, hears_its_terminal
from .unit import Busy, Done, Job, OpenJob, Patience

ATTEMPTS = 3
"""How often a unit may take its process down with it before it is given up."""


@dataclass(frozen=True)
class Lost:
    """A unit that killed its process every time; it stays undone."""

    unit: int
    exit_code: int


@dataclass(frozen=True)
class LocalRunner:
    """Units on this machine.

    workers: processes; 1 computes in this one; None: one, or `per_device` on each GPU for a stage
    with a network.  device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    """

    workers: int | None = None
    device: str = "auto"
    per_device: int = 1

    def places(self, job: Job, units: int) -> list[Place]:
        """Where each process for `units` units computes. Raises ComboError."""
        on = devices(self.device) if job.stage.has_network else ["cpu"]
        there = 1 if on == ["cpu"] else len(on) * self.per_device
        count = max(1, min(self.workers or there, units))
        threads = max(1, cores() // count)
        return [Place(threads, on[i % len(on)]) for i in range(count)]

    def processes(self, job: Job, units: int) -> int:
        """How many compute at once, for estimates."""
        return len(self.places(job, units))

    def run(
        self, job: Job, units: Sequence[int], again: bool, stop: Stop
    ) -> Iterator[Done | Lost | Busy]:
        """Compute and commit `units`; yields each as it is committed, in any order, and now and
        then one that has been waited for for long.

        again: compute units that have a record, too.  stop: when it is asked, no unit is begun and
        those in hand are finished. A process that dies (killed, out of memory) is replaced and its
        unit tried again. A unit that somebody else is computing is asked for again at the end.
        """
        places = self.places(job, len(units)) if units else []
        if len(places) == 1:
            yield from _run_here(job, units, places[0], again, stop)
        elif places:
            yield from _run_in_processes(job, units, places, again, stop)


def _run_here(
    job: Job, units: Sequence[int], place: Place, again: bool, stop: Stop
) -> Iterator[Done | Busy]:
    if stop.asked:
        return  # a network takes a while to load
    run = job.open(place, again)
    try:
        waiting, patience = deque(units), Patience()
        while waiting and not stop.asked:
            answer = run(waiting.popleft())
            if isinstance(answer, Busy):
                waiting.append(answer.unit)
            else:
                yield answer
            if patience.after(answer, len(waiting)):
                yield answer
    finally:
        run.close()


@dataclass
class _Process:
    place: Place
    process: SpawnProcess
    pipe: Any
    unit: int | None = None


def _run_in_processes(
    job: Job, units: Sequence[int], places: Sequence[Place], again: bool, stop: Stop
) -> Iterator[Done | Lost | Busy]:
    if stop.asked:
        return
    waiting, deaths, patience = deque(units), Counter[int](), Patience()
    pool = [_start(job, place, again) for place in places]
    try:
        for member in pool:
            _assign(member, waiting)
        while any(member.unit is not None for member in pool):
            ready = wait([member.pipe for member in pool if member.unit is not None])
            for number, member in enumerate(pool):
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
                    if not stop.asked:
                        pool[number] = member = _start(job, member.place, again)
                else:
                    if isinstance(answer, BaseException):
                        raise answer
                    if isinstance(answer, Busy):
                        waiting.append(answer.unit)
                    else:
                        yield answer
                    if patience.after(answer, len(waiting)):
                        yield answer
                if stop.asked:
                    waiting.clear()  # also a unit that another process has, and one that died
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


def _start(job: Job, place: Place, again: bool) -> _Process:
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, job, place, again), daemon=True)
    process.start()
    there.close()
    return _Process(place, process, here)


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


def _work(pipe: Any, job: Job, place: Place, again: bool) -> None:
    # SIGTERM unwinds the stack, so that a half-written temporary file is removed. The terminal's
    # SIGINT and a scheduler's SIGUSR1 are for the parent, which then says what to do.
    signal.signal(signal.SIGTERM, _stop)
    if hears_its_terminal():
        signal.signal(signal.SIGHUP, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    run: OpenJob | None = None
    while True:
        try:
            unit = pipe.recv()
        except (EOFError, OSError):
            return  # the parent is gone
        try:
            run = run or job.open(place, again)
            answer: Done | Busy | ComboError = run(unit)
        except ComboError as error:
            answer = ComboError(str(error))
        except Exception as error:
            traceback.print_exc()
            answer = ComboError(f"unit {unit} of {job.split}: {type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except OSError:
            return
