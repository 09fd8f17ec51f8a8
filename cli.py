"""The `combo` command: options in, tables and exit codes out.

Exit codes: 0 done, 1 done with failures or failed, 2 wrong usage. Everything heavy is imported by
the command that needs it, so that `combo --help` is there at once.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__

if TYPE_CHECKING:
    from .pipeline.console import Output


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


app = typer.Typer(
    name="combo",
    help="Audio-visual segmentation with COMBO: which pixels make the sound that is heard?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ManifestOption = Annotated[
    Path | None,
    typer.Option(
        "--manifest", "-m", help="Manifest; default ./data_manifest.yaml, else combo's own."
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", "-d", help="Data set of the manifest; may be repeated. Default: all."),
]
SplitOption = Annotated[
    list[str] | None, typer.Option("--split", "-s", help="Split; may be repeated. Default: all.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        help="The store, or a file packed from it; default: the manifest's, or the run's."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"combo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def preprocess(
    stage: Annotated[StageName, typer.Argument(help="Which stage, or all.")],
    data: DataOption = None,
    split: SplitOption = None,
    manifest: ManifestOption = None,
    encoder: Annotated[
        str | None, typer.Option(help="Sound encoder, instead of the manifest's.")
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Maskige generator, instead of the manifest's.")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Working memory of a Maskige network, as 8GB; default: the device's."),
    ] = None,
    part: Annotated[
        str, typer.Option(help="I/N: only the I-th of N parts, for job arrays.")
    ] = "1/1",
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Compute again what is done.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute units with failed clips again.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make frames, sound embeddings and Maskiges and put them into the store.

    Killed at any moment, it goes on where it stopped when the same command is given again.

    Example: combo preprocess all --data s4 --workers 4
    """
    from .pipeline.commands import stages

    stages.preprocess(
        _output(quiet, json),
        manifest,
        stage.value,
        data or [],
        split or [],
        encoder=encoder,
        generator=generator,
        memory_limit=memory_limit,
        part=part,
        workers=workers,
        dry_run=dry_run,
        overwrite=overwrite,
        retry_failed=retry_failed,
    )


ImportedFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The tree, or a folder that it lies in.")
]
NoteOption = Annotated[
    str, typer.Option(help="What the pictures do not tell (network, level); part of the result.")
]
PartOption = Annotated[str, typer.Option(help="I/N: only the I-th of N parts, for job arrays.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Processes on this machine.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Do again what is done.")]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Do units with failed clips again.")
]


@app.command("import-frames")
def import_frames(
    folder: ImportedFolder,
    data: DataOption = None,
    split: SplitOption = None,
    note: NoteOption = "",
    manifest: ManifestOption = None,
    part: PartOption = "1/1",
    workers: WorkersOption = 1,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    retry_failed: RetryOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take the public COMBO code's processed_frames and labels of AVSS into the store.

    Training reads them with `stages: {frames: {source: imported}}` in the manifest.

    Example: combo import-frames /data/AVSBench_semantic --data avss
    """
    from .pipeline.commands import imports
    from .pipeline.jobs.run import Options, parse_part

    imports.take(
        _output(quiet, json),
        "frames",
        folder,
        manifest,
        data or [],
        split or [],
        Options(parse_part(part), workers, overwrite, retry_failed),
        note=note,
        dry_run=dry_run,
    )


@app.command("import-maskige")
def import_maskige(
    folder: ImportedFolder,
    data: DataOption = None,
    split: SplitOption = None,
    note: NoteOption = "",
    tree: Annotated[
        str,
        typer.Option(help="AVSS: processed_frames or frames; default: the first that is there."),
    ] = "",
    manifest: ManifestOption = None,
    part: PartOption = "1/1",
    workers: WorkersOption = 1,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    retry_failed: RetryOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take the public COMBO code's Maskiges (*_mask_color.png) into the store.

    Training reads them with --generator imported.

    Example: combo import-maskige /data/pre_SAM_mask --data s4 --note semantic-sam-l
    """
    from .pipeline.commands import imports
    from .pipeline.jobs.run import Options, parse_part

    imports.take(
        _output(quiet, json),
        "maskige",
        folder,
        manifest,
        data or [],
        split or [],
        Options(parse_part(part), workers, overwrite, retry_failed),
        note=note,
        tree=tree,
        dry_run=dry_run,
    )


@app.command()
def status(
    data: DataOption = None,
    split: SplitOption = None,
    manifest: ManifestOption = None,
    json: JsonOption = False,
) -> None:
    """How far the store is: done, failed, to do, speed and time left of every stage.

    Example: combo status --data s4
    """
    from .pipeline.commands import stores

    stores.status(_output(False, json), manifest, data or [], split or [])


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="A packed file to check, instead of the store.")
    ] = None,
    data: DataOption = None,
    split: SplitOption = None,
    manifest: ManifestOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mark what is wrong as not done, so the next run makes it."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A data set with fewer clips than published is an error.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Read the whole store, or a packed file, back: records, digests, shapes, counts.

    Example: combo verify --data s4 --full
    """
    from .pipeline.commands import stores

    stores.verify(_output(quiet, json), manifest, data or [], split or [], repair, full, file)


@app.command()
def pack(
    store: Annotated[Path, typer.Argument(help="The store's folder.")],
    to: Annotated[Path, typer.Option("--to", help="File to write, such as train.h5.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Only this data set; repeatable.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", "-s", help="Only this split; repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="stage=NAME: this variant of a stage; by default the manifest's."),
    ] = None,
    deflate: Annotated[
        bool,
        typer.Option("--deflate", help="Deflate label images: a third smaller, slower."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that holds something else.")
    ] = False,
    manifest: ManifestOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Pack finished splits of a store into one file, for a node's own disk.

    Training and evaluation read it like the store: combo train --store FILE.

    Example: combo pack store --to /local/s4.h5 --data s4
    """
    from .pipeline.commands import packing

    packing.pack(
        _output(quiet, json),
        store,
        to,
        manifest,
        data or [],
        split or [],
        variant or [],
        deflate,
        overwrite,
    )


@app.command()
def doctor(manifest: ManifestOption = None, json: JsonOption = False) -> None:
    """What is there, what is missing, and which command makes it.

    Example: combo doctor
    """
    from .pipeline.commands import stores

    stores.doctor(_output(False, json), manifest)


@app.command()
def train(
    preset: Annotated[str | None, typer.Option(help="combo-{r50,pvt,small}-{s4,ms3,avss}.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/PRESET, numbered when taken.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, of the training or the network; may be repeated."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Sound encoder, instead of the manifest's.")
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Maskige generator, instead of the manifest's.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="stage=NAME: this variant of a stage in the store.")
    ] = None,
    store: StoreOption = None,
    manifest: ManifestOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train COMBO on a finished store, or on a file that was packed from one.

    Example: combo train --preset combo-r50-s4 --set iterations=20000
    """
    if (preset is None) == (resume is None):
        raise typer.BadParameter("give --preset NAME, or --resume RUN")
    from .pipeline.commands import runs

    output = _output(quiet)
    if resume is not None:
        runs.resume(output, resume, store)
    else:
        runs.train(
            output,
            manifest,
            str(preset),
            settings or [],
            out=out,
            encoder=encoder,
            generator=generator,
            variants=variant or [],
            store=store,
        )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    split: Annotated[str, typer.Option("--split", "-s", help="Split to evaluate.")] = "test",
    sound: Annotated[
        SoundName, typer.Option(help="The right sound, or a wrong one on purpose.")
    ] = SoundName.right,
    store: StoreOption = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="stage=NAME: this variant of a stage in the store.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """M_J and M_F of a run's best network.

    Example: combo evaluate runs/combo-r50-s4 --split test --json
    """
    from .pipeline.commands import runs

    runs.evaluate(_output(quiet, json), run, split, sound.value, store, variant or [], device)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write it; empty or a sample already.")],
    s4: Annotated[str, typer.Option(help="Clips in train, val and test.")] = "24,6,8",
    ms3: Annotated[str, typer.Option(help="Clips in train, val and test.")] = "24,6,8",
    avss: Annotated[str, typer.Option(help="Clips in train, val and test.")] = "24,6,8",
    seed: Annotated[int, typer.Option(help="Another seed, other clips.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Make a small data set in all three AVSBench layouts, so that nothing needs a download.

    Example: combo sample data/sample
    """
    from .pipeline.commands import stages

    stages.sample(_output(quiet), folder, s4, ms3, avss, seed)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The whole road in a few minutes: sample, three stages, training, evaluation, a picture.

    Example: combo demo --out demo
    """
    from .pipeline.demo import run_demo

    run_demo(_output(quiet, json), out)


weights = typer.Typer(
    help="Published weights: what there is, where it comes from, whether it is whole.",
    no_args_is_help=True,
)
app.add_typer(weights, name="weights")


@weights.command("list")
def list_weights(manifest: ManifestOption = None, json: JsonOption = False) -> None:
    """The catalogue: names, sources, licences, and which are on this machine.

    Example: combo weights list
    """
    from .pipeline.commands import weights as commands

    commands.show(_output(False, json), manifest)


@weights.command("fetch")
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="Names of the catalogue.")],
    quiet: QuietOption = False,
) -> None:
    """Download published weights; a download that was cut off goes on where it stopped.

    Example: combo weights fetch vggish sam-vit-h
    """
    from .pipeline.commands import weights as commands

    commands.fetch(_output(quiet), names)


@weights.command("add")
def add_weights(
    name: Annotated[str, typer.Argument(help="Name of the catalogue.")],
    file: Annotated[Path, typer.Argument(help="The file, which is copied.")],
) -> None:
    """Put a weights file you have into the weights folder, after checking that it is the one.

    Example: combo weights add vggish vggish-10086976.pth
    """
    from .pipeline.commands import weights as commands

    commands.add(_output(), name, file)


@weights.command("verify")
def verify_weights(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of the catalogue; all that are there.")
    ] = None,
    manifest: ManifestOption = None,
    json: JsonOption = False,
) -> None:
    """Compare weights with their published digests.

    Example: combo weights verify
    """
    from .pipeline.commands import weights as commands

    commands.verify(_output(False, json), manifest, names or [])


@weights.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(help="A published COMBO checkpoint (.pth).")],
    target: Annotated[Path, typer.Argument(help="File to write; must not be there.")],
) -> None:
    """Write a published COMBO checkpoint under this project's parameter names.

    Example: combo weights convert avs_s4_r50.pth combo-r50-s4.pt
    """
    from .pipeline.commands import weights as commands

    commands.convert(_output(), source, target)


def _output(quiet: bool = False, as_json: bool = False) -> "Output":
    from .pipeline.console import Output

    return Output(quiet, as_json)


def main() -> None:
    """Run the command line."""
    from .pipeline.errors import ComboError

    try:
        app()
    except ComboError as error:
        _output().warn(f"combo: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _output().warn("combo: stopped; the same command goes on where this one was")
        sys.exit(130)
