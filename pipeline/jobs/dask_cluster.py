"""Runs units on Dask workers: here, as jobs of a scheduler, or of a cluster that is there.

One task a unit, and a task answers with a number: arrays go from the worker to the store, never
through the scheduler. A worker loads the stage once. Workers may come, go and be killed at any
time: Dask gives the units of a lost one to another, and a unit is done by its record alone.
"""

import asyncio
import concurrent.futures
import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
)
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError
from tornado.ioloop import IOLoop

from ..devices import Place, claimed_device, devices
from ..errors import ComboError
from ..manifest import ClusterSettings
from . import records
from .local import Lost
from .scheduler import SCHEDULERS, cores
from .stopping import Stop
from .unit import BUSY_PAUSE, Busy, Done, Job, OpenJob, Patience

AHEAD = 8
"""Units per worker that Dask is given before the first of them is done."""

FEWEST_AHEAD = 64
"""And at least so many, so that an adaptive cluster sees that there is work."""

ANSWER_PAUSE = 0.02
"""Seconds between two looks for answers."""


@dataclass(frozen=True)
class DaskRunner:
    """Units on the workers of a Dask cluster. See `LocalRunner` for device and run.

    workers: how many there are, or may be.  threads: of each; None: those Dask gave it.
    """

    client: Client
    workers: int
    device: str = "auto"
    threads: int | None = None

    def processes(self, job: Job, units: int) -> int:
        del job
        return max(1, min(units, self.workers))

    def run(
        self, job: Job, units: Sequence[int], again: bool, stop: Stop
    ) -> Iterator[Done | Lost | Busy]:
        if not units:
            return
        with self._reached():
            yield from self._run(job, units, again, stop)

    @contextmanager
    def _reached(self) -> Generator[None]:
        """Raises ComboError when the scheduler is gone."""
        try:
            yield
        except (CommClosedError, ClosedClientError, FutureCancelledError) as error:
            raise ComboError(
                f"the Dask scheduler is gone ({error}); what is committed stays: start one and "
                "run the same command again"
            ) from None

    def _run(
        self, job: Job, units: Sequence[int], again: bool, stop: Stop
    ) -> Iterator[Done | Lost | Busy]:
        plugin = _Loaded(job, again, self.device, self.threads)
        self.client.register_plugin(plugin)
        waiting, given = deque(units), dict[str, int]()
        answers: Any = as_completed()
        ahead, patience = max(FEWEST_AHEAD, AHEAD * self.workers), Patience()

        def give() -> None:
            while waiting and len(given) < ahead and not stop.asked:
                unit = waiting.popleft()
                future = self.client.submit(_run, plugin.name, unit, pure=False)
                given[str(future.key)] = unit
                answers.add(future)

        try:
            give()
            while given:
                while not answers.has_ready():
                    if self.client.status == "closed":  # answers would be waited for for ever
                        raise CommClosedError("it does not answer any more")
                    time.sleep(ANSWER_PAUSE)
                future = next(answers)
                unit = given.pop(str(future.key), None)
                if unit is None:
                    continue  # taken back
                answer = _answer(future, job, unit)
                if isinstance(answer, Busy):
                    waiting.append(unit)
                else:
                    yield answer
                if patience.after(answer, len(waiting) + len(given)):
                    yield answer
                if stop.asked:
                    self._take_back(given)
                give()
        finally:
            if given:
                self._cancel(list(given))
            with contextlib.suppress(Exception):  # the cluster may be gone already
                self.client.unregister_worker_plugin(plugin.name)

    def _take_back(self, given: dict[str, int]) -> None:
        """Take back the units that no worker has begun."""
        processing: Any = self.client.processing()
        begun = {str(keys[0]) for keys in processing.values() if keys}
        idle = [key for key in given if key not in begun]
        self._cancel(idle)
        for key in idle:
            del given[key]

    def _cancel(self, keys: Sequence[str]) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            self.client.cancel([Future(key, self.client) for key in keys], force=True)


def _answer(future: Any, job: Job, unit: int) -> Done | Lost | Busy:
    """What became of a unit; `Busy` when it is to be asked for again. Raises ComboError."""
    if future.status == "error":
        error = future.exception()
        if isinstance(error, KilledWorker):
            return Lost(unit, -9)
        if isinstance(error, ComboError):
            raise error
        raise ComboError(f"unit {unit} of {job.split}: {type(error).__name__}: {error}")
    if future.status == "cancelled":
        return Busy(unit)
    computed = future.result()
    if isinstance(computed, Busy):
        return computed
    record = records.read_record(job.split, job.variant, unit)
    if record is None:
        raise ComboError(
            f"a worker says that unit {unit} of {job.split} is done, but it has no record here; "
            f"give a store that all workers see under the path {job.split.store}"
        )
    return Done(record, computed)


@contextmanager
def dask_runner(
    where: str,
    *,
    workers: int | None,
    device: str,
    cluster: ClusterSettings,
    lifetime: str | None,
    logs: Path,
) -> Generator[tuple[DaskRunner, str]]:
    """A runner on a Dask cluster, and where its dashboard is, for as long as the block runs.

    where: `local` starts workers on this machine, the name of a cluster's scheduler (`slurm`) as
    jobs of their own that come and go with the work, anything else is the address of a Dask
    scheduler.  workers: how many, at most.  cluster, lifetime, logs: of workers that are jobs.
    Raises ComboError.
    """
    with contextlib.ExitStack() as stack:
        threads: int | None = None
        if where == "local":
            count = workers or _local_workers(device)
            threads = max(1, cores() // count)
            made: Any = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address=":0",
                loop=_event_loop(),
            )
            stack.callback(made.close)
        elif where in SCHEDULERS:
            count, threads = workers or 1, cluster.cores or 1
            made = SCHEDULERS[where].dask_cluster(cluster, lifetime, logs, _event_loop())
            stack.callback(made.close)
            made.adapt(minimum_jobs=1, maximum_jobs=count)
        else:
            made, count = where, workers or 0
        try:
            client = stack.enter_context(Client(made, timeout="30s", loop=_event_loop()))
        except (OSError, ValueError) as error:
            raise ComboError(
                f"--dask {where}: no scheduler answers there ({error}); give local, "
                f"{', '.join(SCHEDULERS)}, or an address such as tcp://host:8786"
            ) from None
        there: Any = client.nthreads()
        shown = str(client.dashboard_link)
        if made is not where and find_spec("bokeh") is None:
            shown = "none without bokeh, which is in the extra combo-avs[cluster]"
        yield DaskRunner(client, count or max(1, len(there)), device, threads), shown


@cache
def _event_loop() -> IOLoop:
    """The event loop of a process's clusters and clients, in a thread of its own to its end.

    Dask would start one itself, and end in an assertion where that takes ten seconds.
    """
    running: concurrent.futures.Future[IOLoop] = concurrent.futures.Future()

    async def live() -> None:
        running.set_result(IOLoop.current())
        await asyncio.Event().wait()

    def serve() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            if running.done():
                raise
            running.set_exception(error)

    Thread(target=serve, name="event loop of Dask", daemon=True).start()
    return running.result()


def _local_workers(device: str) -> int:
    on = devices(device)
    return len(on) if on != ["cpu"] else cores()


class _Loaded(WorkerPlugin):
    """A job on every worker, also those that come later; the stage is loaded for the first unit."""

    def __init__(self, job: Job, again: bool, device: str, threads: int | None) -> None:
        self.name = f"combo-{job.split.data_set}-{job.split.split}-{job.variant.name}"
        self._job, self._again, self._device, self._threads = job, again, device, threads
        self._place = Place()
        self._units: OpenJob | None = None
        self._one_at_a_time: Lock | None = None
        self._claim = contextlib.ExitStack()

    def setup(self, worker: Worker) -> None:
        device = "cpu"
        if self._job.stage.has_network:
            device = self._claim.enter_context(claimed_device(self._device))
        self._place = Place(self._threads or worker.state.nthreads, device)
        self._one_at_a_time = Lock()

    def teardown(self, worker: Worker) -> None:
        del worker
        self._claim.close()
        if self._units is not None:
            self._units.close()
            self._units = None

    def run(self, unit: int) -> Done | Busy:
        if self._one_at_a_time is None:
            raise RuntimeError("the plugin was not set up")
        with self._one_at_a_time:
            if self._units is None:
                self._units = self._job.open(self._place, self._again)
            return self._units(unit)


def _run(name: str, unit: int) -> bool | Busy:
    """On a worker: whether it computed the unit; `Busy` when somebody else is at it."""
    plugin: Any = get_worker().plugins[name]
    answer = plugin.run(unit)
    if isinstance(answer, Busy):
        time.sleep(BUSY_PAUSE)
        return answer
    return answer.computed
