"""Packs finished splits into one file, and holds a packed file against what was finished.

Nothing damaged is packed: each unit is read from the store and held against its record on the way.
The digest of all units stands in the packed manifest of each variant, so that a packed file can be
checked from end to end without the store.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from .. import durable, remedies
from ..errors import ComboError
from ..identity import fingerprint
from ..packed import (
    Entry,
    Packed,
    PackedSplit,
    read_index,
    spec_bytes,
    splits_in_packed,
    write,
)
from ..source import Choice, demand_usable, remake
from ..store import SplitStore, StoreDamaged, Variant, array_digest
from . import records
from .verify import Finding, read_back

OnUnit = Callable[[], None]


def pack(
    target: Path,
    splits: Sequence[tuple[SplitStore, Choice]],
    version: str,
    *,
    overwrite: bool = False,
    on_unit: OnUnit = lambda: None,
) -> bool:
    """Write the chosen variants of finished splits into one file, whole or not at all.

    version: combo's, for the index.  on_unit: called for each unit of each variant.
    Returns False when the file is there and holds just this. Raises ComboError for a variant that
    is not finished, a damaged unit, another file in the way, a disk too small.
    """
    entries = [_entry(split, choice) for split, choice in splits]
    if target.is_dir():
        raise ComboError(f"{target} is a folder; name a file, such as --to {target / 'store.h5'}")
    if target.exists() and not overwrite:
        with suppress(ComboError):
            if fingerprint([asdict(e) for e in read_index(target).splits]) == fingerprint(
                [asdict(e) for e in entries]
            ):
                return False
        raise ComboError(
            f"{target} is there and holds something else; give --overwrite to replace it"
        )
    _check_space(target, entries)
    units = [{v.stage: _checked(split, v, on_unit) for v in c.variants} for split, c in splits]
    elsewhere = "give another --to"
    with durable.writing(target, f"run the same command again, or {elsewhere}", elsewhere):
        for path in durable.leftovers(target.parent, of=target.name):
            durable.remove(path)
        with durable.replacing(target) as temporary:
            write(temporary, version, list(zip(entries, units, strict=True)))
    return True


def verify_packed(path: Path, on_unit: OnUnit = lambda: None) -> Iterator[Finding | int]:
    """Check a packed file: yields the number of each good unit, and a Finding for all else."""
    mend = f"copy it here once more, or run: {remedies.pack(path)}"
    for split in splits_in_packed(path):
        for variant in split.variants():
            outputs: list[dict[str, str]] = []
            for unit, found in enumerate(_digests(split, variant)):
                if isinstance(found, StoreDamaged):
                    yield Finding(f"{split}/{variant.key} unit {unit}", str(found), mend)
                else:
                    outputs.append(found)
                    yield unit
                on_unit()
            whole = len(outputs) == split.plan().units
            try:
                good = not whole or fingerprint(outputs) == demand_usable(split, variant).outputs
            except ComboError:
                good = False
            if not good:
                yield Finding(f"{split}/{variant.key}", "is not what was finished", mend)


def _entry(split: SplitStore, choice: Choice) -> Entry:
    plan, packed = split.plan(), list[Packed]()
    for variant in choice.variants:
        finished = demand_usable(split, variant)
        done = list(records.done_units(split, variant, plan))
        if len(done) == plan.units and records.manifest(variant, plan, done) != finished:
            raise ComboError(
                f"finished.json of {variant.key} of {split} is not what its records say, so "
                f"nothing was packed; run: {remake(split, variant.stage, variant.settings)}"
            )
        # A packed file has checks of its own.
        packed.append(Packed(variant, replace(finished, checks={})))
    return Entry(split.data_set, split.split, plan, tuple(packed))


def _check_space(target: Path, entries: Sequence[Entry]) -> None:
    needed = sum(
        len(entry.plan.clips) * spec_bytes(spec)
        for entry in entries
        for each in entry.packed
        for spec in each.variant.all_arrays
    )
    free = durable.free_bytes(target.parent)
    if free < needed:
        raise ComboError(
            f"{target} needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there; "
            f"free space, give another --to, or fewer splits with --data and --split"
        )


def _checked(
    split: SplitStore, variant: Variant, on_unit: OnUnit
) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each unit without its padding, held against the unit's record."""
    plan = split.plan()
    done = {record.unit: record for record in records.done_units(split, variant, plan)}
    for unit in range(plan.units):
        try:
            if unit not in done:
                raise StoreDamaged("its record is gone")
            arrays = read_back(split, variant, plan, unit, done[unit])
        except StoreDamaged as error:
            raise ComboError(
                f"{split}/{variant.key} unit {unit} is damaged ({error}), so nothing was packed; "
                f"run: {remedies.repair(split.data_set, split.split)}, "
                f"then {remake(split, variant.stage, variant.settings)}"
            ) from error
        yield {name: array[: len(plan.members(unit))] for name, array in arrays.items()}
        on_unit()


def _digests(split: PackedSplit, variant: Variant) -> Iterator[dict[str, str] | StoreDamaged]:
    """The digest of each array of each unit as its record had it, the padding put back."""
    plan = split.plan()
    try:
        arrays = {spec: split.reader(variant, spec.name) for spec in variant.all_arrays}
    except StoreDamaged as error:
        yield error
        return
    for unit in range(plan.units):
        rows = np.array(plan.members(unit))
        found: dict[str, str] = {}
        try:
            for spec, array in arrays.items():
                whole = np.full((plan.clips_per_unit, *spec.shape), spec.fill, spec.dtype)
                whole[: len(rows)] = array.read(rows)
                found[spec.name] = array_digest(whole)
        except StoreDamaged as error:
            yield error
        else:
            yield found
