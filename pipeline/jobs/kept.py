"""Clips of a unit that is not done whose work is there already.

When a data set gets new clips, some unit has old ones and new ones. The old clips' arrays are in
its shards, and `000012.kept.json` beside the records says which and gives a digest of each, so that
whoever computes the unit computes the others alone. The rows of kept clips are the same before and
after that, so the file is true at any step of it; it goes when the unit has a record.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

from pydantic import TypeAdapter

from .. import durable
from ..preprocess.stage import Outcome
from ..store import VALID, Plan, SplitStore, StoreDamaged, Variant, array_digest
from . import records


@dataclass(frozen=True)
class KeptClip:
    """One clip. inputs: as in a record.  arrays: the digest of its part of each array."""

    name: str
    inputs: str
    arrays: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """The clips of a unit that need not be computed, and what the whole unit was made by."""

    unit: int
    plan: str
    fingerprint: str
    clips: tuple[KeptClip, ...]


def write(split: SplitStore, variant: Variant, kept: Kept) -> None:
    durable.write_json(records.kept_path(split, variant, kept.unit), asdict(kept))


def read(split: SplitStore, variant: Variant, plan: Plan, unit: int) -> tuple[KeptClip, ...]:
    """The clips kept of a unit of this plan: none where there is no such file, or a damaged one."""
    try:
        text = durable.read_bytes(records.kept_path(split, variant, unit))
        kept = _adapter().validate_json(text)
    except (FileNotFoundError, ValueError):
        return ()
    fits = (kept.plan, kept.fingerprint) == (plan.fingerprint, variant.fingerprint)
    return kept.clips if fits else ()


def units(split: SplitStore, variant: Variant) -> list[int]:
    """The units of which clips are kept."""
    found = split.records(variant).glob("*.kept.json")
    return sorted(int(path.name.split(".")[0]) for path in found if path.name[0] != ".")


def forget(split: SplitStore, variant: Variant, unit: int) -> None:
    durable.remove(records.kept_path(split, variant, unit))


def digests(outcome: Outcome) -> dict[str, str]:
    """The digest of each array of a clip."""
    assert outcome.arrays is not None
    return {name: array_digest(array) for name, array in outcome.arrays.items()}


def outcomes(split: SplitStore, variant: Variant, plan: Plan, unit: int) -> dict[str, Outcome]:
    """What a unit's shards hold of its clips, by name, as it was recorded or kept.

    Only what has the digests that were written: nothing of a damaged unit.
    """
    record = records.read_record(split, variant, unit)
    if record is None or not records.speaks_of(record, variant, plan, unit):
        return _kept(split, variant, plan, unit)
    try:
        arrays = split.read_unit(variant, plan, unit)
    except StoreDamaged:
        return {}
    if {name: array_digest(array) for name, array in arrays.items()} != record.outputs:
        return {}
    return {
        clip.name: Outcome(
            None if clip.failed else {spec.name: arrays[spec.name][row] for spec in variant.arrays},
            clip.reason,
            clip.inputs,
        )
        for row, clip in enumerate(record.clips)
    }


def _kept(split: SplitStore, variant: Variant, plan: Plan, unit: int) -> dict[str, Outcome]:
    wanted = read(split, variant, plan, unit)
    try:
        arrays = split.read_unit(variant, plan, unit) if wanted else {}
    except StoreDamaged:
        return {}
    rows = {plan.clips[index]: row for row, index in enumerate(plan.members(unit))}
    found: dict[str, Outcome] = {}
    for clip in wanted:
        row = rows.get(clip.name)
        if row is None or not arrays[VALID][row]:
            continue
        here = {spec.name: arrays[spec.name][row] for spec in variant.arrays}
        outcome = Outcome(here, inputs=clip.inputs)
        if digests(outcome) == clip.arrays:
            found[clip.name] = outcome
    return found


def of(unit: int, variant: Variant, plan: Plan, clips: Sequence[tuple[str, Outcome]]) -> Kept:
    """What is to be written of clips whose rows are in a unit's shards."""
    kept = tuple(KeptClip(name, each.inputs, digests(each)) for name, each in clips)
    return Kept(unit, plan.fingerprint, variant.fingerprint, kept)


@cache
def _adapter() -> TypeAdapter[Kept]:
    return TypeAdapter(Kept)
