"""A file in memory that takes no more of it than was written, however far apart that lies."""

import os
from collections.abc import Iterator

PAGE = 1 << 14


class MemoryFile:
    """What a library that wants a file to write into needs; places not written read as zeros."""

    def __init__(self) -> None:
        self.size = 0
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for page, start, part in _parts(self._at, len(view)):
            held = self._pages.setdefault(page, bytearray(PAGE))
            held[start : start + part.stop - part.start] = view[part]
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def readinto(self, target: memoryview) -> int:
        view = memoryview(target).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        for page, start, part in _parts(self._at, count):
            held = self._pages.get(page, bytes(PAGE))
            view[part] = held[start : start + part.stop - part.start]
        self._at += count
        return count

    def read(self, count: int) -> bytes:
        data = bytearray(count)
        return bytes(data[: self.readinto(memoryview(data))])

    def truncate(self, size: int) -> int:
        """Set the size; what is written beyond it is not part of the file."""
        self.size = size
        return size

    def flush(self) -> None:
        pass

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Offset and bytes of all that was written, in order."""
        for page, held in sorted(self._pages.items()):
            yield page * PAGE, memoryview(held)[: max(0, self.size - page * PAGE)]


def _parts(at: int, count: int) -> Iterator[tuple[int, int, slice]]:
    """Of `count` bytes at a place: page, place in the page, and which of the bytes lie there."""
    done = 0
    while done < count:
        page, start = divmod(at + done, PAGE)
        end = min(count, done + PAGE - start)
        yield page, start, slice(done, end)
        done = end
