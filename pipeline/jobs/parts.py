"""What a process that works on a part of a split tells of itself, for `combo status`.

A part is a small file beside the records, written again every half minute by whoever works on it.
One that says "running" and is not written any more has died. Nothing but `combo status` reads
these: what is done rests on records alone.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from .. import durable
from ..store import SplitStore, Variant
from . import scheduler
from .stopping import Stopped

BEAT = 30.0
"""Seconds between two signs of life."""

SILENT = 4 * BEAT
"""Seconds without one after which a process on another host counts as dead."""

State = Literal["running", "done", "stopped", "failed", "died"]


@dataclass(frozen=True)
class Part:
    """One part of a split and who works, or worked, on it.

    state: `stopped` was told to go, `failed` gave up with an error, `died` left without a word.
    units, units_done: of this part.  clips, seconds: computed by this process, and how long it has
    been at it.  job: the scheduler's number, or "".
    """

    part: int
    parts: int
    state: State
    units: int
    units_done: int
    clips: int
    seconds: float
    host: str
    pid: int
    job: str

    @property
    def clips_per_second(self) -> float | None:
        return round(self.clips / self.seconds, 3) if self.clips and self.seconds > 0 else None


class Teller:
    """Keeps the file of one part; `unit` counts one more unit."""

    def __init__(self, path: Path, part: Part) -> None:
        self._path, self._part = path, part
        self._started = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def unit(self, clips: int) -> None:
        """One more unit of this part is done; clips: how many this process computed."""
        with self._lock:
            part = self._part
            self._part = replace(part, units_done=part.units_done + 1, clips=part.clips + clips)

    def start(self) -> None:
        self._write("running")
        self._thread.start()

    def end(self, state: State) -> None:
        self._over.set()
        self._thread.join()
        self._write(state)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self._write("running")

    def _write(self, state: State) -> None:
        with self._lock:
            seconds = round(time.monotonic() - self._started, 3)
            part = replace(self._part, state=state, seconds=seconds)
        # A sign of life is not worth stopping for: a full disk is told by the unit that meets it.
        with contextlib.suppress(OSError):
            durable.write_json(self._path, asdict(part), lasting=False)


@contextmanager
def telling(
    split: SplitStore, variant: Variant, part: tuple[int, int], units: int, units_done: int
) -> Generator[Teller]:
    """Tell of a part as long as the block runs, and how it ended."""
    folder = _folder(split, variant)
    number, of = part
    # Those of this array stay, and are not opened: a thousand tasks begin at once.
    for other in _read(folder, but=of):
        if other.state != "running":
            with contextlib.suppress(OSError):
                _file(folder, other.part, other.parts).unlink()
    teller = Teller(
        _file(folder, number, of),
        Part(
            part=number,
            parts=of,
            state="running",
            units=units,
            units_done=units_done,
            clips=0,
            seconds=0.0,
            host=socket.gethostname(),
            pid=os.getpid(),
            job=scheduler.job(),
        ),
    )
    teller.start()
    state: State = "failed"
    try:
        yield teller
        state = "done"
    except (Stopped, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        teller.end(state)


def read_parts(split: SplitStore, variant: Variant) -> list[Part]:
    """The parts that were ever begun, by number; those that no longer live are `died`."""
    folder = _folder(split, variant)
    return sorted(_read(folder), key=lambda part: (part.parts, part.part))


def _read(folder: Path, but: int | None = None) -> Iterator[Part]:
    """The parts in a folder. but: without those of this many parts."""
    now: float | None = None
    for path in folder.glob("*-of-*.json"):
        if but is not None and path.name.endswith(f"-of-{but:04d}.json"):
            continue
        try:
            part = _adapter().validate_json(durable.read_bytes(path))
        except (FileNotFoundError, ValueError):
            continue  # just replaced, or damaged: the next sign of life mends it
        if part.state == "running":
            now = now or durable.clock(folder)
            silent = durable.age(path, now) or 0.0
            dead = silent > SILENT
            if part.host == socket.gethostname():
                dead = dead or not durable.alive(part.pid, silent)
            if dead:
                part = replace(part, state="died")
        yield part


def _folder(split: SplitStore, variant: Variant) -> Path:
    return split.records(variant) / "parts"


def _file(folder: Path, part: int, parts: int) -> Path:
    return folder / f"{part:04d}-of-{parts:04d}.json"


@cache
def _adapter() -> TypeAdapter[Part]:
    return TypeAdapter(Part)
