"""Files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk, renamed into place,
and the folder is flushed: after a crash at any instruction the old file, or the new one, or none is
there, never a part of one. The temporary name carries host and process, so that what a killed
process left behind can be told from what a living one is writing; what another host left is told by
its age. Ages are measured by the file system's own clock, which all hosts share.
"""

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Generator, Iterator
from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import ComboError

if TYPE_CHECKING:
    from typing_extensions import Buffer

PARTIAL = ".partial"

_CLOCK = "clock"
CLOCKS_AGREE = 10.0
"""Seconds to which the clocks that tell of processes and of files are taken to agree."""

ABANDONED = 3600.0
"""Seconds after which a temporary file of another host has no writer any more: a shard takes
seconds to write."""


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True, keep: Path | None = None) -> Generator[BinaryIO]:
    """A file to write into that becomes `path`, whole, when the block ends without an error.

    lasting: False for what need not outlive a crash of the machine; nothing is flushed then.
    keep: where the file that was `path` goes; there is one at `path` all the time.
    Whatever is raised in the block, no temporary file is left. A write that failed is raised as the
    system's OSError, which names `path`, whatever the library that wrote makes of it.
    """
    temporary = _temporary(path)
    written: _Written | None = None
    try:
        written = _new_file(temporary)
        with BufferedWriter(written) as file:
            yield file
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            _also(path, keep)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        unnamed = (None, temporary, str(temporary))
        failed = error if written is None or written.failed is None else written.failed
        if isinstance(failed, OSError) and failed.errno and failed.filename in unnamed:
            failed.filename = str(path)
        if failed is error:
            raise
        raise failed from error
    if lasting:
        _flush_folder(path.parent)


def _also(path: Path, name: Path) -> None:
    """Make a file known under another name, too; whatever had that name goes."""
    temporary = _temporary(name)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
        temporary.replace(name)
    finally:  # it is still there when a write failed, and when both names were one file's already
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else takes, and that tells who did; see `leftovers`."""
    who = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{who}{PARTIAL}")


class _Written(FileIO):
    """A file that remembers which write to it failed."""

    failed: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def _new_file(path: Path) -> _Written:
    """A file to write, and its folder where that is missing. On a cluster's file system it costs to
    ask for a folder that is there."""
    try:
        return _Written(path, "wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _Written(path, "wb")


def open_regular(path: Path) -> BufferedReader:
    """A regular file, or a link to one, opened for reading: a pipe waits for ever, and a device has
    no end. Raises OSError, and ValueError that says what stands there instead."""
    try:
        # A pipe that nobody writes to is opened without waiting, and found to be one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ELOOP):
            raise
        kind = "a socket or a device" if error.errno == errno.ENXIO else "a link to itself"
        raise ValueError(f"{kind}, no regular file") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")  # noqa: PTH123 - the caller closes it
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise ValueError(f"{kind}, no regular file")


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """What a regular file says in JSON. Raises as `open_regular`, and ValueError for no JSON."""
    try:
        return json.loads(read_bytes(path))
    except RecursionError:
        raise ValueError("lists or objects in each other too deep") from None


def write_bytes(path: Path, data: bytes | memoryview, lasting: bool = True) -> None:
    """Write `data` to `path`, all or nothing."""
    with replacing(path, lasting) as file:
        file.write(data)


def write_json(path: Path, value: Any, lasting: bool = True) -> None:
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), lasting)


def unwritten(where: str | Path, error: OSError, again: str, elsewhere: str) -> ComboError | None:
    """What the system says about writing to `where`, in one line with a way out; None where it says
    nothing that a disk, its limits or its owner are the reason of.

    again: what to do when there is room.  elsewhere: what to do when it may not be written.
    """
    mends = {
        errno.ENOSPC: f"the disk is full; free space there and {again}",
        errno.EDQUOT: f"the quota is used up; free space there and {again}",
        errno.EFBIG: f"a file may not grow that large; raise the limit (ulimit -f) and {again}",
        errno.EROFS: f"the file system is read-only; {elsewhere}",
        errno.EACCES: f"no permission to write; {elsewhere}",
        errno.EPERM: f"no permission to write; {elsewhere}",
    }
    in_the_way = {errno.EISDIR: "a folder", errno.ENOTDIR: "a file"}.get(error.errno or 0)
    if in_the_way:
        where = error.filename or where
        mends[error.errno or 0] = f"{in_the_way} is in the way; move it elsewhere and {again}"
    mend = mends.get(error.errno or 0)
    return None if mend is None else ComboError(f"cannot write {where}: {mend}")


@contextlib.contextmanager
def writing(where: Path, again: str, elsewhere: str) -> Generator[None]:
    """Whatever the system says about writing to `where` becomes one line; see `unwritten`."""
    try:
        yield
    except OSError as error:
        file = error.filename or where
        other = ComboError(f"cannot write {file}: {error.strerror or error}; {again}")
        raise unwritten(where, error, again, elsewhere) or other from error


def remove(path: Path) -> None:
    """Remove a file, if it is there, and make that last."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    _flush_folder(path.parent)


def move(path: Path, target: Path) -> None:
    """Rename a file or a folder on the same disk, and make that last."""
    path.rename(target)
    _flush_folder(target.parent)
    if target.parent != path.parent:
        _flush_folder(path.parent)


def link(path: Path, name: Path) -> None:
    """Give a file, which is only ever replaced as a whole, a second name, instead of what has it;
    a copy where the disk has no second names."""
    name.unlink(missing_ok=True)
    name.parent.mkdir(parents=True, exist_ok=True)
    try:
        name.hardlink_to(path)
    except OSError:
        write_bytes(name, path.read_bytes())
    else:
        _flush_folder(name.parent)


def leftovers(folder: Path, of: str | None = None) -> Iterator[Path]:
    """Temporary files below `folder` whose writer is dead.

    One of this host is dead when it does not run (see `alive`); one of another host when its file
    is old.  of: only those of the file of this name, and of `clock`, in `folder` itself.
    """
    if of is None:
        found = sorted(folder.rglob(f".*{PARTIAL}"))
    else:
        found = [
            p for name in (of, _CLOCK) for p in folder.glob(f".{glob.escape(name)}.*{PARTIAL}")
        ]
    if not found:
        return
    host, now = socket.gethostname(), clock(folder)
    for path in found:
        owner, pid, _ = path.name.removesuffix(PARTIAL).rsplit(".", 2)
        old = age(path, now) or 0.0
        if owner.endswith(f".{host}"):
            dead = pid.isdecimal() and not alive(int(pid), old)
        else:
            dead = old > ABANDONED
        if dead:
            yield path


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is none.

    Raises PermissionError for one that may not be looked into, which `glob` takes for empty.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def absolute(path: Path) -> Path:
    """A path that stays the same wherever the process goes, and has no `..`, which tensorstore
    does not take. Links are followed only where a `..` has to be."""
    return path.resolve() if ".." in path.parts else path.absolute()


def here_is_there() -> bool:
    """Whether the folder that this process works in has not been removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def demand_utf8(store: Path) -> None:
    """Raise ComboError for a store's path that is no UTF-8, which tensorstore cannot be given."""
    try:
        str(store).encode()
    except UnicodeEncodeError:
        raise ComboError(
            f"{store}: a store's path must be UTF-8, and this one is not; rename that folder, or "
            "move the store to another one"
        ) from None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Bytes that a user may still write where `path` lies, or would lie."""
    return shutil.disk_usage(existing(path)).free


def clock(folder: Path) -> float:
    """What time it is where `folder` is stored, in seconds: the time a file written now gets.

    On a folder that cannot be written, this host's time.
    """
    probe = _temporary(folder / _CLOCK)
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def age(path: Path, now: float) -> float | None:
    """Seconds since a file was written, by `clock`; None when it is gone."""
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return None


def alive(pid: int, seconds: float) -> bool:
    """Whether the process of this host that had that number `seconds` ago still runs.

    It does not where only its number is left, since its parent has not asked how it ended: a
    container's first process may never do so. Nor where the process is younger: numbers are given
    again, in a container that is started anew the same ones in the same order. Another user's
    process runs, where the system shows nothing else of it.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        return time.time() - process.create_time() > seconds - CLOCKS_AGREE
    except psutil.Error:
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except (OSError, OverflowError):
            pass
        return False


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
