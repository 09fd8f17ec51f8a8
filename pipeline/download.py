"""Fetching one large file over HTTP so that a cut line costs only what was under way.

The bytes gather in `.NAME.part` beside the target; the part is kept when the connection breaks and
the next call goes on at its end, if the server admits it and still has the same file (its ETag is
kept too). Only a file that is complete and accepted by the caller gets the target's name.
"""

import errno
import fcntl
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import durable
from .errors import ComboError

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes there are and, when known, the bytes there will be."""

BLOCK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""

ATTEMPTS = 3
"""Connections in a row that may break without having brought a byte."""


_RANGE_REFUSED = (http.client.REQUESTED_RANGE_NOT_SATISFIABLE, http.client.NOT_IMPLEMENTED)
_PASSING = (429, 500, 502, 503, 504)
"""Statuses that may be over in a moment."""


class ConnectionCutError(Exception):
    """The connection ended before the file did. What came is kept."""


class _NothingLeftError(Exception):
    """The server says that the part is as long as the file: an earlier call died checking it."""


def download(
    url: str,
    target: Path,
    accept: Callable[[Path], None],
    size: int | None = None,
    on_bytes: OnBytes | None = None,
    again: str = "",
    pause: float = 2.0,
) -> None:
    """Fetch `url` (http or https) to `target`, resuming a part that an earlier call left.

    accept: called with the complete part; raises ComboError to refuse it, and the part is removed.
    size: the bytes expected, where known.  again: the command that the user would repeat.
    pause: seconds before the second of the attempts that bring nothing; longer before the third.
    Raises ComboError in one line: no answer, an error status, connection cut several times, another
    size than expected, disk full, another process at it.
    """
    if not url.startswith(("http://", "https://")):
        raise ComboError(f"{url}: no http or https address")
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ComboError(f"{target}: another process is fetching it; wait for it") from None
            transfer = _Transfer(url, file, part.with_name(f"{part.name}.etag"), size, on_bytes)
            transfer.complete(again, pause)
            os.fsync(file.fileno())
            try:
                accept(part)
            except ComboError:
                part.unlink()
                transfer.forget_tag()
                raise
            part.replace(target)
            transfer.forget_tag()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ComboError(f"{part}: the disk is full; make room and repeat: {again}") from error
        raise ComboError(f"{part}: cannot be written ({error.strerror or error})") from error


@dataclass
class _Transfer:
    """The growing part of one file. tag: where the ETag of its bytes is kept."""

    url: str
    file: IO[bytes]
    tag: Path
    size: int | None
    on_bytes: OnBytes | None

    def complete(self, again: str, pause: float) -> None:
        fruitless = 0
        while True:
            before = self._have()
            try:
                self._connect_and_append()
            except ConnectionCutError as cut:
                fruitless = 0 if self._have() > before else fruitless + 1
                if fruitless == ATTEMPTS:
                    raise ComboError(
                        f"{self.url}: {cut}; {self._have()} bytes are kept, go on with: {again}"
                    ) from cut
                time.sleep(pause * fruitless)
            else:
                return

    def forget_tag(self) -> None:
        self.tag.unlink(missing_ok=True)

    def _have(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def _connect_and_append(self) -> None:
        have = self._have()
        if self.size is not None and have == self.size:
            return
        if self.size is not None and have > self.size:
            have = self._restart()
        try:
            answer = self._request(have)
        except _NothingLeftError:
            return
        if answer is None:
            have = self._restart()
            answer = self._request(have)
        if answer is None:
            raise ComboError(f"{self.url}: the server refuses to send the file")
        with answer:
            if have and answer.status != http.client.PARTIAL_CONTENT:
                have = self._restart()
            self._receive(answer, have)

    def _request(self, have: int) -> http.client.HTTPResponse | None:
        """The answer from byte `have` on, or from 0; None when the server refuses the range.

        Raises _NothingLeftError when the file ends there.
        """
        headers = {"User-Agent": "combo-avs", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.tag.exists():
                headers["If-Range"] = self.tag.read_text()
        request = urllib.request.Request(self.url, headers=headers)
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if have and error.code in _RANGE_REFUSED:
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    raise _NothingLeftError from error
                return None
            status = f"the server answered {error.code} {error.reason}"
            if error.code in _PASSING:
                raise ConnectionCutError(status) from error
            raise ComboError(f"{self.url}: {status}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionCutError(f"no connection ({reason})") from error
        if answer.status == http.client.PARTIAL_CONTENT:
            begins = (
                answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            )
            if begins != str(have):
                answer.close()
                return None
        return answer

    def _receive(self, answer: http.client.HTTPResponse, have: int) -> None:
        total = _total(answer)
        if total is not None:
            if self.size not in (None, total):
                raise ComboError(
                    f"{self.url}: {total} bytes there, {self.size} expected; not the published file"
                )
            free = durable.free_bytes(self.tag)
            if total - have > free:
                raise ComboError(
                    f"{self.tag.parent}: {total - have} bytes to fetch and {free} free; make room "
                    "or set COMBO_WEIGHTS to a folder on another disk"
                )
        etag = answer.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            self.tag.write_text(etag)
        else:
            # A weak tag does not promise the same bytes, so it cannot join two parts.
            self.forget_tag()
        while True:
            try:
                block = answer.read(BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise ConnectionCutError(f"connection cut after {have} bytes") from error
            if not block:
                break
            self.file.write(block)
            self.file.flush()
            have += len(block)
            if self.on_bytes is not None:
                self.on_bytes(have, total)
        if total is not None and have < total:
            raise ConnectionCutError(f"connection cut after {have} of {total} bytes")

    def _restart(self) -> int:
        self.file.truncate(0)
        return 0


def _total(answer: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file, as the answer tells them."""
    if answer.status == http.client.PARTIAL_CONTENT:
        named = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(named) if named.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None
