"""The one module that prints: results on standard output, progress and notes on standard error.

What is printed is shown as it is: `[x]` and `:dog:` in a path are no markup. Notes that nobody can
receive are dropped, since work must not end for them; results that cannot be written are an error.
"""

import contextlib
import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import ComboError

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

WIDE = 140
"""Columns of a terminal on which a bar has room for all that is said of it."""

SECONDS_BETWEEN_LINES = 10.0
MOST_BETWEEN_LINES = 300.0
"""How often progress is told when there is no terminal to draw a bar on."""

STYLES = {
    "ok": "green",
    "finished": "green",
    "running": "green",
    "open": "yellow",
    "not begun": "yellow",
    "stopped": "yellow",
    "--": "red",
    "all failed": "red",
    "failed": "red",
    "died": "red",
    "missing": "red",
    "wrong": "red",
}
"""Colours of states, where there is a terminal."""

_COPIED = re.compile(r"https?://|combo ")
_WORDS = re.compile(r"(?<=: )combo [a-z-][^;,()`]*[^;,()`\s][;,)]*|\S+")
"""A word, or a command that is to be copied."""


class _Console(Console):
    """One that does not end the process where nobody reads: that is for `Output` and `streams`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Output:
    """Where a command's words go. quiet: no progress and no notes.  as_json: results as JSON.

    part: of a command that has a result of its own; with JSON, which is one, none is shown here.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, part: bool = False) -> None:
        self.quiet, self.as_json, self.part = quiet, as_json, part
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
            self.err.print(wrapped(text, self.err.width) if self.err.is_terminal else text)
        _is_writable(sys.stderr)

    def result(self, text: str) -> None:
        """A line for whoever asked; text of several lines, such as a script, stays as it is."""
        whole = "\n" in text or not self.out.is_terminal
        self.out.print(text if whole else wrapped(text, self.out.width))

    def clear(self) -> None:
        """Begin a terminal's screen anew, or elsewhere another paragraph."""
        if self.out.is_terminal:
            self.out.clear()
        else:
            self.out.print()

    def states(self, lines: Iterable[tuple[str, str, str]]) -> None:
        """Lines of what is before a state, the state, which has its colour, and what is after."""
        for before, state, after in lines:
            room = cell_len(f"{before}{state}{after}") <= self.out.width
            rest = after if room or not self.out.is_terminal else f"\n    {after.lstrip()}"
            self.out.print(Text.assemble(before, (state, STYLES.get(state.strip(), "")), rest))

    def json(self, value: Any) -> None:
        if not self.part:
            sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
    ) -> None:
        """A table; numbers to the right. Where it is too wide each row is a few lines, as else a
        word, or what is to be copied, would be broken."""
        rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(columns):
            right = bool(rows) and all(_is_number(row[i]) for row in rows)
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
        size = self.out.measure(table, options=self.out.options.update(width=1 << 20))
        copied = any(re.search(r"\bcombo [a-z]|https?://", cell) for row in rows for cell in row)
        if (size.maximum if copied else size.minimum) > self.out.width:
            self._rows_as_lines(columns, rows, title)
        else:
            self.out.print(table)

    def _rows_as_lines(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None
    ) -> None:
        """Each row: its first cells, then a line for each other that says something."""
        if title:
            self.out.print(title)
        named = 1 if columns[0] else 2  # the first column of `combo doctor` is a mark
        for row in rows:
            styled = [(cell, STYLES.get(cell, "")) for cell in row[:named]]
            self.out.print(Text("  ").join(Text(*each) for each in styled))
            for name, cell in zip(columns[named:], row[named:], strict=True):
                if cell:
                    self.out.print(wrapped(f"    {name}: {cell}", self.out.width))

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

    def bar(self, title: str, total: int, left: "Left | None" = None) -> "Bar":
        return Bar(self, title, total, left)

    def took(self, seconds: float) -> None:
        """How long it took, where no bar has said so."""
        if not self.err.is_terminal:
            self.note(f"took {duration(seconds)}")


Left = Callable[[], str]
"""How much time is left, in words."""


class Bar(AbstractContextManager["Bar"]):
    """A progress bar on a terminal, a line now and then elsewhere, nothing when quiet.

    left: says how much time is left; else that follows from what was done since the beginning,
    however long one of them takes. A bar that is full says how long it took.
    """

    def __init__(self, output: Output, title: str, total: int, left: Left | None = None) -> None:
        self._output, self._title, self._total, self._done = output, title, total, 0
        self._left, self._note = left, ""
        self._progress = _progress(output, self) if output.err.is_terminal else None
        self._progress = None if output.quiet else self._progress
        self._began = self._told = self._moved = time.monotonic()
        self._ended: float | None = None

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.add_task(self._title, total=self._total)
            try:
                self._progress.start()
            except BaseException:  # Ctrl-C: what comes next is to begin on a line of its own
                self._progress.stop()
                raise
        return self

    def advance(
        self, by: int = 1, note: str | None = None, title: str | None = None, more: str = ""
    ) -> None:
        """note: what is said behind, title: what is said before, from now on. more: said behind
        the note where there is room for it, in a line or on a wide terminal."""
        self._done += by
        room = not self._progress or self._output.err.width >= WIDE
        self._note = self._note if note is None else f"{note}{more if room else ''}"
        self._title = title or self._title
        now = time.monotonic()
        self._moved = now if by else self._moved
        if self._progress:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=self._done, description=self._title)
        elif now - self._told > self._between_lines(now):
            self._told = now
            count = f"{self._done}/{self._total}"
            self._output.note(f"{self._title}: {', '.join(filter(None, [count, self.said()]))}")

    def _between_lines(self, now: float) -> float:
        """Seconds: the longer it takes the fewer lines, so that a log of days can be read."""
        return min(max(SECONDS_BETWEEN_LINES, (now - self._began) / 100), MOST_BETWEEN_LINES)

    def add(self, count: int) -> None:
        """There is more to do than was known."""
        self._total += count
        if self._progress:
            self._progress.update(self._progress.task_ids[0], total=self._total)

    def said(self) -> str:
        """Rate, time left and the note, in words."""
        if self._ended is not None:
            return ", ".join(filter(None, [f"took {duration(self._ended)}", self._note]))
        return ", ".join(filter(None, [self._rate(), self._time_left(), self._note]))

    def _rate(self) -> str:
        if not self._done:
            return ""
        each = (self._moved - self._began) / self._done
        return f"{1 / each:.1f}/s" if 0 < each < 1 else f"{each:.1f} s each" if each else ""

    def _time_left(self) -> str:
        if self._left is not None:
            return self._left()
        if not self._done:
            return ""
        whole = (self._moved - self._began) / self._done * self._total
        return f"{duration(max(0.0, whole - (time.monotonic() - self._began)))} left"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        took = time.monotonic() - self._began
        if error is None:
            self._ended = took
        if self._progress:
            self._progress.stop()
        elif error is None and took > SECONDS_BETWEEN_LINES:
            self._output.note(f"{self._title}: {self._done}/{self._total}, {self.said()}")


def _progress(output: Output, bar: Bar) -> "Progress":
    """The bar on a terminal; what does not fit is cut off at the end."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column

    class Said(ProgressColumn):
        def render(self, task: Task) -> Text:
            del task
            return Text(bar.said())

    def one_line() -> Column:
        return Column(no_wrap=True, overflow="ellipsis")

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=one_line()),
        BarColumn(bar_width=10, table_column=one_line()),
        MofNCompleteColumn(table_column=one_line()),
        TimeElapsedColumn(table_column=one_line()),
        Said(table_column=one_line()),
        console=output.err,
    )


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


def wrapped(text: str, width: int) -> str:
    """Text in lines of so many columns, broken between words alone; later lines are indented. A
    command that stands after a colon is one word, and a word that is too long stays whole, on a
    line of its own. What is to be copied stands there without the comma behind it."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        now = ""
        for word in _WORDS.findall(line):
            longer = f"{now} {word}" if now else f"{indent}{word}"
            if now and cell_len(longer) > width:
                lines.append(now)
                longer = f"{indent}  {word}"
                longer = longer if cell_len(longer) <= width else word  # to have the room it can
            if cell_len(longer) > width and _COPIED.match(longer):
                longer = longer.rstrip(";,")  # the whole line is copied
            now = longer
        lines.append(now)
    return "\n".join(lines)


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
