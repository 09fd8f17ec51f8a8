"""Reads a store back and says what is wrong: records, digests, shapes, leftovers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .. import remedies
from ..errors import ComboError, MediaError
from ..layouts import layout
from ..source import remake, usable
from ..store import VALID, Plan, SplitStore, StoreDamaged, Variant, array_digest
from . import records
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
        split.plan()
    except ComboError:
        again = f"run: {remedies.make(remedies.ALL, split.data_set, split.split)}"
        lost = [Finding(str(split), f"{split.plan_path} is damaged or missing", again)]
        return lost, lost if there is not None and rebuild_plan(split, there.plan) else []
    return [], []


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
    for unit in range(plan.units):
        record = records.read_record(split, variant, unit)
        if record is None and not records.has_record(split, variant, unit):
            yield Finding(f"{where} unit {unit}", "is not done", again)
        elif problem := (
            "its record is damaged"
            if record is None
            else _problem(split, variant, plan, record) or _changed_input(job, record)
        ):
            yield Finding(f"{where} unit {unit}", problem, mend, unit)
        elif record is not None:
            yield record
    yield from verify_finish(split, variant)


def verify_finish(split: SplitStore, variant: Variant) -> Iterator[Finding]:
    """What is wrong with a variant as a whole, whatever its units are."""
    where = f"{split}/{variant.key}"
    again = f"run: {remake(split, variant.stage, variant.settings)}"
    if split.finished(variant) is None:
        yield Finding(where, "is not finished", again)
    elif usable(split, variant) is None:
        yield Finding(where, "was finished for other settings", again)
    for path in records.leftovers(split, variant):
        yield Finding(where, f"left over by a killed process: {path}", again)


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
        still = list(verify_finish(job.split, job.variant))
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
