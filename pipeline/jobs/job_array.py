"""A job array as combo means it, whichever scheduler runs it.

Each task runs a command with `--part I/N`, which needs nothing from the others; a job that depends
on the array closes it. For stages these are `combo preprocess` and `combo finalise`. Scripts are
made to be read by people.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..manifest import ClusterSettings

WAITS = 600
"""A task waits so many tenths of a second at most before it begins, one more than the last task.

A free cluster starts a thousand tasks in one second, and all would load Python and the weights from
one file system together. Schedulers have no such pause of their own: they limit how many tasks run,
not how many begin. So ten begin each second, each always after the same wait, and a minute is the
most that is lost, of hours. The shell waits: Python itself is what is loaded first.
"""


@dataclass(frozen=True)
class JobArray:
    """Tasks of an array, one for each of `parts` or for some of them, and what all share.

    tasks, first: so many, for the parts from `first` on; counted from 1.
    folder: where scripts and logs go.  arguments: of `combo preprocess`, without --part.
    finalise: of `combo finalise`.  environment: variables that the tasks need.
    at_once: most tasks that run together, or None.
    commands: what a task runs, and what the closing job does, where that is not preprocessing.
    """

    name: str
    folder: Path
    parts: int
    tasks: int
    at_once: int | None
    arguments: Sequence[str]
    finalise: Sequence[str]
    cluster: ClusterSettings
    environment: Mapping[str, str]
    first: int = 1
    commands: tuple[str, str] = ("preprocess", "finalise")

    def divided(self, largest: int | None) -> list["JobArray"]:
        """Arrays of at most `largest` tasks, equally long, with these tasks.

        `at_once` is divided too, among the first `lanes` of them: see `lanes`.
        """
        count = -(-self.tasks // (largest or self.tasks))
        ends = [self.tasks * number // count for number in range(count + 1)]
        lanes = self.lanes(count)
        return [
            replace(
                self,
                first=self.first + ends[number],
                tasks=ends[number + 1] - ends[number],
                at_once=self.at_once and (self.at_once + number % lanes) // lanes,
            )
            for number in range(count)
        ]

    def lanes(self, arrays: int) -> int:
        """How many of several arrays may run beside each other; each later one waits for the one so
        many before it. Fewer than all where otherwise more than `at_once` tasks would run."""
        return min(arrays, self.at_once or arrays)

    def script(self, directives: Sequence[str], number: str) -> str:
        """The script of a task.

        directives: the scheduler's lines.  number: the shell variable with the task's number in
        this array, counted from 1.
        """
        part = number if self.first == 1 else f"{number} + {self.first - 1}"
        command = _combo(self.commands[0], *self.arguments)
        wave = min(self.at_once or WAITS, WAITS)
        lines = [
            "# Ten tasks begin each second, so that not all load their weights at once.",
            f"part=$(({part})) wait=$((({number} - 1) % {wave}))",
            'sleep "$((wait / 10)).$((wait % 10))"',
            "# Near the time limit a signal comes: the unit in hand is finished, the task queued",
            "# again. The command replaces the shell, so that signals reach it.",
            f'exec {command} --part "$part/{self.parts}" --requeue',
        ]
        about = f"one of {self.parts} parts. Submitted again, it goes on where it was."
        return self._text(about, directives, lines)

    def closing_script(self, directives: Sequence[str]) -> str:
        """The script of the job that follows when all tasks have ended, well or not."""
        about = "closes what the parts have done, or says which are missing."
        return self._text(about, directives, [f"exec {_combo(self.commands[1], *self.finalise)}"])

    def _text(self, about: str, directives: Sequence[str], lines: Sequence[str]) -> str:
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                f"# {self.name}: {about}",
                *directives,
                "",
                *(f"export {key}={shlex.quote(value)}" for key, value in self.environment.items()),
                *lines,
                "",
            ]
        )


def _combo(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "combo", *arguments])
