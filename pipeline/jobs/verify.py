"""Reads a store back and says what is wrong: records, digests, shapes, leftovers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .. import remedies
from ..clip_checks import clip_checks
from ..errors import ComboError, MediaError
from ..layouts import layout
from ..source import remake, usable
from ..store import VALID, Plan, SplitStore, StoreDamaged, Variant, array_digest
from . import records
from .claims import Claims
from .inputs import digest_of
from .records import UnitRecord
from .repair import broken, described, own, rebuild, rebuild_plan
from .run import Options, run_job
from .stopping import Stop
from .unit import Job, storing

if TYPE_CHECKING:
    from .plan import PlannedSplit


@dataclass(frozen=True)
class Finding:
    """Something that is not as a record says. mend: the command that makes it right.
    unit: the unit that must be computed again for it; None when that would not help.
    """

    where: str
    problem: str
    mend: str
    unit: int | None = None


def count_findings(split: SplitStore) -> Iterator[Finding]:
    """A Finding when a split has another number of clips than the published data set."""
    plan = split.plan()
    expected = layout(plan.layout).expected.get(split.split, len(plan.clips))
    if len(plan.clips) != expected:
        yield Finding(
            str(split),
            f"{len(plan.clips)} clips, the published {plan.layout} has {expected}",
            "complete the data set and run: "
            + remedies.make(remedies.ALL, split.data_set, split.split),
        )


def verify_plan(
    split: SplitStore, there: "PlannedSplit | None"
) -> tuple[list[Finding], list[Finding]]:
    """What is wrong with a split's plan, and what of it was mended.

    there: the split as the manifest has it, where it is to be mended.
    """
    try:
        if split.read_plan() is not None:
            return [], []
    except StoreDamaged:
        pass
    except ComboError as error:  # another split's folder: nothing is mended by writing in it
        what, mend = str(error).split("; ", 1)
        return [Finding(str(split), what, mend)], []
    again = f"run: {remedies.make(remedies.ALL, split.data_set, split.split)}"
    lost = [Finding(str(split), f"{split.plan_path} is damaged or missing", again)]
    return lost, lost if there is not None and rebuild_plan(split, there.plan) else []


def verify_description(
    split: SplitStore, key: str, there: "PlannedSplit | None", *, repair: bool
) -> tuple[list[Finding], list[Finding]]:
    """What is wrong with what describes a variant, and what of it was mended.

    key: of the variant.  there: the split as the manifest has it, if it was asked.
    """
    plan = split.plan()
    found = list(broken(split, plan, described(split, key, there) if there else None, key))
    if not found:
        return [], []
    variant = described(split, key, there) or own(split, key)
    mend = f"run: {remedies.repair(split.data_set, split.split)}"
    if repair and variant is None:
        mend = "give a manifest with the settings that it was made with, and its weights"
    wrong = [Finding(f"{split}/{key}", f"{file} is damaged or missing", mend) for file in found]
    if not repair or variant is None:
        return wrong, []
    with storing(split):
        rebuild(split, plan, variant, found)
    return wrong, wrong


def verify_variant(
    split: SplitStore, variant: Variant, job: Job | None = None
) -> Iterator[Finding | UnitRecord]:
    """Check one variant of a split: yields each good unit's record, and a Finding for all else.

    job: the job that makes this variant, to hold the input files against the records too.
    """
    plan = split.plan()
    where = f"{split}/{variant.key}"
    again = f"run: {remake(split, variant.stage, variant.settings)}"
    mend = f"run: {remedies.repair(split.data_set, split.split)}"
    good: list[UnitRecord] = []
    for unit in range(plan.units):
        record = records.read_record(split, variant, unit)
        if record is None:
            there = records.has_record(split, variant, unit)
            problem = "its record is damaged" if there else "is not done"
            yield Finding(
                f"{where} unit {unit}", problem, mend if there else again, unit if there else None
            )
        elif problem := _problem(split, variant, plan, unit, record) or _changed_input(job, record):
            yield Finding(f"{where} unit {unit}", problem, mend, unit)
        else:
            good.append(record)
            yield record
    yield from verify_finish(split, variant, good)


def verify_finish(
    split: SplitStore, variant: Variant, good: Sequence[UnitRecord]
) -> Iterator[Finding]:
    """What is wrong with a variant as a whole. good: the records of the units that are whole."""
    where = f"{split}/{variant.key}"
    again = f"run: {remake(split, variant.stage, variant.settings)}"
    finished, plan = split.finished(variant), split.plan()
    if finished is None:
        yield Finding(where, "is not finished", again)
    elif usable(split, variant) is None:
        yield Finding(where, "was finished for other settings", again)
    elif finished.description not in ("", variant.digest):
        yield Finding(where, "its description is not what it was finished with", again)
    elif len(good) == plan.units and records.manifest(variant, plan, good) != finished:
        yield Finding(where, "its finished.json is not what its records say", again)
    for path in records.leftovers(split, variant):
        yield Finding(where, f"left over by a killed process: {path}", again)


def add_checks(split: SplitStore, variant: Variant) -> int:
    """Give whole units of an older combo the checks that readers hold clips against; how many."""
    plan, added = split.plan(), 0
    old = [r.unit for r in records.done_units(split, variant, plan) if not r.checks]
    if not old:
        return 0
    with storing(split):
        claims = Claims(split.records(variant))
        for unit in (unit for unit in old if claims.take(unit)):
            record = records.read_record(split, variant, unit)
            if record is not None and not record.checks:
                with suppress(StoreDamaged):
                    arrays = read_back(split, variant, plan, unit, record)
                    checks = clip_checks(arrays, len(record.clips))
                    records.commit(split, variant, replace(record, checks=checks))
                    added += 1
            claims.release(unit)
        claims.close()
        records.finalise(split, variant, plan)
    return added


def repair_variant(
    job: Job,
    findings: Sequence[Finding],
    stop: Stop | None = None,
    on_unit: Callable[[UnitRecord], None] = lambda _: None,
) -> list[Finding]:
    """Compute the units that findings name again, these alone; which findings that mended.

    job: the job that makes the variant.  Units that were never done are left to `preprocess`.
    """
    broken = sorted({finding.unit for finding in findings if finding.unit is not None})
    with storing(job.split):
        for unit in broken:
            records.withdraw(job.split, job.variant, unit)
    # By force: what is made again replaces what is there.
    summary = run_job(job, Options(force=True), stop=stop, units=broken, on_unit=on_unit)
    mended = [f for f in findings if f.unit is not None and f.unit not in summary.lost]
    if summary.finished:
        done = list(records.done_units(job.split, job.variant, job.plan))
        still = list(verify_finish(job.split, job.variant, done))
        mended += [f for f in findings if f.unit is None and f not in still]
    return mended


def _changed_input(job: Job | None, record: UnitRecord) -> str | None:
    """A clip whose files are not those it was made from. Failed clips have no digest."""
    if job is None:
        return None
    clips = {clip.name: clip for clip in (job.clips[i] for i in job.plan.members(record.unit))}
    for made in record.clips:
        if made.failed:
            continue
        try:
            now = digest_of(job.stage.inputs(clips[made.name]))
        except MediaError as error:
            return f"an input of clip {made.name} is gone ({error})"
        if now != made.inputs:
            return f"the input files of clip {made.name} have changed"
    return None


def _problem(
    split: SplitStore, variant: Variant, plan: Plan, unit: int, record: UnitRecord
) -> str | None:
    try:
        read_back(split, variant, plan, unit, record)
    except StoreDamaged as error:
        return str(error)
    return None


def read_back(
    split: SplitStore, variant: Variant, plan: Plan, unit: int, record: UnitRecord
) -> dict[str, np.ndarray]:
    """The arrays of a unit, [clips_per_unit, ...], if they and its record are what they must be.

    Raises StoreDamaged: what is wrong.
    """
    if record.unit != unit:
        raise StoreDamaged(f"its record speaks of unit {record.unit}")
    if record.fingerprint != variant.fingerprint:
        raise StoreDamaged("was made with other settings")
    if record.plan != plan.fingerprint:
        raise StoreDamaged("was made for another list of clips")
    names = tuple(plan.clips[i] for i in plan.members(unit))
    if tuple(clip.name for clip in record.clips) != names:
        raise StoreDamaged("its record names other clips")
    if records.record_path(split, variant, unit, with_failures=not record.failed).exists():
        raise StoreDamaged("the name of its record is wrong about failed clips")
    try:
        arrays = split.read_unit(variant, plan, unit)
    except StoreDamaged as error:
        raise StoreDamaged(f"cannot be read back ({error})") from error
    for name, array in arrays.items():
        if record.outputs.get(name) != array_digest(array):
            raise StoreDamaged(f"{name} is not what was written")
    counted = arrays[VALID][: len(names)].astype(bool)
    if not np.array_equal(counted, [not clip.failed for clip in record.clips]):
        raise StoreDamaged("valid and the record disagree")
    if record.checks and record.checks != clip_checks(arrays, len(names)):
        raise StoreDamaged("the checks in its record are not of what was written")
    return arrays
