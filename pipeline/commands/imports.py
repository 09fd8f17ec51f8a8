"""`combo import-frames` and `combo import-maskige`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..console import Output
from ..errors import ComboError
from ..jobs.plan import planned, splits_of
from ..jobs.run import Options
from ..jobs.stopping import listening
from ..jobs.unit import Job
from ..manifest import Manifest, load_manifest
from .stages import Computers, run_jobs


def take(
    output: Output,
    stage: str,
    folder: Path,
    manifest_file: Path | None,
    data: Sequence[str],
    splits: Sequence[str],
    options: Options,
    computers: Computers,
    *,
    note: str = "",
    tree: str = "",
    dry_run: bool = False,
) -> None:
    """Import a stage; exits with 1 when clips failed."""
    manifest = load_manifest(manifest_file)
    found = _jobs(output, manifest, stage, folder, data, splits, note, tree)
    with listening() as stop:
        good = run_jobs(output, manifest, found, options, computers, stop, dry_run)
    if not good:
        sys.exit(1)


def _jobs(
    output: Output,
    manifest: Manifest,
    stage: str,
    folder: Path,
    data: Sequence[str],
    splits: Sequence[str],
    note: str,
    tree: str,
) -> Iterator[Job]:
    """The splits that the folder holds something of.

    Others are left out with a note, unless data set and split were both asked for, or there is
    nothing at all: then a ComboError says what was looked for.
    """
    missing: list[str] = []
    found = False
    for data_set in manifest.choose(data):
        for split in splits_of(manifest, data_set, splits if data else ()):
            if splits and split not in splits:
                continue
            try:
                there = planned(manifest, data_set, split)
                job = there.import_job(stage, folder, note, tree)
            except ComboError as error:
                if data and splits:
                    raise
                missing.append(f"{data_set}/{split}: {error}")
            else:
                found = True
                yield job
    if not found:
        raise ComboError(missing[0] if missing else f"nothing of {manifest.file} to import into")
    for line in missing:
        output.note(f"left out: {line}")
