"""Job arrays on Slurm, with no live scheduler of ours: a script that a person can read, submitted.

Each task of the array runs `combo preprocess --part I/N`, which needs nothing from the others; a
job that depends on the array closes it with `combo finalise`. A task that is told to go finishes or
leaves its unit and queues itself again (see `stopping`); one that is killed loses its unit in hand
and nothing else, and is queued again by Slurm, or by submitting once more.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import durable
from ..errors import ComboError
from ..manifest import ClusterSettings

ATTEMPTS = 5
PAUSE = 3.0
"""How often, and after how many seconds, a Slurm that is too busy to answer is asked again."""


@dataclass(frozen=True)
class JobArray:
    """An array of tasks and the job that follows it.

    folder: where scripts and logs go.  arguments: of `combo preprocess`, without --part.
    finalise: of `combo finalise`.  environment: variables that the tasks need.
    at_once: most tasks that run together, or None.
    """

    name: str
    folder: Path
    tasks: int
    at_once: int | None
    arguments: Sequence[str]
    finalise: Sequence[str]
    cluster: ClusterSettings
    environment: Mapping[str, str]

    @property
    def script(self) -> str:
        """The script of a task."""
        limit = "" if self.at_once is None else f"%{self.at_once}"
        directives = [
            f"--array=1-{self.tasks}{limit}",
            f"--output={self._log('part-%a.log')}",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{self.cluster.warning}",
            *self._resources(),
        ]
        part = f'"$SLURM_ARRAY_TASK_ID/{self.tasks}"'
        command = f"{_combo('preprocess', *self.arguments)} --part {part} --requeue"
        return self._text(
            f"{self.name}, one of {self.tasks} parts. Submitted again, it goes on where it was.",
            self.name,
            directives,
            (
                "# Before the time limit Slurm sends USR1: the unit in hand is finished, the task",
                "# queued again. The command replaces the shell, so that signals reach it.",
            ),
            command,
        )

    @property
    def closing_script(self) -> str:
        """The script of the job that follows when all tasks have ended, well or not."""
        return self._text(
            f"{self.name}: closes what the parts have done, or says which are missing.",
            f"{self.name}-finalise",
            [
                f"--output={self._log('finalise.log')}",
                "--open-mode=append",
                *self._arguments(),
            ],
            (),
            _combo("finalise", *self.finalise),
        )

    def submit(self) -> tuple[str, str]:
        """Write both scripts and hand them to sbatch; the numbers of the two jobs.

        Raises ComboError with what sbatch says.
        """
        array = self._hand_in("job.sh", self.script)
        closing = self._hand_in(
            "finalise.sh", self.closing_script, f"--dependency=afterany:{array}"
        )
        durable.write_json(
            self.folder / "submitted.json",
            {"array": array, "finalise": closing, "tasks": self.tasks, "stage": self.name},
        )
        return array, closing

    def _hand_in(self, name: str, text: str, *options: str) -> str:
        path = self.folder / name
        durable.write_bytes(path, text.encode())
        return _slurm("sbatch", "--parsable", *options, str(path)).split(";")[0]

    def _log(self, name: str) -> str:
        """Where a job's words go; a % in the folder's name is no pattern."""
        return _quoted(str(self.folder).replace("%", "%%") + f"/{name}")

    def _resources(self) -> list[str]:
        cluster, found = self.cluster, list[str]()
        if cluster.cores is not None:
            found.append(f"--cpus-per-task={cluster.cores}")
        if cluster.memory is not None:
            found.append(f"--mem={-(-cluster.memory // 2**20)}M")
        if cluster.walltime is not None:
            found.append(f"--time={cluster.walltime}")
        return [*found, *self._arguments()]

    def _arguments(self) -> list[str]:
        return [directive(option) for option in self.cluster.sbatch]

    def _text(
        self, about: str, name: str, directives: Sequence[str], comment: Sequence[str], command: str
    ) -> str:
        lines = [
            "#!/usr/bin/env bash",
            f"# {about}",
            f"#SBATCH --job-name={name}",
            f"#SBATCH --chdir={_quoted(str(Path.cwd()))}",
            *(f"#SBATCH {directive}" for directive in directives),
            "",
            *(f"export {key}={shlex.quote(value)}" for key, value in self.environment.items()),
            *comment,
            f"exec {command}",
            "",
        ]
        return "\n".join(lines)


def check_ready(cluster: ClusterSettings) -> None:
    """Whether a job array can be handed in from here at all; asked before anything is touched.

    Raises ComboError: no sbatch here, or a time limit too short to do anything before its warning.
    """
    if shutil.which("sbatch") is None:
        raise ComboError(
            "sbatch is not on this machine; run this on a Slurm login node, or see the script "
            "with --print"
        )
    limit, warning = cluster.seconds, cluster.warning
    if limit is not None and limit < 2 * warning:
        raise ComboError(
            f"cluster.walltime {cluster.walltime} is too short: tasks are told to stop "
            f"{warning} s before its end; give more, or a smaller cluster.warning"
        )


def check_size(tasks: int) -> None:
    """Raises ComboError for more tasks than an array of this cluster may have."""
    most = largest_array(_slurm("scontrol", "show", "config"))
    if most is not None and tasks > most:
        raise ComboError(
            f"an array of this cluster has {most} tasks at most (MaxArraySize), not {tasks}; give "
            f"--tasks {most}: each does more units"
        )


def largest_array(config: str) -> int | None:
    """The tasks that an array counted from 1 may have, from what `scontrol show config` prints."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return max(1, int(found.group(1)) - 1) if found else None


def examine(script: str) -> None:
    """Ask sbatch whether it would take a script, and submit nothing. Raises ComboError."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        _slurm("sbatch", "--test-only", file.name)


def requeue(warned: bool, say: Callable[[str], None]) -> None:
    """Queue the Slurm job that this process is in again, if it is in one.

    warned: whether the time limit was announced. Then a job that is completing has reached it, and
    its unit took longer than was left. One that is completing without a warning was cancelled, and
    is left alone.
    say: gets a sentence on what comes of it, before Slurm is asked: Slurm may end this process as
    soon as it has agreed.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    announced = False
    for attempt in range(ATTEMPTS):
        try:
            state = _slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T")
            if state != "RUNNING" and not (warned and state == "COMPLETING"):
                say(f"job {job} is {state.lower() or 'gone'} and not queued again")
                return
            if not announced:
                say(f"job {job} is now queued again")
                announced = True
            _slurm("scontrol", "requeue", job)
        except ComboError as error:
            if attempt == ATTEMPTS - 1:
                say(f"job {job} could not be queued again ({error}); submit it again")
                return
            time.sleep(PAUSE)
        else:
            return


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ComboError(f"{command[0]} is not on this machine; is this a Slurm node?") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout or "").split())
        raise ComboError(
            f"{command[0]} said: {reason[:300]}; see cluster in the manifest and --sbatch-arg"
        ) from None
    return done.stdout.strip()


def _quoted(path: str) -> str:
    """A path as sbatch reads it in a script: it knows double quotes, and no shell's rules."""
    if not set(path) & set(" \t#'\"\\"):
        return path
    path = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{path}"'


def directive(option: str) -> str:
    """An option of sbatch as a script's line holds it: a value with spaces in double quotes.

    Raises ComboError for one that would be more than a line.
    """
    if not option.isprintable():
        raise ComboError(f"sbatch option {option!r} holds a line break; see cluster.sbatch")
    name, equals, value = option.partition("=")
    several = any(word.startswith("-") for word in option.split()[1:])
    if '"' in option or several or not equals or " " in name:
        return option  # quoted already, or several options in one text
    return f"{name}={_quoted(value)}"


def _combo(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "combo", *arguments])
