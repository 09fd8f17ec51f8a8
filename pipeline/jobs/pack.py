"""Packs finished splits into one file, and holds a packed file against what was finished.

Nothing damaged is packed: each unit is read from the store and held against its record on the way.
The digest of all units stands in the packed manifest of each variant, so that a packed file can be
checked from end to end without the store.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import durable
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
from ..source import Choice, demand_usable, remake, usable
from ..store import SplitStore, StoreDamaged, Variant, array_digest
from . import records
from .verify import Finding

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
    try:
        for path in durable.leftovers(target.parent, of=target.name):
            durable.remove(path)
        with durable.replacing(target) as temporary:
            write(temporary, version, list(zip(entries, units, strict=True)))
    except OSError as error:
        raise ComboError(
            f"cannot write {target}: {_reason(error)}; free space there or give another --to"
        ) from error
    return True


def verify_packed(path: Path, on_unit: OnUnit = lambda: None) -> Iterator[Finding | int]:
    """Check a packed file: yields the number of each good unit, and a Finding for all else."""
    mend = f"copy it here once more, or run: combo pack STORE --to {path} --overwrite"
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
            finished = usable(split, variant)
            if finished is None or (whole and fingerprint(outputs) != finished.outputs):
                yield Finding(f"{split}/{variant.key}", "is not what was finished", mend)


def _reason(error: OSError) -> str:
    known = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
    return known.get(error.errno or 0) or error.strerror or str(error)


def _entry(split: SplitStore, choice: Choice) -> Entry:
    packed = tuple(Packed(v, demand_usable(split, v)) for v in choice.variants)
    return Entry(split.data_set, split.split, split.plan(), packed)


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
        problem = ""
        arrays: dict[str, np.ndarray] = {}
        try:
            arrays = split.read_unit(variant, plan, unit)
        except StoreDamaged as error:
            problem = str(error)
        if unit not in done:
            problem = "its record is gone"
        for name, array in arrays.items():
            if not problem and done[unit].outputs.get(name) != array_digest(array):
                problem = f"{name} is not what was written"
        if problem:
            raise ComboError(
                f"{split}/{variant.key} unit {unit} is damaged ({problem}), so nothing was packed; "
                f"run: combo verify --repair --data {split.data_set} --split {split.split}, "
                f"then {remake(split, variant.stage, variant.settings)}"
            )
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
