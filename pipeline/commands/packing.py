"""`combo pack`, and `combo verify` of a packed file."""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ... import __version__
from ..console import Output, duration
from ..errors import ComboError
from ..jobs.pack import pack as write_packed
from ..jobs.pack import verify_packed
from ..jobs.plan import stage_settings
from ..jobs.verify import Finding
from ..manifest import Manifest, load_manifest
from ..packed import refuse_packed, splits_in_packed
from ..source import STAGES, Choice, choose_variants
from ..store import SplitStore, splits_in


def pack(
    output: Output,
    store: Path,
    target: Path,
    manifest_file: Path | None,
    data: Sequence[str],
    splits: Sequence[str],
    variants: Sequence[str],
    overwrite: bool,
) -> None:
    """`combo pack`."""
    refuse_packed(store, "combo pack")
    there = splits_in(store)
    found = [
        each
        for each in there
        if (not data or each.data_set in data) and (not splits or each.split in splits)
    ]
    if not found:
        held = ", ".join(map(str, there)) or "nothing"
        raise ComboError(
            f"nothing to pack: {store} holds {held}; give the store's folder, and --data and "
            f"--split of what is in it"
        )
    manifest, named = load_manifest(manifest_file), _named(variants)
    chosen = [(split, _choose(manifest, split, named)) for split in found]
    started = time.monotonic()
    units = sum(split.plan().units * len(choice.variants) for split, choice in chosen)
    with output.bar(f"packing {target.name}", units) as bar:
        new = write_packed(
            target,
            chosen,
            __version__,
            overwrite=overwrite,
            on_unit=bar.advance,
        )
    if output.as_json:
        output.json(
            {
                "file": str(target),
                "new": new,
                "bytes": target.stat().st_size,
                "splits": [
                    {
                        "data_set": split.data_set,
                        "split": split.split,
                        "clips": len(split.plan().clips),
                        "variants": {v.stage: v.name for v in choice.variants},
                    }
                    for split, choice in chosen
                ],
            }
        )
        return
    for split, choice in chosen:
        names = ", ".join(v.key for v in choice.variants)
        output.result(f"{split}: {len(split.plan().clips)} clips, {names}")
    state = "packed" if new else "holds this already"
    output.result(f"{target}: {state}, {target.stat().st_size / 1e9:.3f} GB")
    if new:
        output.note(f"took {duration(time.monotonic() - started)}")


def verify(output: Output, path: Path) -> None:
    """`combo verify FILE`; exits with 1 when something is wrong."""
    findings: list[Finding] = []
    good = 0
    units = sum(len(split.variants()) * split.plan().units for split in splits_in_packed(path))
    with output.bar(f"checking {path.name}", units) as bar:
        for each in verify_packed(path, bar.advance):
            if isinstance(each, Finding):
                findings.append(each)
            else:
                good += 1
    if output.as_json:
        output.json({"units_good": good, "findings": [dataclasses.asdict(f) for f in findings]})
    else:
        for finding in findings:
            output.result(f"{finding.where}: {finding.problem}")
        output.result(f"{good} units good, {len(findings)} findings")
    if findings:
        sys.exit(1)


def _choose(manifest: Manifest, split: SplitStore, named: Mapping[str, Sequence[str]]) -> Choice:
    """The variants named, else the only ones, else those with the manifest's settings."""
    chosen: dict[str, str] = {}
    for stage in STAGES:
        names = [variant.name for variant in split.variants(stage)]
        given = [name for name in names if name in named.get(stage, names)]
        if stage in named and not given:
            raise ComboError(
                f"{split} has none of the variants of {stage} that are named; it has "
                f"{', '.join(names) or 'none'}: give --variant {stage}=NAME, once for each split "
                f"where names differ"
            )
        if len(given) == 1:
            chosen[stage] = given[0]
    known = split.data_set in manifest.data_sets
    wanted = stage_settings(manifest, split.data_set, split.split) if known else {}
    return choose_variants(split, {stage: wanted.get(stage, {}) for stage in STAGES}, chosen)


def _named(variants: Sequence[str]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for text in variants:
        stage, equals, name = text.partition("=")
        if not equals or stage not in STAGES:
            raise ComboError(f"--variant {text}: write stage=NAME, with a NAME of combo status")
        named.setdefault(stage, []).append(name)
    return named
