"""Who is at which unit, so that no two processes compute the same one.

A claim is a lock on one byte of a file beside the records, the byte whose place is the unit's
number. The system takes it back the moment its holder dies, on the network file systems of clusters
too, so no claim is ever stale and nothing has to be timed out or cleaned up.

Claims save work and keep the files of one unit from one hand; that a unit is done rests on records
alone. On a file system without locks every claim is granted: a unit submitted twice may then be
computed twice, and the last one to commit it stands.
"""

import errno
import fcntl
import os
from pathlib import Path

_HELD_ELSEWHERE = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Claims:
    """The claims of this process in one folder of records. One object a process and folder: the
    system drops a process's locks on a file as soon as it closes it anywhere."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / "claims", os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, unit: int) -> bool:
        """Claim a unit; False when another process has it. Raises OSError."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, unit)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                return False
            if error.errno not in _NO_LOCKS_HERE:
                raise
        return True

    def release(self, unit: int) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, unit)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise

    def close(self) -> None:
        os.close(self._file)
