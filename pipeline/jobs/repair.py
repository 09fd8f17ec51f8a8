"""Descriptions of a store that are damaged or missing, made again from what they describe.

A split's `plan.json`, and the `zarr.json` of its groups, variants and arrays, hold a kilobyte each
and nothing that is not known elsewhere: what the first axis means follows from the listing, which
the records' fingerprint of the plan confirms; what a variant is follows from its stage's own
description, and what its arrays are from the variant. So no shard and no record is touched.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import durable
from ..errors import ComboError
from ..identity import fingerprint
from ..store import Plan, SplitStore, StoreDamaged, Variant, splits_in

if TYPE_CHECKING:
    from .plan import PlannedSplit


def rebuild_plan(split: SplitStore, wanted: Plan) -> bool:
    """Write a plan that is lost, where the records are of this one, or there are none."""
    there = {found for folder in _folders(split.root / "records") if (found := _plan_of(folder))}
    if any(found != wanted.fingerprint for found in there):
        return False
    if not there:  # arrays of some other list, in which nothing is done
        shutil.rmtree(split.tensors, ignore_errors=True)
    split.write_plan(wanted)
    return True


def _plan_of(folder: Path) -> str | None:
    """The fingerprint of the plan that a folder's records are of; "" when none can be read."""
    found = None
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            return str(durable.read_json(path)["plan"])
        except (OSError, ValueError, KeyError, TypeError):
            found = ""
    return found


def work_in(split: SplitStore) -> list[str]:
    """The key of every variant that a split describes, or has records of."""
    described = {_key(path.parent) for path in split.tensors.glob("*/*/zarr.json")}
    recorded = {
        _key(folder)
        for folder in _folders(split.root / "records")
        if any(folder.glob("[0-9]*.json"))
    }
    return sorted(described | recorded)


def broken(split: SplitStore, plan: Plan, wanted: Variant | None, key: str) -> list[Path]:
    """The files that describe a variant and are damaged or missing.

    wanted: the variant as its stage describes it, where that is known; else its own description is
    believed where it agrees with itself.
    """
    home = split.tensors / key
    groups = (split.tensors, home.parent)
    found = [file for group in groups if not _is_group(file := group / "zarr.json")]
    there = own(split, key)
    if there is None or (wanted is not None and not _same(there, wanted)):
        found.append(home / "zarr.json")
    variant = wanted or there
    if variant is None:
        return found
    return found + [
        home / spec.name / "zarr.json"
        for spec in variant.all_arrays
        if not split.is_described(variant, spec, plan)
    ]


def own(split: SplitStore, key: str) -> Variant | None:
    """A variant by its own description, if that can be read and agrees with itself."""
    try:
        there = split.read_variant(key)
    except StoreDamaged:
        return None
    if there is None or there.key != key:
        return None
    identity = {"stage": there.stage, "settings": there.settings, "weights": there.weights}
    return there if there.fingerprint == fingerprint(identity) else None


def _same(there: Variant, wanted: Variant) -> bool:
    """Whether two describe the same; one of an older combo may lack attributes."""
    known = {k: v for k, v in wanted.attributes.items() if k in there.attributes}
    return there == replace(wanted, attributes={**there.attributes, **known})


def described(split: SplitStore, key: str, there: "PlannedSplit | None") -> Variant | None:
    """What a variant is, by the manifest, or by another split that has it; None if neither tells.

    there: the split as the manifest has it.
    """
    if there is not None:
        with contextlib.suppress(ComboError):  # an import, or weights that are not here
            made = there.job(key.split("/", maxsplit=1)[0]).variant
            if made.key == key:
                return made
    for other in splits_in(split.store, [split.data_set]):
        if other.split != split.split and (found := own(other, key)):
            return found
    return None


def rebuild(split: SplitStore, plan: Plan, variant: Variant, found: Collection[Path]) -> None:
    """Write the files that describe a variant, and are broken, anew."""
    for file in found:
        durable.remove(file)
    for home in (split.tensors, (split.tensors / variant.key).parent):
        if home / "zarr.json" in found:
            group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
            durable.write_json(home / "zarr.json", group)
    split.create(variant, plan)


def _folders(home: Path) -> Iterator[Path]:
    yield from (folder for folder in home.glob("*/*") if folder.is_dir())


def _key(home: Path) -> str:
    return f"{home.parent.name}/{home.name}"


def _is_group(file: Path) -> bool:
    try:
        return durable.read_json(file)["node_type"] == "group"
    except (OSError, ValueError, KeyError, TypeError):
        return False
