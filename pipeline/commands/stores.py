"""`combo status`, `combo verify` and `combo doctor`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ..console import Output, duration
from ..errors import ComboError
from ..jobs.plan import PlannedSplit, planned
from ..jobs.status import stage_statuses
from ..jobs.stopping import listening
from ..jobs.unit import Job
from ..jobs.verify import Finding, count_findings, repair_variant, verify_variant
from ..manifest import Manifest, load_manifest
from ..packed import is_packed, refuse_packed
from ..store import SplitStore, Variant, splits_in
from . import packing


def status(
    output: Output, manifest_file: Path | None, data: Sequence[str], splits: Sequence[str]
) -> None:
    """`combo status`."""
    manifest = load_manifest(manifest_file)
    states = stage_statuses(manifest.store_path, data or None, splits or None)
    if output.as_json:
        output.json([dataclasses.asdict(state) for state in states])
        return
    if not states:
        output.note(f"nothing in {manifest.store_path} yet; run: combo preprocess all")
        return
    output.table(
        ("data set", "split", "stage", "done", "failed", "to do", "clips/s", "left", "state"),
        (
            (
                s.data_set,
                s.split,
                f"{s.stage}/{s.variant}",
                s.done,
                s.failed,
                s.to_do,
                s.clips_per_second,
                duration(s.seconds_left),
                "finished" if s.finished else "open",
            )
            for s in states
        ),
    )
    at_work = [(s, part) for s in states if not s.finished for part in s.parts]
    if at_work:
        output.table(
            (
                "data set",
                "split",
                "stage",
                "part",
                "units",
                "done",
                "clips/s",
                "host",
                "job",
                "state",
            ),
            (
                (
                    s.data_set,
                    s.split,
                    s.stage,
                    f"{part.part} of {part.parts}",
                    part.units,
                    part.units_done,
                    part.clips_per_second,
                    f"{part.host} {part.pid}",
                    part.job,
                    part.state,
                )
                for s, part in at_work
            ),
            title="parts of what is open",
        )


def verify(
    output: Output,
    manifest_file: Path | None,
    data: Sequence[str],
    splits: Sequence[str],
    repair: bool,
    inputs: bool,
    full: bool,
    file: Path | None = None,
) -> None:
    """`combo verify`; exits with 1 when something is wrong and was not repaired.

    file: a packed file, instead of the store.
    """
    manifest = load_manifest(manifest_file).with_store(file)
    if is_packed(manifest.store_path):
        if repair or inputs or full or data or splits:
            refuse_packed(manifest.store_path, "combo verify with options")
        packing.verify(output, manifest.store_path)
        return
    found = [
        split
        for split in splits_in(manifest.store_path, data or None)
        if not splits or split.split in splits
    ]
    if not found:
        raise ComboError(f"nothing in {manifest.store_path} to verify; run: combo preprocess all")
    findings: list[Finding] = []
    repaired: list[Finding] = []
    checked = 0
    for split in found:
        findings += count_findings(split) if full else ()
        there = _planned(output, manifest, split) if inputs or repair else None
        for variant in split.variants():
            wrong: list[Finding] = []
            # A store may hold variants that this manifest does not make: those are only read.
            job = there and _job(output, there, variant)
            with output.bar(f"{split} {variant.stage}", split.plan().units) as bar:
                for each in verify_variant(split, variant, job if inputs else None):
                    if isinstance(each, Finding):
                        wrong.append(each)
                    else:
                        checked += 1
                        bar.advance()
            if repair and job and any(finding.unit is not None for finding in wrong):
                title = f"{split} {variant.stage} again"
                with listening() as stop, output.bar(title, len(wrong)) as bar:
                    done = repair_variant(job, wrong, stop, lambda _, bar=bar: bar.advance())
                repaired += [finding for finding in wrong if finding in done]
                wrong = [finding for finding in wrong if finding not in done]
            findings += wrong
    if output.as_json:
        output.json(
            {
                "units_good": checked,
                "findings": [dataclasses.asdict(f) for f in findings],
                "repaired": [dataclasses.asdict(f) for f in repaired],
            }
        )
    else:
        for finding in repaired:
            output.result(f"{finding.where}: {finding.problem}; computed again")
        for finding in findings:
            output.result(f"{finding.where}: {finding.problem}; {finding.mend}")
        again = f", {len(repaired)} repaired" if repaired else ""
        output.result(f"{checked} units good{again}, {len(findings)} findings")
    if findings:
        sys.exit(1)


def _planned(output: Output, manifest: Manifest, split: SplitStore) -> PlannedSplit | None:
    """A split of the store as the manifest has it; where it has none, None and a note why."""
    try:
        return planned(manifest, split.data_set, split.split)
    except ComboError as error:
        output.warn(f"{split} cannot be made or compared here: {error}")
        return None


def _job(output: Output, there: PlannedSplit, variant: Variant) -> Job | None:
    """The job that makes a variant; where the manifest has none, None and a note why."""
    try:
        return there.job_of(variant)
    except ComboError as error:
        output.warn(f"{there.where} {variant.key} cannot be made or compared here: {error}")
        return None


def doctor(output: Output, manifest_file: Path | None) -> None:
    """`combo doctor`; exits with 1 when something is missing."""
    from ..doctor import examine

    findings = examine(load_manifest(manifest_file))
    if output.as_json:
        output.json([dataclasses.asdict(finding) for finding in findings])
    else:
        output.table(
            ("", "what", "state", "what to do"),
            (("ok" if f.good else "--", f.what, f.state, f.mend) for f in findings),
        )
    if not all(finding.good for finding in findings):
        sys.exit(1)
