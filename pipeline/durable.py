"""Files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk, renamed into place,
and the folder is flushed: after a crash at any instruction the old file, or the new one, or none is
there, never a part of one. The temporary name carries host and process, so that what a killed
process left behind can be told from what a living one is writing.
"""

import contextlib
import glob
import json
import os
import secrets
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to write into that becomes `path`, whole, when the block ends without an error.

    Raises OSError. Whatever is raised in the block, no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}{PARTIAL}"
    temporary = path.with_name(name)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, all or nothing."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def remove(path: Path) -> None:
    """Remove a file, if it is there, and make that last."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    _flush_folder(path.parent)


def leftovers(folder: Path, of: str | None = None) -> Iterator[Path]:
    """Temporary files below `folder` whose writer is dead: of this host, and no such process.

    of: only those of the file of this name, in `folder` itself.
    """
    host = socket.gethostname()
    mine = f".*{PARTIAL}" if of is None else f".{glob.escape(of)}.*{PARTIAL}"
    for path in folder.rglob(mine) if of is None else folder.glob(mine):
        owner, pid, _ = path.name.removesuffix(PARTIAL).rsplit(".", 2)
        if owner.endswith(f".{host}") and pid.isdigit() and not _alive(int(pid)):
            yield path


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
