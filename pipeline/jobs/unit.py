"""One unit of work, from clips to a committed record.

Ownership is what makes repair and resume simple: a unit owns whole shards, nobody else writes them,
so a unit may be computed again at any time, by anybody, and twice at once.
"""

import errno
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import ComboError
from ..layouts import Clip
from ..preprocess.stage import Outcome, Stage, Worker
from ..store import VALID, Plan, SplitStore, Variant
from . import records
from .records import ClipRecord, UnitRecord


@dataclass(frozen=True)
class Job:
    """Everything a process needs to compute and commit units of one stage in one split."""

    split: SplitStore
    stage: Stage
    variant: Variant
    plan: Plan
    clips: tuple[Clip, ...]

    def open(self, threads: int = 1) -> Callable[[int], UnitRecord]:
        """Load the stage; the function returned computes and commits one unit."""
        worker = self.stage.open(threads)
        return lambda unit: self._run(worker, unit)

    def _run(self, worker: Worker, unit: int) -> UnitRecord:
        started = time.perf_counter()
        outcomes = worker([self.clips[i] for i in self.plan.members(unit)])
        arrays, clips = self._gather(unit, outcomes)
        computed = time.perf_counter()

        with storing(self.split):
            # In this order: a kill between any two steps leaves a unit that is not done.
            records.withdraw(self.split, self.variant, unit)
            outputs = self.split.write_unit(self.variant, self.plan, unit, arrays)
            written = time.perf_counter()
            record = UnitRecord(
                unit=unit,
                plan=self.plan.fingerprint,
                fingerprint=self.variant.fingerprint,
                clips=clips,
                outputs=outputs,
                compute_seconds=round(computed - started, 4),
                write_seconds=round(written - computed, 4),
                finished_at=round(time.time(), 3),
            )
            records.commit(self.split, self.variant, record)
        return record

    def _gather(
        self, unit: int, outcomes: list[Outcome]
    ) -> tuple[dict[str, np.ndarray], tuple[ClipRecord, ...]]:
        variant = self.variant
        rows = self.plan.clips_per_unit
        arrays = {
            spec.name: np.full((rows, *spec.shape), spec.fill, spec.dtype)
            for spec in variant.all_arrays
        }
        clips: list[ClipRecord] = []
        for row, (index, outcome) in enumerate(zip(self.plan.members(unit), outcomes, strict=True)):
            if outcome.arrays is not None:
                arrays[VALID][row] = 1
                for spec in variant.arrays:
                    arrays[spec.name][row] = outcome.arrays[spec.name]
            clips.append(
                ClipRecord(
                    name=self.plan.clips[index],
                    failed=outcome.arrays is None,
                    reason=outcome.reason,
                    inputs=outcome.inputs,
                )
            )
        return arrays, tuple(clips)


@contextmanager
def storing(split: SplitStore) -> Generator[None]:
    """What the system says about writing to the store becomes one line with a way out."""
    go_on = "free space there and run the same command again: it goes on where it stopped"
    elsewhere = "give another store in the manifest or COMBO_STORE"
    mends = {
        errno.ENOSPC: f"the disk is full; {go_on}",
        errno.EDQUOT: f"the quota is used up; {go_on}",
        errno.EROFS: f"the file system is read-only; {elsewhere}",
        errno.EACCES: f"no permission to write; {elsewhere}",
    }
    try:
        yield
    except OSError as error:
        mend = mends.get(error.errno or 0, f"{error.strerror or error}; run the same command again")
        raise ComboError(f"cannot write {split.root}: {mend}") from error
