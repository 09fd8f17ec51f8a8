"""A person at a terminal of 80 columns: what is typed, and what then stands on the screen.

One pseudo-terminal, whose output a terminal's emulator draws, so that what is broken at the edge of
the screen, overwritten or coloured is seen as it is seen.
"""

import fcntl
import json
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyte

COLUMNS, LINES, EDGELESS = 80, 400, 300
SERVED = Path(__file__).with_name("served.py")
PATIENCE = 60.0
"""Seconds until a command is given up."""


@dataclass(frozen=True)
class Shown:
    """code: the exit code.  lines: of the screen.  colours: word -> the colour it is shown in."""

    code: int
    lines: tuple[str, ...]
    colours: Mapping[str, str]
    printed: bytes

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def copied(self) -> tuple[str, ...]:
        """The lines again, each whole that the terminal alone has broken at its edge."""
        return _lines(_drawn(self.printed, EDGELESS))


class Terminal:
    """combo in a folder, with the environment of a user of its own."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        asked, self._ask = os.pipe()
        self._answers, answered = os.pipe()
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH")}
        self._server = subprocess.Popen(
            [sys.executable, str(SERVED), str(asked), str(answered)],
            cwd=home,
            env={**kept, "TERM": "xterm", "OMP_NUM_THREADS": "1", "TZ": "UTC", **variables},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            pass_fds=(asked, answered),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        for number in (slave, asked, answered):
            os.close(number)
        self._read_answer(b"")

    def close(self) -> None:
        os.close(self._ask)
        self._server.wait(PATIENCE)
        os.close(self._answers)
        os.close(self._master)

    def types(self, command: str, until: str = "") -> Shown:
        """Type a command and wait for its end; Ctrl-C as soon as the words `until` are shown."""
        _, *words = shlex.split(command)
        os.write(self._ask, (json.dumps(words) + "\n").encode())
        code, printed = self._read_answer(until.encode())
        screen = _drawn(printed, COLUMNS)
        return Shown(code, _lines(screen), _colours(screen), printed)

    def _read_answer(self, until: bytes) -> tuple[int, bytes]:
        """The next answer of the server, and all that was printed until then."""
        printed, answer, end = b"", b"", time.monotonic() + PATIENCE
        while not answer.endswith(b"\n"):
            left = end - time.monotonic()
            ready, _, _ = select.select([self._master, self._answers], [], [], max(0.0, left))
            if not ready:
                self._server.kill()
                raise TimeoutError(printed.decode(errors="replace")[-2000:])
            if self._master in ready:
                printed += os.read(self._master, 1 << 16)
                if until and until in printed:
                    until = b""
                    os.write(self._master, b"\x03")
            elif self._answers in ready:
                answer += os.read(self._answers, 1 << 10)
                if not answer:
                    raise RuntimeError(printed.decode(errors="replace"))
        while select.select([self._master], [], [], 0)[0]:
            printed += os.read(self._master, 1 << 16)
        text = answer.strip()
        return 0 if text == b"ready" else int(text), printed


def _drawn(printed: bytes, columns: int) -> pyte.Screen:
    screen = pyte.Screen(columns, LINES)
    pyte.ByteStream(screen).feed(printed)
    return screen


def _lines(screen: pyte.Screen) -> tuple[str, ...]:
    return tuple("\n".join(map(str.rstrip, screen.display)).rstrip().splitlines())


def _colours(screen: pyte.Screen) -> dict[str, str]:
    """Words that are not in the terminal's own colour."""
    found: dict[str, str] = {}
    for row in range(screen.lines):
        cells = screen.buffer[row]
        word, colour = "", "default"
        for column in range(screen.columns + 1):
            cell = cells[column] if column < screen.columns else None
            same = cell is not None and cell.data != " " and cell.fg == colour
            if word and not same:
                if colour != "default":
                    found[word] = colour
                word = ""
            if cell is not None and cell.data != " ":
                colour = cell.fg
                word += cell.data
    return found
