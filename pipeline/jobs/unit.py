"""One unit of work, from clips to a committed record.

Ownership is what makes repair and resume simple: a unit owns whole shards and nobody else writes
them, so it may be computed again at any time, by anybody.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .. import durable
from ..clip_checks import clip_checks
from ..devices import Place
from ..errors import ComboError, MediaError
from ..layouts import Clip, Listing
from ..preprocess.stage import Outcome, Stage, Worker
from ..store import VALID, Plan, SplitStore, Variant
from . import kept, records
from .claims import Claims, Holder
from .inputs import DataSet, digest_of
from .records import ClipRecord, UnitRecord

BUSY_PAUSE = 0.2
"""Seconds before units that other processes have are asked for again."""

TOLD_AFTER = 60.0
"""Seconds of such waiting after which it is said who has them."""


@dataclass(frozen=True)
class Job:
    """Everything a process needs to compute and commit units of one stage in one split.

    clips: what the stage reads, those of the plan.  data: the data set's own clips, which are
    others where the stage is an import.
    """

    split: SplitStore
    stage: Stage
    variant: Variant
    plan: Plan
    clips: Listing
    data: DataSet

    def open(self, place: Place, again: bool = False) -> "OpenJob":
        """Load the stage in this process. again: compute units that have a record, too."""
        return OpenJob(self, place, again)


@dataclass(frozen=True)
class Done:
    """A unit that is committed. computed: by this process, just now."""

    record: UnitRecord
    computed: bool


@dataclass(frozen=True)
class Busy:
    """A unit that another process is computing."""

    unit: int
    holder: Holder | None = None


class Patience:
    """Waits when there is nothing left but units that others are computing."""

    def __init__(self) -> None:
        self._busy = 0
        self._since = time.monotonic()
        self._tell_after = TOLD_AFTER

    def after(self, answer: object, left: int) -> bool:
        """Whether people should hear of it: it has taken long, or twice as long as when they did.

        answer: what became of a unit.  left: units still to be asked for.
        """
        self._busy = self._busy + 1 if isinstance(answer, Busy) else 0
        if not self._busy:
            self._since, self._tell_after = time.monotonic(), TOLD_AFTER
        if not self._busy or self._busy < left:
            return False
        time.sleep(BUSY_PAUSE)
        told = time.monotonic() - self._since >= self._tell_after
        self._tell_after *= 2 if told else 1
        return told


class OpenJob:
    """Computes and commits units of a job, one call a unit, in the process that opened it.

    Raises ComboError: the store cannot be written, or the plan was replaced by another.
    """

    def __init__(self, job: Job, place: Place, again: bool) -> None:
        self.job, self._again = job, again
        self._plan_file = _signature(job.split)
        self._device = place.device if job.stage.has_network else "cpu"
        with storing(job.split):
            self._claims = Claims(job.split.records(job.variant))
        self._work: Worker = job.stage.open(place)

    def close(self) -> None:
        self._claims.close()

    def __call__(self, unit: int) -> Done | Busy:
        job = self.job
        with storing(job.split):
            free = self._claims.take(unit)
        if not free:
            return Busy(unit, self._claims.holder(unit))
        try:
            # Looked for under the claim: whoever had it before may have finished the unit.
            there = records.has_record(job.split, job.variant, unit)
            record = records.read_record(job.split, job.variant, unit) if there else None
            good = record is not None and records.speaks_of(record, job.variant, job.plan, unit)
            if record is not None and good and not self._again:
                return Done(record, computed=False)
            return Done(self._compute(unit, there), computed=True)
        finally:
            self._claims.release(unit)

    def _compute(self, unit: int, has_record: bool) -> UnitRecord:
        job, started = self.job, time.perf_counter()
        outcomes = self._outcomes(unit, has_record)
        arrays, clips = gather(job.variant, job.plan, unit, outcomes)
        computed = time.perf_counter()

        self._check_plan()
        with storing(job.split):
            # In this order: a kill between any two steps leaves a unit that is not done.
            if has_record:
                records.withdraw(job.split, job.variant, unit)
            outputs = job.split.write_unit(job.variant, job.plan, unit, arrays)
            written = time.perf_counter()
            record = UnitRecord(
                unit=unit,
                plan=job.plan.fingerprint,
                fingerprint=job.variant.fingerprint,
                clips=clips,
                outputs=outputs,
                compute_seconds=round(computed - started, 4),
                write_seconds=round(written - computed, 4),
                finished_at=round(time.time(), 3),
                device=self._device,
                checks=clip_checks(arrays, len(clips)),
            )
            records.commit(job.split, job.variant, record)
            try:
                # Once more: this process may have been frozen since, and the plan replaced.
                self._check_plan()
            except ComboError:
                records.withdraw(job.split, job.variant, unit)
                raise
            kept.forget(job.split, job.variant, unit)
        return record

    def _outcomes(self, unit: int, has_record: bool) -> list[Outcome]:
        """What becomes of a unit's clips, in order: those that are kept are not computed."""
        job = self.job
        clips = [job.clips[index] for index in job.plan.members(unit)]
        there: dict[str, Outcome] = {}
        if not has_record and kept.read(job.split, job.variant, job.plan, unit):
            there = kept.outcomes(job.split, job.variant, job.plan, unit)
        for clip in clips:
            if clip.name in there and not self._is_of(there[clip.name], clip):
                del there[clip.name]
        new = [clip for clip in clips if clip.name not in there]
        there |= zip((clip.name for clip in new), self._work(new) if new else (), strict=True)
        return [there[clip.name] for clip in clips]

    def _is_of(self, outcome: Outcome, clip: Clip) -> bool:
        """Whether a clip's files are those that an outcome was made of."""
        try:
            return outcome.inputs in ("", digest_of(self.job.stage.inputs(clip)))
        except MediaError:
            return False

    def _check_plan(self) -> None:
        """Raises ComboError when the arrays now belong to another list of clips."""
        split, signature = self.job.split, _signature(self.job.split)
        if signature == self._plan_file:
            return
        if split.read_plan() != self.job.plan:
            raise ComboError(
                f"the plan of {split} in {split.store} was replaced while this job ran; "
                "run the same command again"
            )
        self._plan_file = signature  # the same plan, written by another task of the array


def gather(
    variant: Variant, plan: Plan, unit: int, outcomes: Sequence[Outcome]
) -> tuple[dict[str, np.ndarray], tuple[ClipRecord, ...]]:
    """The arrays of a unit, [clips_per_unit, ...], and what became of each of its clips."""
    arrays = {
        spec.name: np.full((plan.clips_per_unit, *spec.shape), spec.fill, spec.dtype)
        for spec in variant.all_arrays
    }
    clips: list[ClipRecord] = []
    for row, (index, outcome) in enumerate(zip(plan.members(unit), outcomes, strict=True)):
        if outcome.arrays is not None:
            arrays[VALID][row] = 1
            for spec in variant.arrays:
                arrays[spec.name][row] = outcome.arrays[spec.name]
        clips.append(
            ClipRecord(
                name=plan.clips[index],
                failed=outcome.arrays is None,
                reason=outcome.reason,
                inputs=outcome.inputs,
            )
        )
    return arrays, tuple(clips)


def _signature(split: SplitStore) -> tuple[int, int, int] | None:
    """Tells one plan file from the next without reading it: a new plan is a new file."""
    try:
        found = split.plan_path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def storing(split: SplitStore) -> Generator[None]:
    """What the system says about writing to the store becomes one line with a way out."""
    again = "run the same command again: it goes on where it stopped"
    elsewhere = "give another store in the manifest or COMBO_STORE"
    with durable.writing(split.root, again, elsewhere):
        yield
