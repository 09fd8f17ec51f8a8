"""Reads a store back and says what is wrong: records, digests, shapes, leftovers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import durable
from ..layouts import layout
from ..source import remake
from ..store import VALID, Plan, SplitStore, StoreDamaged, Variant, array_digest
from . import records
from .records import UnitRecord


@dataclass(frozen=True)
class Finding:
    """Something that is not as a record says. mend: the command that makes it right."""

    where: str
    problem: str
    mend: str


def count_findings(split: SplitStore) -> Iterator[Finding]:
    """A Finding when a split has another number of clips than the published data set."""
    plan = split.plan()
    expected = layout(plan.layout).expected.get(split.split, len(plan.clips))
    if len(plan.clips) != expected:
        yield Finding(
            str(split),
            f"{len(plan.clips)} clips, the published {plan.layout} has {expected}",
            "complete the data set and run: combo preprocess all --overwrite "
            f"--data {split.data_set} --split {split.split}",
        )


def verify_variant(
    split: SplitStore, variant: Variant, repair: bool = False
) -> Iterator[Finding | UnitRecord]:
    """Check one variant of a split: yields each good unit's record, and a Finding for all else.

    repair: make a broken unit "not done", so that the next run computes it again.
    """
    plan = split.plan()
    where = f"{split}/{variant.key}"
    again = f"run: {remake(split, variant.stage, variant.settings)}"
    mend = again if repair else f"run: combo verify --repair, then {again.removeprefix('run: ')}"
    for unit in range(plan.units):
        path = records.record_path(split, variant, unit)
        record = records.read_record(path)
        if record is None:
            damaged = path.exists()
            problem = "its record is damaged" if damaged else "is not done"
            yield Finding(f"{where} unit {unit}", problem, again)
        elif problem := _problem(split, variant, plan, record):
            if repair:
                records.withdraw(split, variant, unit)
            yield Finding(f"{where} unit {unit}", problem, mend)
        else:
            yield record
    finished = records.read_finished(split, variant)
    if finished is None:
        yield Finding(where, "is not finished", again)
    elif finished.fingerprint != variant.fingerprint or finished.plan != plan.fingerprint:
        yield Finding(where, "was finished for other settings", again)
    for path in durable.leftovers(split.root):
        yield Finding(where, f"left over by a killed process: {path}", again)


def _problem(split: SplitStore, variant: Variant, plan: Plan, record: UnitRecord) -> str | None:
    if record.fingerprint != variant.fingerprint:
        return "was made with other settings"
    if record.plan != plan.fingerprint:
        return "was made for another list of clips"
    names = tuple(plan.clips[i] for i in plan.members(record.unit))
    if tuple(clip.name for clip in record.clips) != names:
        return "its record names other clips"
    try:
        arrays = split.read_unit(variant, plan, record.unit)
    except StoreDamaged as error:
        return f"cannot be read back ({error})"
    for name, array in arrays.items():
        if record.outputs.get(name) != array_digest(array):
            return f"{name} is not what was written"
    counted = arrays[VALID][: len(names)].astype(bool)
    if not np.array_equal(counted, [not clip.failed for clip in record.clips]):
        return "valid and the record disagree"
    return None
