"""Media files as decoders get them: regular files, opened here, their demuxers named.

A name means too much to FFmpeg: `http:` and `12:30` before a slash are protocols, and a text that
begins with `ffconcat` names other files. So decoders get opened files and no name, formats that
hold everything themselves, and no protocol.
"""

import hashlib
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MediaError
from .limits import Limits
from .regular_files import open_regular

if TYPE_CHECKING:
    from av.container import InputContainer


DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,av1,avi,caf,dts,dv,eac3,flac,flv,gxf,h264,hevc,ivf,loas,m4v,"
    "matroska,mjpeg,mov,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nsv,nut,obu,ogg,rm,tak,tta,vc1,voc,"
    "vvc,w64,wav,wtv,wv,yuv4mpegpipe"
)
"""FFmpeg's names of the formats that are read: all of them keep to their own file."""


class OpenFile:
    """A regular file, open for reading."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self.path = path
        self._file = file
        self._stamp = self._now()

    @property
    def size(self) -> int:
        return self._stamp[0]

    @property
    def descriptor(self) -> int:
        """The system's number of the file, which stands at its beginning."""
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
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
        found, at = hashlib.sha256(), 0
        # Decoders move the system's position in the file, and the buffer would not know.
        while block := os.pread(self._file.fileno(), 1 << 20, at):
            found.update(block)
            at += len(block)
        if self._now() != self._stamp:
            raise MediaError(self.path, "changed while it was read; run again with --retry-failed")
        return found.hexdigest()

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())  # of this file, also when another has its name now
        return found.st_size, found.st_mtime_ns


@contextmanager
def opened(path: Path) -> Generator[OpenFile]:
    """A file to be decoded. Raises MediaError as `open_regular`."""
    with open_regular(path) as file:
        yield OpenFile(path, file)


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
