"""Media files as decoders get them: regular files, opened here, their demuxers named.

A name means too much to FFmpeg: `http:` and `12:30` before a slash are protocols, and a text that
begins with `ffconcat` names other files. So decoders get opened files and no name, formats that
hold everything themselves, and no protocol. What is no regular file is never opened: a FIFO
would wait for ever, a device has no end.
"""

import hashlib
import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import MediaError, reason_of
from .kinds import DEMUXERS
from .limits import Limits

if TYPE_CHECKING:
    from av.container import InputContainer


class OpenFile:
    """A regular file, open for reading."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self._file = file
        self._stamp = self._now()

    @property
    def size(self) -> int:
        return self._stamp[0]

    @property
    def descriptor(self) -> int:
        """The system's number of the file, which stands at its beginning."""
        self._file.seek(0)
        return self._file.fileno()

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def digest(self) -> str:
        """SHA-256 of the file's bytes in hex.

        To be asked for when the file has been decoded: if the bytes are others than when it was
        opened, there is no digest. Raises MediaError.
        """
        self._file.seek(0)
        found = hashlib.sha256()
        while block := self._file.read(1 << 20):
            found.update(block)
        if self._now() != self._stamp:
            raise MediaError(self.path, "changed while it was read; run again with --retry-failed")
        return found.hexdigest()

    def _now(self) -> tuple[int, int, int]:
        found = os.fstat(self._file.fileno())
        # The last is set by the system at every change, and by nothing else.
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def opened(path: Path) -> Generator[OpenFile]:
    """A file to be decoded. Raises MediaError: missing, no permission, not a regular file."""
    try:
        _demand_regular(path, path.stat())
        file = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise MediaError(path, "missing") from error
    except (OSError, ValueError) as error:
        raise MediaError(path, f"cannot be read ({reason_of(error)})") from error
    with file:
        _demand_regular(path, os.fstat(file.fileno()))
        yield OpenFile(path, file)


def _demand_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise MediaError(path, "cannot be read (a folder)")
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(path, "not a regular file, and only such are opened")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hex, read in blocks. Raises MediaError if it cannot be read."""
    with opened(path) as file:
        try:
            return file.digest()
        except OSError as error:
            raise MediaError(path, f"cannot be read ({reason_of(error)})") from error


def read_whole(path: Path, limits: Limits) -> bytes:
    """A file's bytes. Raises MediaError: as `opened`, empty, more than `limits.bytes`."""
    with opened(path) as file:
        if file.size > limits.bytes:
            raise MediaError(
                path,
                f"file of {file.size} bytes, more than limits.bytes in data_manifest.yaml allows "
                f"({int(limits.bytes)})",
            )
        try:
            data = file.read()
        except OSError as error:
            raise MediaError(path, f"cannot be read ({reason_of(error)})") from error
    if not data:
        raise MediaError(path, "empty file (0 bytes)")
    return data


@contextmanager
def container_of(file: OpenFile, limits: Limits) -> Generator["InputContainer"]:
    """The file's streams, from its beginning. Decoders and PyAV raise what they like."""
    import av

    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "none",
        "max_pixels": str(limits.video_pixels),  # heard by the decoders that look at the start
    }
    file.seek(0)
    with av.open(file, "r", options=options, metadata_errors="replace") as container:
        yield container
