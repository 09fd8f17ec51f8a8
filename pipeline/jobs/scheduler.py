"""What combo asks a cluster's batch scheduler, and which schedulers it knows.

A scheduler is a module with the functions of `Scheduler`. Nothing else in combo knows its commands
or variables: to add one, write `jobs/NAME.py` and name it in `SCHEDULERS`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import devices, durable
from ..errors import ComboError
from ..manifest import ClusterSettings
from . import slurm
from .job_array import JobArray
from .training import TrainingJob

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop


class Scheduler(Protocol):
    """A batch scheduler. What it says against something is a ComboError in one line."""

    def check_ready(self, cluster: ClusterSettings, arrays: bool = True) -> None:
        """Raises ComboError when a job, or an array, cannot be handed in from here."""
        ...

    def largest_array(self) -> int | None:
        """Most tasks of an array; None for any number, or where there is nobody to ask."""
        ...

    def script(self, array: JobArray) -> str:
        """The script of each task of an array."""
        ...

    def closing_script(self, array: JobArray) -> str:
        """The script of the job that closes what an array has done."""
        ...

    def training_script(self, job: TrainingJob) -> str:
        """The script of a training run; see `TrainingJob`."""
        ...

    def submit(self, script: Path, after: Sequence[str] = ()) -> str:
        """Hand a script in, to run when the jobs `after` have ended, well or not: its number."""
        ...

    def cancel(self, jobs: Sequence[str]) -> None:
        """Take jobs back."""
        ...

    def advice(self, jobs: Sequence[str]) -> str:
        """How a person watches and stops jobs."""
        ...

    def job(self) -> str:
        """The number of the job that this process is in; "" when it is in none of this kind."""
        ...

    def cores(self) -> int | None:
        """CPU cores of this process's job; None where it does not say."""
        ...

    def requeue(self, warned: bool, say: Callable[[str], None]) -> None:
        """Queue the job that this process is in again, unless it was cancelled.

        warned: whether its time limit was announced.  say: gets a sentence on what comes of it.
        """
        ...

    def dask_cluster(
        self, cluster: ClusterSettings, lifetime: str | None, logs: Path, loop: "IOLoop"
    ) -> Any:
        """A dask-jobqueue cluster whose workers are jobs, one unit at a time each.

        lifetime: after which a worker leaves in good order, such as `55m`; by default in time.
        logs: folder for what workers print.  loop: running; the cluster lives in it.
        Raises ComboError when no worker would ever start.
        """
        ...


SCHEDULERS: Mapping[str, Scheduler] = {
    "slurm": slurm,
}


def named(name: str | None) -> Scheduler:
    """A scheduler by its name, or the first. Raises ComboError."""
    try:
        return SCHEDULERS[name or next(iter(SCHEDULERS))]
    except KeyError:
        raise ComboError(f"no scheduler {name!r}; there is {', '.join(SCHEDULERS)}") from None


def here() -> Scheduler | None:
    """The scheduler in one of whose jobs this process is."""
    return next((each for each in SCHEDULERS.values() if each.job()), None)


def job() -> str:
    """The number of the job that this process is in, or ""."""
    found = here()
    return found.job() if found else ""


def cores() -> int:
    """CPU cores that this process may use: on a cluster those of its allocation."""
    asked = (scheduler.cores() for scheduler in SCHEDULERS.values())
    return min([devices.cores(), *(count for count in asked if count)])


def submit(scheduler: Scheduler, array: JobArray) -> tuple[list[str], str]:
    """Write the scripts into the array's folder and hand them in, all of them or none.

    An array longer than the scheduler takes becomes several.
    Returns the numbers of the arrays and of the job that closes them. Raises ComboError.
    """
    numbers: list[str] = []
    arrays = array.divided(scheduler.largest_array())
    lanes = array.lanes(len(arrays))
    try:
        for number, each in enumerate(arrays):
            path = array.folder / ("job.sh" if number == 0 else f"job-{number + 1}.sh")
            durable.write_bytes(path, scheduler.script(each).encode())
            after = [numbers[number - lanes]] if number >= lanes else []
            numbers.append(scheduler.submit(path, after))
        path = array.folder / "finalise.sh"
        durable.write_bytes(path, scheduler.closing_script(array).encode())
        closing = scheduler.submit(path, numbers)
    except BaseException:
        if numbers:
            scheduler.cancel(numbers)
        raise
    told = {"arrays": numbers, "finalise": closing, "tasks": array.tasks, "stage": array.name}
    durable.write_json(array.folder / "submitted.json", told)
    return numbers, closing
