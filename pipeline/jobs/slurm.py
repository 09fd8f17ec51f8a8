"""Slurm, with no live scheduler of ours: all that combo asks it, and the only file that knows it.

A task that is told to go finishes or leaves its unit and queues itself again (see `stopping`); one
that is killed loses its unit in hand and nothing else, and is queued again by Slurm, or by
submitting once more.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ComboError
from ..manifest import ClusterSettings
from .job_array import JobArray
from .training import TrainingJob

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

ATTEMPTS = 5
PAUSE = 3.0
"""How often, and after how many seconds, a Slurm that is too busy to answer is asked again."""

LIFETIME_LEFT = 5 * 60
"""Seconds before its job's time limit at which a Dask worker leaves, unless told otherwise."""


def check_ready(cluster: ClusterSettings, arrays: bool = True) -> None:
    """Whether a job can be handed in from here at all; asked before anything is touched.

    arrays: whether it is an array.  Raises ComboError: no sbatch here, no arrays, or a time limit
    too short to do anything before its warning.
    """
    if shutil.which("sbatch") is None:
        raise ComboError(
            "sbatch is not on this machine; run this on a Slurm login node, or see the script "
            "with --print"
        )
    if arrays and largest_array() == 0:
        raise ComboError(
            "this Slurm runs no job arrays (its MaxArraySize); use combo preprocess --dask slurm"
        )
    limit, warning = cluster.seconds, cluster.warning
    if limit is not None and limit < 2 * warning:
        raise ComboError(
            f"cluster.walltime {cluster.walltime} is too short: tasks are told to stop "
            f"{warning} s before its end; give more, or a smaller cluster.warning"
        )


def largest_array() -> int | None:
    """Most tasks of an array; None where there is no Slurm to ask. Raises ComboError."""
    if shutil.which("scontrol") is None:
        return None
    said = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config"), re.MULTILINE
    )
    if said is None:
        raise ComboError("scontrol show config tells no MaxArraySize; is this Slurm whole?")
    return max(0, int(said[1]) - 1)  # it is the first number that a task must not have


def script(array: JobArray) -> str:
    """The script of a task. Slurm sends USR1 `cluster.warning` seconds before the time limit."""
    before = "" if array.first == 1 else f"{array.first - 1}+"
    directives = _directives(
        array.name,
        f"--array=1-{array.tasks}{'' if array.at_once is None else f'%{array.at_once}'}",
        f"--output={_log(array.folder, f'part-{before}%a.log')}",
        "--requeue",
        f"--signal=B:USR1@{array.cluster.warning}",
        *_resources(array.cluster),
    )
    return array.script(directives, "SLURM_ARRAY_TASK_ID")


def training_script(job: TrainingJob) -> str:
    """The script of a training run. Slurm sends USR1 to all its processes, which are tasks of one
    step, `cluster.warning` seconds before the time limit.
    """
    directives = _directives(
        _quoted(job.name),
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.processes}",
        *([f"--gpus-per-node={job.gpus}"] if job.gpus else []),
        f"--output={_log(job.folder, 'train.log')}",
        "--requeue",
        f"--signal=USR1@{job.cluster.warning}",
        *_resources(job.cluster, job.processes),
    )
    lines = [
        "# Where the first process waits for the others.",
        'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_ADDR=$first MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
    ]
    if job.cluster.cores is not None:  # srun does not take it from the job
        lines.append(f"export SRUN_CPUS_PER_TASK={job.cluster.cores}")
    lines.append("export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}")
    who = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    # A process that is gone must not take the others along before they have saved.
    start = f"srun --kill-on-bad-exit=0 bash -c '{who} exec \"$@\"' combo"
    return job.script(directives, lines, start)


def closing_script(array: JobArray) -> str:
    """The script of the job that follows when all tasks have ended, well or not."""
    output = f"--output={_log(array.folder, 'finalise.log')}"
    return array.closing_script(
        _directives(f"{array.name}-finalise", output, *map(_argument, array.cluster.arguments))
    )


def submit(script: Path, after: Sequence[str] = ()) -> str:
    """Hand a script to sbatch: the job's number.

    after: jobs and arrays that must have ended, well or not.  Raises ComboError with what sbatch
    says.
    """
    wait = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    return _slurm("sbatch", "--parsable", *wait, str(script)).split(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs back. Raises ComboError."""
    _slurm("scancel", *jobs)


def advice(jobs: Sequence[str]) -> str:
    """How a person looks after jobs."""
    return f"watch it: combo status, squeue; stop it: scancel {' '.join(jobs)}"


def job() -> str:
    """The number of the job, or of the array and its task, that this process is in, or ""."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def cores() -> int | None:
    """CPU cores that this process's job asked for; None where it does not say."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


def requeue(warned: bool, say: Callable[[str], None]) -> None:
    """Queue the job that this process is in again.

    warned: whether the time limit was announced. Then a job that is completing has reached it, and
    its unit took longer than was left. One that is completing without a warning was cancelled, and
    is left alone.
    say: gets a sentence on what comes of it, before Slurm is asked: Slurm may end this process as
    soon as it has agreed.
    """
    number = os.environ["SLURM_JOB_ID"]
    announced = False
    for attempt in range(ATTEMPTS):
        try:
            state = _slurm("squeue", "--noheader", f"--jobs={number}", "--format=%T")
            if state != "RUNNING" and not (warned and state == "COMPLETING"):
                say(f"job {number} is {state.lower() or 'gone'} and not queued again")
                return
            if not announced:
                say(f"job {number} is now queued again")
                announced = True
            _slurm("scontrol", "requeue", number)
        except ComboError as error:
            if attempt == ATTEMPTS - 1:
                say(f"job {number} could not be queued again ({error}); submit it again")
                return
            time.sleep(PAUSE)
        else:
            return


def dask_cluster(cluster: ClusterSettings, lifetime: str | None, logs: Path, loop: "IOLoop") -> Any:
    """A dask-jobqueue cluster whose workers are Slurm jobs; see `Scheduler`. Raises ComboError."""
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise ComboError(
            f"--dask slurm needs the extra combo-avs[cluster] ({error}); "
            "run: pip install 'combo-avs[cluster]', in a clone pip install '.[cluster]'"
        ) from None
    signal.signal(signal.SIGINT, interrupt)  # Ctrl-C: the import makes it an end without a word

    walltime = cluster.walltime or "01:00:00"
    stays = lifetime or f"{max(60, (cluster.seconds or 3600) - LIFETIME_LEFT)}s"
    logs.mkdir(parents=True, exist_ok=True)
    made = SLURMCluster(
        cores=1,  # units a worker computes at once
        processes=1,
        job_cpu=cluster.cores or 1,
        memory=f"{cluster.memory or 4 * 2**30}B",
        walltime=walltime,
        worker_extra_args=["--lifetime", stays, "--lifetime-stagger", "60s"],
        # A lost worker is replaced by a new job: the old one must not come back beside it.
        job_extra_directives=["--no-requeue", *map(_argument, cluster.arguments)],
        log_directory=str(logs),
        scheduler_options={"dashboard_address": ":0"},
        job_name="combo-dask",
        loop=loop,
    )
    try:
        # Dask would ask for workers that sbatch refuses for ever.
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(made.job_script())
            file.flush()
            _slurm("sbatch", "--test-only", file.name)
    except BaseException:
        made.close()
        raise
    return made


def _directives(name: str, *arguments: str) -> list[str]:
    found = [f"--job-name={name}", f"--chdir={_quoted(str(Path.cwd()))}", "--open-mode=append"]
    return [f"#SBATCH {argument}" for argument in (*found, *arguments)]


def _resources(cluster: ClusterSettings, processes: int = 1) -> list[str]:
    """What each of the processes of a host needs."""
    found = [f"--cpus-per-task={cluster.cores}"] if cluster.cores is not None else []
    if cluster.memory is not None:
        found.append(f"--mem={-(-cluster.memory * processes // 2**20)}M")
    if cluster.walltime is not None:
        found.append(f"--time={cluster.walltime}")
    return [*found, *map(_argument, cluster.arguments)]


def _log(folder: Path, name: str) -> str:
    """Where a job's words go; a % in the folder's name is no pattern."""
    return _quoted(str(folder).replace("%", "%%") + f"/{name}")


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ComboError(f"{command[0]} is not on this machine; is this a Slurm node?") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout or "").split())
        raise ComboError(
            f"{command[0]} said: {reason[:300]}; see cluster in the manifest and --scheduler-arg"
        ) from None
    return done.stdout.strip()


def _quoted(path: str) -> str:
    """A path as sbatch reads it in a script: it knows double quotes, and no shell's rules."""
    if not set(path) & set(" \t#'\"\\"):
        return path
    path = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{path}"'


def _argument(option: str) -> str:
    """An option of sbatch as a script's line holds it: a value with spaces in double quotes.

    Raises ComboError for one that would be more than a line.
    """
    if not option.isprintable():
        raise ComboError(f"sbatch option {option!r} holds a line break; see cluster.arguments")
    name, equals, value = option.partition("=")
    several = any(word.startswith("-") for word in option.split()[1:])
    if '"' in option or several or not equals or " " in name:
        return option  # quoted already, or several options in one text
    return f"{name}={_quoted(value)}"
