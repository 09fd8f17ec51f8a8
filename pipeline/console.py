"""The one module that prints: results on standard output, progress and notes on standard error.

What is printed is shown as it is: `[x]` and `:dog:` in a path are no markup. Notes that nobody can
receive are dropped, since work must not end for them; results that cannot be written are an error.
"""

import contextlib
import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .errors import ComboError

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

SECONDS_BETWEEN_LINES = 10.0
"""How often progress is told when there is no terminal to draw a bar on."""


class _Console(Console):
    """One that does not end the process where nobody reads: that is for `Output` and `streams`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Output:
    """Where a command's words go. quiet: no progress and no notes.  as_json: results as JSON."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        width = None if sys.stdout.isatty() else PLAIN_WIDTH
        self.out = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=width)
        self.err = _Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def note(self, text: str) -> None:
        """A line for people."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line that people must see, also with --quiet."""
        with contextlib.suppress(OSError):
            self.err.print(text)
        _is_writable(sys.stderr)

    def result(self, text: str) -> None:
        self.out.print(text)

    def json(self, value: Any) -> None:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
    ) -> None:
        """A table; numbers to the right. With no terminal its full width is kept."""
        rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(columns):
            right = bool(rows) and all(_is_number(row[i]) for row in rows)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.out.print(table)

    def records(
        self,
        records: Sequence[Mapping[str, Any]],
        columns: Mapping[str, str | Callable[[Mapping[str, Any]], object]],
        title: str | None = None,
    ) -> None:
        """Records as JSON, whole, or as a table: its columns' titles -> key, or function of one."""
        if self.as_json:
            self.json(records)
            return
        rows = [
            [record[of] if isinstance(of, str) else of(record) for of in columns.values()]
            for record in records
        ]
        self.table(list(columns), rows, title)

    def answer(self, value: Any, text: str) -> None:
        """One result: as JSON, or in words."""
        if self.as_json:
            self.json(value)
        else:
            self.result(text)

    def bar(self, title: str, total: int) -> "Bar":
        return Bar(self, title, total)


class Bar(AbstractContextManager["Bar"]):
    """A progress bar on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, output: Output, title: str, total: int) -> None:
        self._output, self._title, self._total, self._done = output, title, total, 0
        self._progress: Progress | None = None
        self._told = time.monotonic()
        if not output.quiet and output.err.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=output.err,
            )

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.start()
            self._progress.add_task(self._title, total=self._total, note="")
        return self

    def advance(self, by: int = 1, note: str = "") -> None:
        self._done += by
        if self._progress:
            self._progress.update(self._progress.task_ids[0], advance=by, note=note)
        elif time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self._output.note(f"{self._title}: {self._done}/{self._total} {note}".rstrip())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()


@contextmanager
def streams() -> Generator[None]:
    """Standard streams that a command may print to, whatever it was started with.

    Closed ones are as /dev/null: else the next file opened would take their place and receive what
    libraries print. Text that the terminal's encoding lacks is shown escaped. Raises ComboError
    when results cannot be written; a pipe that nobody reads any more ends the command with 1, and
    words about a wrong usage that cannot be written with the 2 that they were to explain.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a failure can still be told
    except OSError as error:
        if not _is_writable(sys.stderr):
            sys.exit(getattr(error.__context__, "exit_code", 1))
        if _is_writable(sys.stdout, probe="\n"):
            raise
        if error.errno == errno.EPIPE:
            sys.exit(1)
        reason = error.strerror or error
        raise ComboError(f"results cannot be written to standard output ({reason})") from None
    finally:
        _is_writable(sys.stderr)


def _is_writable(stream: TextIO, probe: str = "") -> bool:
    """Whether what is printed has somewhere to go; else it is dropped, or the end would fail too.

    probe: printed to find out, since after an error nothing may be waiting to be written.
    """
    try:
        stream.write(probe)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def duration(seconds: float | None) -> str:
    """`95` -> `1 min 35 s`."""
    if seconds is None:
        return ""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).replace(",", "").isdigit() or not cell
