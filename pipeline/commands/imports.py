"""`combo import-frames` and `combo import-maskige`: what the public COMBO code has computed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ComboError
from .options import Computers, Printing, Splits, Work, command
from .preprocess import run_jobs

if TYPE_CHECKING:
    from ..console import Output
    from ..jobs.unit import Job
    from ..manifest import Manifest

app = typer.Typer()

Tree = Annotated[Path, typer.Argument(metavar="DIR", help="The tree, or a folder it lies in.")]
Note = Annotated[
    str, typer.Option(help="What the pictures do not tell (network, level); part of the result.")
]


@command(app, "import-frames", goes_on=True)
def import_frames(
    folder: Tree,
    splits: Splits,
    work: Work,
    computers: Computers,
    printing: Printing,
    note: Note = "",
) -> None:
    """Take the public COMBO code's processed_frames and labels of AVSS into the store.

    Training reads them with `stages: {frames: {source: imported}}` in the manifest.

    Example: combo import-frames /data/AVSBench_semantic --data avss
    """
    _take("frames", folder, splits, work, computers, printing, note, "")


@command(app, "import-maskige", goes_on=True)
def import_maskige(
    folder: Tree,
    splits: Splits,
    work: Work,
    computers: Computers,
    printing: Printing,
    note: Note = "",
    tree: Annotated[
        str,
        typer.Option(help="AVSS: processed_frames or frames; default: the first that is there."),
    ] = "",
) -> None:
    """Take the public COMBO code's Maskiges (*_mask_color.png) into the store.

    Training reads them with --generator imported.

    Example: combo import-maskige pre_SAM_mask --data s4 --note semantic-sam-l
    """
    _take("maskige", folder, splits, work, computers, printing, note, tree)


def _take(
    stage: str,
    folder: Path,
    splits: Splits,
    work: Work,
    computers: Computers,
    printing: Printing,
    note: str,
    tree: str,
) -> None:
    from ..jobs.stopping import listening

    manifest, output = splits.open(), printing.output
    found = _jobs(output, manifest, splits, stage, folder, note, tree)
    with listening() as stop:
        good = run_jobs(output, manifest, found, work.options, computers, stop, work.dry_run)
    if not good:
        sys.exit(1)


def _jobs(
    output: "Output",
    manifest: "Manifest",
    asked: Splits,
    stage: str,
    folder: Path,
    note: str,
    tree: str,
) -> "Iterator[Job]":
    """The splits that the folder holds something of.

    Others are left out with a note, unless data set and split were both asked for, or there is
    nothing at all: then a ComboError says what was looked for.
    """
    from ..jobs.plan import planned, splits_of

    data, splits = asked.data or (), asked.split or ()
    missing: list[str] = []
    found = False
    for data_set in manifest.choose(data):
        for split in splits_of(manifest, data_set, splits if data else ()):
            if splits and split not in splits:
                continue
            try:
                job = planned(manifest, data_set, split).import_job(stage, folder, note, tree)
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
