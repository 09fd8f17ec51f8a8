"""Options that several commands share: each is worded once."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class StageName(StrEnum):
    frames = "frames"
    audio = "audio"
    maskige = "maskige"
    all = "all"


class SoundName(StrEnum):
    right = "right"
    swapped = "swapped"
    silent = "silent"
    noise = "noise"


Stage = Annotated[StageName, typer.Argument(help="Which stage, or all.")]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest", "-m", help="Manifest; default ./data_manifest.yaml, else combo's own."
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", "-d", help="Data set of the manifest; may be repeated. Default: all."),
]
Split = Annotated[
    list[str] | None, typer.Option("--split", "-s", help="Split; may be repeated. Default: all.")
]
Encoder = Annotated[str | None, typer.Option(help="Sound encoder, instead of the manifest's.")]
Generator = Annotated[
    str | None, typer.Option(help="Maskige generator, instead of the manifest's.")
]
Variants = Annotated[
    list[str] | None, typer.Option(help="stage=NAME: this variant of a stage in the store.")
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="The store, or a file packed from it; default: the manifest's, or the run's."
    ),
]
Part = Annotated[str, typer.Option(help="I/N: only the I-th of N parts, for job arrays.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes, or Dask workers; default 1, or one on each GPU."),
]
SchedulerArg = Annotated[
    list[str] | None,
    typer.Option(
        "--scheduler-arg",
        "--sbatch-arg",
        help="For the scheduler, as --scheduler-arg=--partition=gpu; may be repeated.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and needed; write nothing.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Do again what is done.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Do units with failed clips again.")
]
Force = Annotated[bool, typer.Option("--force", help="Go on although the disk looks too small.")]
Device = Annotated[str, typer.Option(help="Of networks: auto, cpu, cuda, cuda:1, ...")]
ImportedFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The tree, or a folder that it lies in.")
]
Note = Annotated[
    str, typer.Option(help="What the pictures do not tell (network, level); part of the result.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
