"""Fetching one large file over HTTPS so that a cut line costs only what was under way.

The bytes gather in `.NAME.part` beside the target; the part is kept when the connection breaks and
the next call goes on at its end, if the server admits it and still has the same file (its ETag is
kept too). Only a file that is complete and accepted by the caller gets the target's name.

A server is trusted with no more: addresses without TLS are not followed, nothing is kept beyond the
expected size, and who brings next to nothing for a minute is given up (headers can drip for ever).
"""

import errno
import fcntl
import http.client
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO

from . import durable
from .errors import ComboError

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes there are and, when known, the bytes there will be."""

BLOCK = 1 << 20
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""

PATIENCE, USEFUL = 60.0, 1 << 14
"""Within so many seconds a download must bring so many new bytes, or end."""

ATTEMPTS = 3
"""Connections in a row that may break without having brought a byte."""

_PASSING = (429, 500, 502, 503, 504)
"""Statuses that may be over in a moment."""


class ConnectionCutError(Exception):
    """The connection ended before the file did. What came is kept."""


def download(
    url: str,
    target: Path,
    accept: Callable[[Path], None],
    size: int | None = None,
    on_bytes: OnBytes | None = None,
    again: str = "",
    pause: float = 2.0,
) -> None:
    """Fetch `url` (https; http from this machine) to `target`, resuming a part left earlier.

    accept: called with the complete part; raises ComboError to refuse it, and the part is removed.
    size: the bytes expected, where known.  again: the command that the user would repeat.
    pause: seconds before the second of the attempts that bring nothing; longer before the third.
    Raises ComboError in one line: no answer, an error status, connection cut several times, too
    slow, another size than expected, disk full, another process at it.
    """
    _demand_safe(url)
    part = target.with_name(f".{target.name}.part")
    tag = part.with_name(f"{part.name}.etag")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ComboError(f"{target}: another process is fetching it; wait for it") from None
            _Transfer(url, file, tag, size, on_bytes or (lambda *_: None)).complete(again, pause)
            os.fsync(file.fileno())
            try:
                accept(part)
            except ComboError:
                part.unlink()
                tag.unlink(missing_ok=True)
                raise
            part.replace(target)
            tag.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ComboError(f"{part}: the disk is full; make room and repeat: {again}") from error
        raise ComboError(f"{part}: cannot be written ({error.strerror or error})") from error


@dataclass
class _Transfer:
    """The growing part of one file. tag: where the ETag of its bytes is kept.

    far: the most bytes that were ever there; fetching what was there before is no progress.
    ended: what ended the thread that fetches.
    """

    url: str
    file: IO[bytes]
    tag: Path
    size: int | None
    on_bytes: OnBytes
    far: int = 0
    ended: BaseException | None = None

    def complete(self, again: str, pause: float) -> None:
        """Fetch what is missing, in a thread that is left to itself when it gets nowhere."""
        self.far = reached = self._have()
        since = time.monotonic()
        worker = threading.Thread(target=self._work, args=(pause,), daemon=True)
        worker.start()
        while worker.is_alive() and time.monotonic() < since + PATIENCE:
            worker.join(0.1)
            if self.far >= reached + USEFUL:
                reached, since = self.far, time.monotonic()
        if worker.is_alive():
            self.ended = ConnectionCutError(f"nothing useful came for {PATIENCE:g} s")
        if isinstance(self.ended, ConnectionCutError):
            kept = f"{self._have()} bytes are kept, go on with: {again}"
            raise ComboError(f"{self.url}: {self.ended}; {kept}") from self.ended
        if self.ended is not None:
            raise self.ended

    def _work(self, pause: float) -> None:
        fruitless = 0
        while True:
            before = self.far
            try:
                return self._connect_and_append()
            except ConnectionCutError as cut:
                fruitless = 0 if self.far > before else fruitless + 1
                if fruitless == ATTEMPTS:
                    self.ended = cut
                    return None
                time.sleep(pause * fruitless)
            except BaseException as error:  # raised again where it can be caught
                self.ended = error
                return None

    def _have(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def _connect_and_append(self) -> None:
        have = self._have()
        if self.size is not None and have > self.size:
            self.file.truncate(have := 0)
        answer = None if have and have == self.size else self._request(have)
        if answer is None:
            return
        with answer:
            begins, _, total = answer.headers.get("Content-Range", "").partition("/")
            if answer.status != http.client.PARTIAL_CONTENT:
                have = have and self.file.truncate(0)
                total = answer.headers.get("Content-Length", "")
            elif begins.removeprefix("bytes ").partition("-")[0] != str(have):
                raise ComboError(f"{self.url}: the server sends another part than was asked for")
            self._receive(answer, have, int(total) if total.isdecimal() else None)

    def _request(self, have: int) -> HTTPResponse | None:
        """The answer from byte `have` on, or from 0 where the server does not part its files; None
        when it says that nothing comes after `have`: an earlier call died checking the file."""
        headers = {"User-Agent": "combo-avs", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.tag.exists():
                headers["If-Range"] = self.tag.read_text()
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if have and error.code in (416, 501):  # the range is refused, or all ranges are
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return None
                self.file.truncate(0)
                return self._request(0)
            status = f"the server answered {error.code} {error.reason}"
            if error.code in _PASSING:
                raise ConnectionCutError(status) from error
            raise ComboError(f"{self.url}: {status}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConnectionCutError(f"no connection ({reason})") from error

    def _receive(self, answer: HTTPResponse, have: int, total: int | None) -> None:
        if total is not None and self.size not in (None, total):
            raise ComboError(
                f"{self.url}: {total} bytes there, {self.size} expected; not the published file"
            )
        free = durable.free_bytes(self.tag)
        if total is not None and total - have > free:
            raise ComboError(
                f"{self.tag.parent}: {total - have} bytes to fetch and {free} free; make room "
                "or set COMBO_WEIGHTS to a folder on another disk"
            )
        etag = answer.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            self.tag.write_text(etag)
        else:
            # A weak tag does not promise the same bytes, so it cannot join two parts.
            self.tag.unlink(missing_ok=True)
        while True:
            try:
                block = answer.read1(BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise ConnectionCutError(f"connection cut after {have} bytes") from error
            if not block:
                break
            if self.size is not None and have + len(block) > self.size:
                self.file.truncate(0)
                raise ComboError(
                    f"{self.url}: more than the {self.size} bytes expected; not the published file"
                )
            self.file.write(block)
            self.file.flush()
            have += len(block)
            self.far = max(self.far, have)
            self.on_bytes(have, total)
        if total is not None and have < total:
            raise ConnectionCutError(f"connection cut after {have} of {total} bytes")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _demand_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _demand_safe(url: str) -> None:
    """Raise ComboError for an address at which anybody on the way may answer."""
    parts = urllib.parse.urlsplit(url)
    here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not here:
        raise ComboError(f"{url}: no https address, and no other is followed")
