"""`combo status`, `combo verify` and `combo doctor`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ..console import Output, duration
from ..errors import ComboError
from ..jobs.status import progress
from ..jobs.verify import Finding, count_findings, verify_variant
from ..manifest import load_manifest
from ..packed import is_packed, refuse_packed
from ..store import splits_in
from . import packing


def status(
    output: Output, manifest_file: Path | None, data: Sequence[str], splits: Sequence[str]
) -> None:
    """`combo status`."""
    manifest = load_manifest(manifest_file)
    states = progress(manifest.store_path, data or None, splits or None)
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


def verify(
    output: Output,
    manifest_file: Path | None,
    data: Sequence[str],
    splits: Sequence[str],
    repair: bool,
    full: bool,
    file: Path | None = None,
) -> None:
    """`combo verify`; exits with 1 when something is wrong. file: a packed one, not the store."""
    manifest = load_manifest(manifest_file).with_store(file)
    if is_packed(manifest.store_path):
        if repair or full or data or splits:
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
    checked = 0
    for split in found:
        findings += count_findings(split) if full else ()
        for variant in split.variants():
            with output.bar(f"{split} {variant.stage}", split.plan().units) as bar:
                for each in verify_variant(split, variant, repair):
                    if isinstance(each, Finding):
                        findings.append(each)
                    else:
                        checked += 1
                        bar.advance()
    if output.as_json:
        output.json({"units_good": checked, "findings": [dataclasses.asdict(f) for f in findings]})
    else:
        for finding in findings:
            output.result(f"{finding.where}: {finding.problem}; {finding.mend}")
        output.result(f"{checked} units good, {len(findings)} findings")
    if findings:
        sys.exit(1)


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
