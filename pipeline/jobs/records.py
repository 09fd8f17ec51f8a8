"""Completion records: a unit is done when its record says so, never because a file exists.

A record is one small JSON file a unit, `records/<stage>/<variant>/000012.json`, and `finished.json`
beside them closes a variant of a split. Both are written whole (see `durable`), the record after
the shards it speaks of; what stands in the middle of a kill is a unit that is not done.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from .. import durable
from ..store import Plan, SplitStore, Variant, fingerprint

FINISHED = "finished.json"

Kind = TypeVar("Kind")


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

    @property
    def failed(self) -> tuple[ClipRecord, ...]:
        return tuple(clip for clip in self.clips if clip.failed)


@dataclass(frozen=True)
class Finished:
    """The manifest of a finished variant of a split; training wants it."""

    plan: str
    fingerprint: str
    clips: int
    failed: dict[str, str]
    """Clip name -> reason."""
    outputs: str
    """SHA-256 over the outputs of all units."""


def record_path(split: SplitStore, variant: Variant, unit: int) -> Path:
    return split.records(variant) / f"{unit:06d}.json"


def read_record(path: Path) -> UnitRecord | None:
    """A record, or None when it is missing or not one (the unit is then not done)."""
    try:
        return _adapter(UnitRecord).validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def commit(split: SplitStore, variant: Variant, record: UnitRecord) -> None:
    durable.write_json(record_path(split, variant, record.unit), asdict(record))


def withdraw(split: SplitStore, variant: Variant, unit: int) -> None:
    """Make a unit not done, and with it the variant not finished."""
    durable.remove(split.records(variant) / FINISHED)
    durable.remove(record_path(split, variant, unit))


def done_units(split: SplitStore, variant: Variant, plan: Plan) -> Iterator[UnitRecord]:
    """The records that speak of this plan and these settings, in order of units.

    A record with other fingerprints is of no use: its unit is not done.
    """
    for path in sorted(split.records(variant).glob("[0-9]*.json")):
        record = read_record(path)
        if (
            record is not None
            and record.plan == plan.fingerprint
            and record.fingerprint == variant.fingerprint
            and record.unit < plan.units
        ):
            yield record


def finalise(split: SplitStore, variant: Variant, plan: Plan) -> Finished | None:
    """Write the manifest of a variant whose units are all done; None when some are not.

    Whoever sees the last unit done may call this; two who do write the same bytes.
    """
    records = list(done_units(split, variant, plan))
    if len(records) < plan.units:
        return None
    for path in durable.leftovers(split.root):
        durable.remove(path)
    finished = Finished(
        plan=plan.fingerprint,
        fingerprint=variant.fingerprint,
        clips=len(plan.clips),
        failed={clip.name: clip.reason for record in records for clip in record.failed},
        outputs=fingerprint([record.outputs for record in records]),
    )
    if read_finished(split, variant) != finished:
        durable.write_json(split.records(variant) / FINISHED, asdict(finished))
    return finished


def read_finished(split: SplitStore, variant: Variant) -> Finished | None:
    """The manifest of a finished variant, or None."""
    try:
        return _adapter(Finished).validate_json((split.records(variant) / FINISHED).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


@cache
def _adapter(kind: type[Kind]) -> TypeAdapter[Kind]:
    return TypeAdapter(kind)
