"""A training run as a job of a cluster, whichever scheduler runs it.

The job begins the run, or goes on with it when there is one: so it may be queued again as often as
it is killed. Each process of a run is a task of the job, started by the scheduler itself, so that
its signals reach every one of them.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..manifest import ClusterSettings


@dataclass(frozen=True)
class TrainingJob:
    """run: the run's folder; `folder`: where script and log go.  nodes, processes: so many hosts,
    and processes on each; gpus: of each host, None to ask for none.
    arguments: of `combo train` that begin the run there; going_on: that go with `--resume`.
    cluster: what each process needs.
    environment: variables that they need.
    """

    run: Path
    folder: Path
    nodes: int
    processes: int
    gpus: int | None
    arguments: Sequence[str]
    going_on: Sequence[str]
    cluster: ClusterSettings
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"combo-train-{self.run.name}"

    def script(self, directives: Sequence[str], lines: Sequence[str], start: str) -> str:
        """The job's script.

        directives: the scheduler's lines.  lines: what its shell does first.  start: a command that
        starts all processes of what follows it, in the shell's `words`.
        """
        run = shlex.quote(str(self.run))
        combo = shlex.join([sys.executable, "-m", "combo", "train"])
        begin = shlex.join(["--out", str(self.run), *self.arguments])
        go_on = shlex.join(["--resume", str(self.run), *self.going_on])
        return "\n".join(
            [
                "#!/usr/bin/env bash",
                f"# Trains {shlex.quote(self.run.name)}. Submitted again, it goes on where it was.",
                *directives,
                "",
                *(f"export {key}={shlex.quote(value)}" for key, value in self.environment.items()),
                *lines,
                f"if [ -e {run}/last.pt ]",
                f"then words=({go_on})",
                f"else words=({begin})",
                "fi",
                "# Near the time limit a signal comes: the step in hand is finished and saved, and",
                "# the job queued again.",
                f'exec {start} {combo} "${{words[@]}}" --requeue',
                "",
            ]
        )
