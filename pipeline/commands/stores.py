"""`combo verify`, `combo pack` and `combo doctor`."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import remedies
from ..console import Output
from ..errors import ComboError, counted
from .options import Manifest as ManifestFile
from .options import Printing, Splits, command, named_variants

if TYPE_CHECKING:
    from ..jobs.plan import PlannedSplit
    from ..jobs.unit import Job
    from ..jobs.verify import Finding
    from ..manifest import Manifest
    from ..source import Choice
    from ..store import SplitStore, Variant

app = typer.Typer()


@command(app)
def verify(
    splits: Splits,
    printing: Printing,
    file: Annotated[
        Path | None, typer.Argument(help="A packed file to check, instead of the store.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute what is wrong again, and only that.")
    ] = False,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Read the data sets' files too: have they changed?")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A data set with fewer clips than published is an error.")
    ] = False,
) -> None:
    """Read the whole store, or a packed file, back: records, digests, shapes, counts.

    Example: combo verify --data s4 --full
    """
    from ..packed import is_packed, refuse_packed
    from ..store import splits_in

    output = printing.output
    manifest = splits.open().with_store(file)
    store = manifest.store_path
    if is_packed(store):
        if repair or inputs or full or splits.data or splits.split:
            refuse_packed(store, "combo verify with options")
        _tell(output, *_verify_packed(output, store))
        return
    found = _of(splits_in(store, lost=True), splits)
    if not found:
        raise ComboError(f"nothing in {store} to verify; run: {remedies.make(remedies.ALL)}")
    _tell(output, *_verify_store(output, manifest, found, repair, inputs, full))


def _verify_store(
    output: Output,
    manifest: "Manifest",
    found: "Iterable[SplitStore]",
    repair: bool,
    inputs: bool,
    full: bool,
) -> "tuple[int, list[Finding], list[Finding]]":
    from ..jobs.repair import work_in
    from ..jobs.stopping import listening
    from ..jobs.verify import (
        Finding,
        add_checks,
        count_findings,
        repair_variant,
        verify_description,
        verify_plan,
        verify_variant,
    )

    good, findings, repaired = 0, list[Finding](), list[Finding]()

    def sort(wrong: "Iterable[Finding]", mended: "Sequence[Finding]") -> None:
        for finding in wrong:
            (repaired if finding in mended else findings).append(finding)

    splits = list(found)
    with output.bar("verifying", sum(map(_units, splits))) as bar:
        for split in splits:
            # A store may hold variants that this manifest does not make: those are only read.
            there = _planned(output, manifest, split) if inputs or repair else None
            wrong, mended = verify_plan(split, there if repair else None)
            sort(wrong, mended)
            if wrong != mended:
                continue
            findings += count_findings(split) if full else ()
            for key in work_in(split):
                wrong, mended = verify_description(split, key, there, repair=repair)
                sort(wrong, mended)
                variant = split.read_variant(key) if wrong == mended else None
                if variant is None:
                    continue
                wrong = list[Finding]()
                job = there and _job(output, there, variant)
                for each in verify_variant(split, variant, job if inputs else None):
                    if isinstance(each, Finding):
                        wrong.append(each)
                    else:
                        good += 1
                        bar.advance(1, title=f"{split} {variant.stage}")
                mended = list[Finding]()
                if repair and job and wrong:
                    bar.add(len(wrong))
                    bar.advance(0, title=f"{split} {variant.stage} again")
                    with listening() as stop:
                        mended = repair_variant(job, wrong, stop, lambda _: bar.advance())
                sort(wrong, mended)
                if repair and (added := add_checks(split, variant)):
                    units = counted(added, "unit")
                    output.note(f"{split} {variant.key}: checks of each clip added to {units}")
        bar.advance(0, title="verifying")
    return good, findings, repaired


def _units(split: "SplitStore") -> int:
    """Units that a split's variants have together; 0 where its plan is lost or damaged."""
    from ..jobs.repair import work_in

    try:
        return split.plan().units * len(work_in(split))
    except (ComboError, OSError):
        return 0


def _planned(output: Output, manifest: "Manifest", split: "SplitStore") -> "PlannedSplit | None":
    """A split of the store as the manifest has it; where it has none, None and a note why."""
    from ..jobs.plan import planned

    try:
        return planned(manifest, split.data_set, split.split)
    except ComboError as error:
        output.warn(f"{split} cannot be made or compared here: {error}")
        return None


def _job(output: Output, there: "PlannedSplit", variant: "Variant") -> "Job | None":
    """The job that makes a variant; where the manifest has none, None and a note why."""
    try:
        return there.job_of(variant)
    except ComboError as error:
        output.warn(f"{there.where} {variant.key} cannot be made or compared here: {error}")
        return None


def _verify_packed(output: Output, path: Path) -> "tuple[int, list[Finding], list[Finding]]":
    from ..jobs.pack import verify_packed
    from ..jobs.verify import Finding
    from ..packed import splits_in_packed

    good, findings = 0, list[Finding]()
    units = sum(len(split.variants()) * split.plan().units for split in splits_in_packed(path))
    with output.bar(f"checking {path.name}", units) as bar:
        for each in verify_packed(path, bar.advance):
            if isinstance(each, Finding):
                findings.append(each)
            else:
                good += 1
    return good, findings, []


def _tell(
    output: Output, good: int, findings: "Sequence[Finding]", repaired: "Sequence[Finding]"
) -> None:
    """Print what was found; exits with 1 when something is wrong and was not repaired."""
    if output.as_json:
        output.json(
            {
                "units_good": good,
                "findings": [dataclasses.asdict(finding) for finding in findings],
                "repaired": [dataclasses.asdict(finding) for finding in repaired],
            }
        )
    else:
        for finding in repaired:
            done = "written anew" if finding.unit is None else "computed again"
            output.result(f"{finding.where}: {finding.problem}; {done}")
        for finding in findings:
            output.result(f"{finding.where}: {finding.problem}; {finding.mend}")
        again = f", {len(repaired)} repaired" if repaired else ""
        output.result(f"{counted(good, 'unit')} good{again}, {counted(len(findings), 'finding')}")
    if findings:
        sys.exit(1)


@command(app)
def pack(
    to: Annotated[Path, typer.Option("--to", help="File to write, such as train.h5.")],
    splits: Splits,
    printing: Printing,
    folder: Annotated[
        Path | None, typer.Argument(metavar="STORE", help="As --store, which is as good.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The store's folder; default: the manifest's.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="stage=NAME: this variant of a stage; by default the manifest's."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that holds something else.")
    ] = False,
    no_maskige: Annotated[
        bool, typer.Option("--no-maskige", help="Without Maskiges, for networks that read none.")
    ] = False,
) -> None:
    """Pack finished splits of a store into one file, for a node's own disk.

    Training and evaluation read it like the store: combo train --store FILE.

    Example: combo pack --to /local/s4.h5 --data s4
    """
    from ... import __version__
    from ..jobs.pack import pack as write_packed
    from ..packed import refuse_packed
    from ..store import STAGES, splits_in

    if store and folder and store != folder:
        raise typer.BadParameter(f"{folder} and --store {store}: give one of them")
    named = named_variants(variant)
    if no_maskige and "maskige" in named:
        raise typer.BadParameter("--no-maskige and --variant maskige=NAME: give one of them")
    output, manifest = printing.output, splits.open().with_store(store or folder)
    refuse_packed(manifest.store_path, "combo pack")
    there = splits_in(manifest.store_path)
    found = _of(there, splits)
    if not found:
        held = ", ".join(map(str, there)) or "nothing"
        raise ComboError(
            f"nothing to pack: {manifest.store_path} holds {held}; give the store's folder with "
            f"--store, and --data and --split of what is in it"
        )
    stages = [stage for stage in STAGES if not (no_maskige and stage == "maskige")]
    chosen = [(split, _choose(manifest, split, named, stages)) for split in found]
    started = time.monotonic()
    units = sum(split.plan().units * len(choice.variants) for split, choice in chosen)
    with output.bar(f"packing {to.name}", units) as bar:
        new = write_packed(to, chosen, __version__, overwrite=overwrite, on_unit=bar.advance)
    if output.as_json:
        output.json(
            {
                "file": str(to),
                "new": new,
                "bytes": to.stat().st_size,
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
        output.result(f"{split}: {counted(len(split.plan().clips), 'clip')}, {names}")
    state = "packed" if new else "holds this already"
    output.result(f"{to}: {state}, {to.stat().st_size / 1e9:.3f} GB")
    if new:
        output.took(time.monotonic() - started)


def _choose(
    manifest: "Manifest",
    split: "SplitStore",
    named: Mapping[str, Sequence[str]],
    stages: Sequence[str],
) -> "Choice":
    """The variants named, else the only ones, else those with the manifest's settings."""
    from ..jobs.plan import stage_settings
    from ..source import choose_variants

    chosen: dict[str, str] = {}
    for stage in stages:
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
    return choose_variants(split, {stage: wanted.get(stage, {}) for stage in stages}, chosen)


@command(app)
def doctor(printing: Printing, manifest: ManifestFile = None) -> None:
    """What is there, what is missing, and which command makes it.

    Example: combo doctor
    """
    from ..doctor import examine
    from ..manifest import load_manifest

    findings = examine(load_manifest(manifest))
    printing.output.records(
        [dataclasses.asdict(finding) for finding in findings],
        {
            "": lambda row: "ok" if row["good"] else "--",
            "what": "what",
            "state": "state",
            "what to do": "mend",
        },
    )
    if any(finding.needed and not finding.good for finding in findings):
        sys.exit(1)


def _of(found: "Iterable[SplitStore]", asked: Splits) -> "list[SplitStore]":
    """Those of the data sets and splits asked for; all where none are named."""
    return [
        each
        for each in found
        if (not asked.data or each.data_set in asked.data)
        and (not asked.split or each.split in asked.split)
    ]
