"""Completion records: a unit is done when its record says so, never because a file exists.

A record is one small JSON file a unit, `records/<stage>/<variant>/000012.json`
(`000012.failed.json` when some of its clips failed), and `finished.json` beside them closes a
variant of a split. Both are written whole (see `durable`), the record after the shards it speaks
of; what stands in the middle of a kill is a unit that is not done.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from .. import durable
from ..identity import fingerprint
from ..store import Finished, Plan, SplitStore, Variant, array_digest


@dataclass(frozen=True)
class ClipRecord:
    """What became of one clip. inputs: SHA-256 over the digests of the files it was made from."""

    name: str
    failed: bool
    reason: str
    inputs: str


@dataclass(frozen=True)
class UnitRecord:
    """What one unit is made of, what came out, and how long that took (seconds)."""

    unit: int
    plan: str
    fingerprint: str
    clips: tuple[ClipRecord, ...]
    outputs: dict[str, str]
    compute_seconds: float
    write_seconds: float
    finished_at: float
    """By the clock of the host, for people; nothing depends on it."""
    device: str = "cpu"
    checks: dict[str, str] = field(default_factory=dict[str, str])
    """Array -> the check of each clip (see `clip_checks`); none in records of an older combo."""

    @property
    def failed(self) -> tuple[ClipRecord, ...]:
        return tuple(clip for clip in self.clips if clip.failed)


def record_path(
    split: SplitStore, variant: Variant, unit: int, with_failures: bool = False
) -> Path:
    """Where a unit's record stands; one with failed clips shows it in its name."""
    ending = ".failed.json" if with_failures else ".json"
    return split.records(variant) / f"{unit:06d}{ending}"


def kept_path(split: SplitStore, variant: Variant, unit: int) -> Path:
    """Where stands what is kept of a unit that is not done (see `kept`)."""
    return split.records(variant) / f"{unit:06d}.kept.json"


def read_record(split: SplitStore, variant: Variant, unit: int) -> UnitRecord | None:
    """A unit's record, or None when there is none, or none that can be read."""
    path = _present(split, variant, unit)
    try:
        return None if path is None else _adapter().validate_json(durable.read_bytes(path))
    except (FileNotFoundError, ValueError):
        return None


def has_record(split: SplitStore, variant: Variant, unit: int) -> bool:
    """Whether a record stands there, readable or not."""
    return _present(split, variant, unit) is not None


def commit(split: SplitStore, variant: Variant, record: UnitRecord) -> None:
    """Make a unit done. An older record of it must have been withdrawn, before the shards were
    written."""
    path = record_path(split, variant, record.unit, with_failures=bool(record.failed))
    durable.write_json(path, asdict(record))


def withdraw(split: SplitStore, variant: Variant, unit: int) -> None:
    """Make a unit not done, and with it the variant not finished."""
    finished = split.finished_path(variant)
    durable.remove(finished)
    durable.remove(kept_path(split, variant, unit))
    for with_failures in (False, True):
        durable.remove(record_path(split, variant, unit, with_failures))
    durable.remove(finished)  # written meanwhile by one who had seen the record (see `finalise`)


def listing(split: SplitStore, variant: Variant) -> dict[int, bool]:
    """Which units have a record, and whether with failed clips, read from the names alone.

    One look at a folder, where reading each of many thousand records on a cluster's file system
    takes minutes. The folder belongs to one fingerprint, and a new plan clears it, so a name tells
    how far a job is; what training relies on is `finalise`, which opens every record.
    """
    try:
        names = os.listdir(split.records(variant))  # noqa: PTH208  (100,000 names, no paths)
    except FileNotFoundError:
        return {}
    found: dict[int, bool] = {}
    for name in names:
        number, _, ending = name.partition(".")
        if number.isdecimal() and ending in ("json", "failed.json"):
            found[int(number)] = ending == "failed.json"
    return found


def done_units(
    split: SplitStore, variant: Variant, plan: Plan, units: Iterable[int] | None = None
) -> Iterator[UnitRecord]:
    """The records that speak of this plan and these settings, in order of units.

    units: only these.  A record with other fingerprints is of no use: its unit is not done.
    """
    there = listing(split, variant)
    for unit in sorted(there) if units is None else units:
        record = read_record(split, variant, unit) if unit in there else None
        if record is not None and speaks_of(record, variant, plan, unit):
            yield record


def speaks_of(record: UnitRecord, variant: Variant, plan: Plan, unit: int) -> bool:
    """Whether a record is about this unit of this variant and this list of clips."""
    return (
        record.plan == plan.fingerprint
        and record.fingerprint == variant.fingerprint
        and record.unit == unit < plan.units
    )


def finalise(split: SplitStore, variant: Variant, plan: Plan) -> Finished | None:
    """Write the manifest of a variant whose units are all done; None when some are not.

    Whoever sees the last unit done may call this; two who do write the same bytes. While units are
    missing it costs one look at a folder.
    """
    while len(listing(split, variant)) >= plan.units:
        seen = _files(split, variant)
        records = list(done_units(split, variant, plan))
        if len(records) < plan.units:
            return None
        for path in leftovers(split, variant):
            durable.remove(path)
        finished = manifest(variant, plan, records)
        if split.finished(variant) == finished:
            return finished
        if _files(split, variant) == seen:
            durable.write_json(split.finished_path(variant), asdict(finished))
        # Whoever withdraws a unit removes its record and then this file. So either the record is
        # seen to be gone here, or the file is removed there. Who was frozen sees other records.
        if _files(split, variant) == seen and split.read_plan() == plan:
            return finished
        durable.remove(split.finished_path(variant))
        if split.read_plan() != plan:
            return None
    return None


def _files(split: SplitStore, variant: Variant) -> dict[str, tuple[int, int]]:
    """Tells the records of a variant from others that were written since, without reading them."""
    found: dict[str, tuple[int, int]] = {}
    for unit, with_failures in listing(split, variant).items():
        path = record_path(split, variant, unit, with_failures)
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found[path.name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def manifest(variant: Variant, plan: Plan, records: Sequence[UnitRecord]) -> Finished:
    """What closes a variant with these records, one a unit."""
    names = [spec.name for spec in variant.all_arrays]
    checked = all(record.checks.keys() == set(names) for record in records)
    return Finished(
        plan=plan.fingerprint,
        fingerprint=variant.fingerprint,
        clips=len(plan.clips),
        failed={clip.name: clip.reason for record in records for clip in record.failed},
        outputs=fingerprint([record.outputs for record in records]),
        description=variant.digest if checked else "",
        checks={
            name: "".join(record.checks[name] for record in records) for name in names if checked
        },
    )


def missing_shard(split: SplitStore, variant: Variant, plan: Plan) -> Path | None:
    """A file without which a finished variant would be read as fill value where something else was
    written. For those of an older combo, which left out what was fill value alone."""
    for unit in range(plan.units):
        for spec in variant.all_arrays:
            shard = split.shard(variant, spec, unit)
            if shard.exists():
                continue
            record = read_record(split, variant, unit)
            empty = np.full((plan.clips_per_unit, *spec.shape), spec.fill, spec.dtype)
            if record is None or record.outputs.get(spec.name) != array_digest(empty):
                return shard
    return None


def leftovers(split: SplitStore, variant: Variant) -> Iterator[Path]:
    """What killed processes left half written of a variant."""
    for folder in (split.arrays(variant), split.records(variant)):
        yield from durable.leftovers(folder)
    # Not the whole split: other stages have as many folders again as units.
    yield from durable.leftovers(split.root, of=split.plan_path.name)
    yield from durable.leftovers(split.tensors, of="zarr.json")


def _present(split: SplitStore, variant: Variant, unit: int) -> Path | None:
    for with_failures in (False, True):
        path = record_path(split, variant, unit, with_failures)
        if path.exists():
            return path
    return None


@cache
def _adapter() -> TypeAdapter[UnitRecord]:
    return TypeAdapter(UnitRecord)
