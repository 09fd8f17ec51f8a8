"""What a job will need, before it starts: disk and time, from units that were measured."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from .. import durable
from ..errors import ComboError, counted
from ..store import SplitStore, Variant, splits_in
from . import records
from .unit import Job

MEASURED_UNITS = 16
"""Units whose sizes and times are averaged, at most."""

MARGIN = 1.1
"""How much more than the average of the measured units must be free."""


@dataclass(frozen=True)
class Estimate:
    """units: to compute.  bytes: what they will take.  free: bytes free where the store is.
    seconds: with all processes, None when no unit of these settings has been measured; `bytes` is
    then the uncompressed size, which is more than they will take.
    """

    units: int
    bytes: int
    free: int
    seconds: float | None

    @property
    def measured(self) -> bool:
        return self.seconds is not None


def estimate(job: Job, units: int, processes: int, new: int | None = None) -> Estimate:
    """What `units` units of a job need, computed by so many processes at once.

    new: how many of them replace no files; all, when not given.
    Units of the same variant are measured wherever the store has some, in other splits too.
    """
    new = units if new is None else new
    free = durable.free_bytes(job.split.store)
    measured = list(islice(_measured(job.split, job.variant), MEASURED_UNITS))
    if not measured:
        return Estimate(units, new * _uncompressed(job), free, None)
    size = sum(size for size, _ in measured) / len(measured)
    seconds = sum(seconds for _, seconds in measured) / len(measured)
    return Estimate(
        units, int(MARGIN * new * size), free, units * seconds / max(1, min(processes, units))
    )


def check(job: Job, needed: Estimate, others: int = 0) -> None:
    """Raises ComboError when the disk is too small for what was measured.

    others: bytes that other jobs will take.
    """
    if needed.measured and needed.bytes + others > needed.free:
        with_others = f", after {size_text(others)} for what comes before," if others else ""
        raise ComboError(
            f"{job.split} {job.variant.stage}: {counted(needed.units, 'unit')} need about "
            f"{size_text(needed.bytes)}{with_others} but {size_text(needed.free)} are free for "
            f"{job.split.store}; free space, give another store, or go on with --force"
        )


def size_text(size: float) -> str:
    """`1234567` -> `1.2 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1000
    return f"{size:.1f} TB"


def _uncompressed(job: Job) -> int:
    """Bytes of a unit's arrays as they are in memory."""
    specs = job.variant.all_arrays
    row = sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)
    return row * job.plan.clips_per_unit


def _measured(split: SplitStore, variant: Variant) -> Iterator[tuple[int, float]]:
    """Bytes on the disk and seconds of finished units of a variant, this split's first."""
    others = (s for s in splits_in(split.store) if s.root != split.root)
    for each in (split, *others):
        for unit in _spread(sorted(records.listing(each, variant))):
            record = records.read_record(each, variant, unit)
            if record is None or record.fingerprint != variant.fingerprint:
                continue
            if len(record.failed) < len(record.clips):  # else nothing was computed or written
                seconds = record.compute_seconds + record.write_seconds
                yield sum(_blocks(path) for path in each.shards(variant, unit)), seconds


def _spread(units: list[int]) -> Iterable[int]:
    """A few of them, from everywhere."""
    return units[:: max(1, len(units) // MEASURED_UNITS)]


def _blocks(path: Path) -> int:
    """Bytes that a file takes on the disk; 0 where there is none, as for a shard of zeros."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    return max(found.st_size, found.st_blocks * 512)
