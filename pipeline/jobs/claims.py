"""Who is at which unit, so that no two processes compute the same one.

A claim is a lock on one byte of a file beside the records, the byte whose place is the unit's
number. The system takes it back the moment its holder dies, on the network file systems of clusters
too, so no claim is ever stale and nothing has to be timed out or cleaned up. A holder that is
frozen keeps its claim; so that people can find it, it writes who it is into the unit's place in
the same file, which counts for nothing.

Claims save work and keep the files of one unit from one hand; that a unit is done rests on records
alone. On a file system without locks every claim is granted: a unit submitted twice may then be
computed twice, and the last one to commit it stands.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

_ROOM = 128
"""Bytes of a unit's place in the file: who holds it, or nothing."""

WHOLE = -1
"""In place of a unit: every one."""


@dataclass(frozen=True)
class Holder:
    """Who holds a claim. since: seconds of the epoch, by the clock of the holder's host."""

    unit: int
    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        then = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {then}"


class Claims:
    """The claims of this process in one folder of records. One object a process and folder: the
    system drops a process's locks on a file as soon as it closes it anywhere."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, unit: int) -> bool:
        """Claim a unit, or every one (`WHOLE`); False when another has it. Raises OSError."""
        if not _lock(self._file, fcntl.LOCK_EX, unit):
            return False
        if unit != WHOLE:
            self._say(unit, f"{os.getpid()} {int(time.time())} {socket.gethostname()}")
        return True

    def holder(self, unit: int) -> Holder | None:
        """Who has a unit by what it wrote; None where nothing can be read."""
        return _holder(self._file, unit)

    def release(self, unit: int) -> None:
        self._say(unit, "")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, unit)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise

    def close(self) -> None:
        os.close(self._file)

    def _say(self, unit: int, text: str) -> None:
        # Not worth stopping for: a full disk is told by the unit that meets it.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text.encode()[:_ROOM].ljust(_ROOM, b"\0"), unit * _ROOM)


def holders(folder: Path) -> Iterator[Holder]:
    """Who holds claims in a folder of records, by unit.

    Not for a process that has claims there itself, which it would lose.
    """
    try:
        file = os.open(folder / "claims", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        for unit in range(-(-os.fstat(file).st_size // _ROOM)):
            who = _holder(file, unit)
            # A shared lock for a moment: a worker that asks just then asks again.
            if who and not _lock(file, fcntl.LOCK_SH, unit):
                yield who
    finally:
        os.close(file)


def _lock(file: int, kind: int, unit: int) -> bool:
    """Lock a unit's byte, or all; False when another process has it. Raises OSError."""
    length, start = (0, 0) if unit == WHOLE else (1, unit)
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            return False
        if error.errno not in _NO_LOCKS_HERE:
            raise
    return True


def _holder(file: int, unit: int) -> Holder | None:
    try:
        pid, since, host = os.pread(file, _ROOM, unit * _ROOM).decode().rstrip("\0").split(" ", 2)
        return Holder(unit, host, int(pid), float(since))
    except (OSError, ValueError):
        return None
