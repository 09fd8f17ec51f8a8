"""The `combo` command: options in, tables and exit codes out.

Exit codes: 0 done, 1 done with failures or failed, 2 wrong usage, 75 told to stop (SIGTERM,
SIGUSR1) before the end, 130 interrupted. Everything heavy is imported by the command that needs it,
so that `combo --help` is there at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .pipeline.commands import options

if TYPE_CHECKING:
    from .pipeline.console import Output


app = typer.Typer(
    name="combo",
    help="Audio-visual segmentation with COMBO: which pixels make the sound that is heard?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    stage: options.Stage,
    data: options.Data = None,
    split: options.Split = None,
    manifest: options.Manifest = None,
    encoder: options.Encoder = None,
    generator: options.Generator = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Working memory of a Maskige network, as 8GB; default: the device's."),
    ] = None,
    part: options.Part = "1/1",
    workers: options.Workers = None,
    workers_per_device: Annotated[
        int, typer.Option(min=1, help="Processes on each GPU, where --workers is not given.")
    ] = 1,
    device: options.Device = "auto",
    dask: Annotated[
        str | None,
        typer.Option(help="Run on Dask: local, a cluster's scheduler (slurm), or an address."),
    ] = None,
    lifetime: Annotated[
        str | None,
        typer.Option(help="When a Dask worker that is a job leaves, as 55m; default: in time."),
    ] = None,
    scheduler_arg: options.SchedulerArg = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="In a cluster's job: told to stop, queue it again."),
    ] = False,
    overwrite: options.Overwrite = False,
    retry_failed: options.RetryFailed = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
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
        options=stages.parse_options(part, overwrite, retry_failed, force),
        computers=stages.Computers(
            workers, workers_per_device, device, dask, lifetime, tuple(scheduler_arg or ())
        ),
        dry_run=dry_run,
        requeue=requeue,
    )


@app.command()
def submit(
    stage: options.Stage,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of the job array.")],
    scheduler: Annotated[str | None, typer.Option(help="The cluster's; default: slurm.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", hidden=True)] = False,
    data: options.Data = None,
    split: options.Split = None,
    manifest: options.Manifest = None,
    encoder: options.Encoder = None,
    generator: options.Generator = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Most tasks that run at the same time.")
    ] = None,
    workers: options.Workers = None,
    scheduler_arg: options.SchedulerArg = None,
    retry_failed: options.RetryFailed = False,
    force: options.Force = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the job scripts; submit and write nothing.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Preprocess as a job array on a cluster; submit again to go on.

    The scripts and logs are in the store's folder `jobs`. A dependent job closes the split.

    Example: combo submit maskige --tasks 64 --scheduler-arg=--gres=gpu:1
    """
    del slurm  # until 0.1 it had to be given
    from .pipeline.commands import clusters

    clusters.submit(
        _output(quiet, json),
        manifest,
        stage.value,
        data or [],
        split or [],
        encoder=encoder,
        generator=generator,
        tasks=tasks,
        at_once=at_once,
        workers=workers,
        arguments=scheduler_arg or [],
        scheduler=scheduler,
        retry_failed=retry_failed,
        force=force,
        print_only=print_only,
    )


@app.command()
def finalise(
    stage: options.Stage,
    data: options.Data = None,
    split: options.Split = None,
    manifest: options.Manifest = None,
    encoder: options.Encoder = None,
    generator: options.Generator = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Close splits whose units are all done, or say what is missing.

    The last part of a job array does this itself; here it can be asked for.

    Example: combo finalise maskige --data avss
    """
    from .pipeline.commands import clusters

    clusters.finalise(
        _output(quiet, json), manifest, stage.value, data or [], split or [], encoder, generator
    )


@app.command("import-frames")
def import_frames(
    folder: options.ImportedFolder,
    data: options.Data = None,
    split: options.Split = None,
    note: options.Note = "",
    manifest: options.Manifest = None,
    part: options.Part = "1/1",
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    retry_failed: options.RetryFailed = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take the public COMBO code's processed_frames and labels of AVSS into the store.

    Training reads them with `stages: {frames: {source: imported}}` in the manifest.

    Example: combo import-frames /data/AVSBench_semantic --data avss
    """
    from .pipeline.commands import imports, stages

    imports.take(
        _output(quiet, json),
        "frames",
        folder,
        manifest,
        data or [],
        split or [],
        stages.parse_options(part, overwrite, retry_failed),
        stages.Computers(workers),
        note=note,
        dry_run=dry_run,
    )


@app.command("import-maskige")
def import_maskige(
    folder: options.ImportedFolder,
    data: options.Data = None,
    split: options.Split = None,
    note: options.Note = "",
    tree: Annotated[
        str,
        typer.Option(help="AVSS: processed_frames or frames; default: the first that is there."),
    ] = "",
    manifest: options.Manifest = None,
    part: options.Part = "1/1",
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    retry_failed: options.RetryFailed = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take the public COMBO code's Maskiges (*_mask_color.png) into the store.

    Training reads them with --generator imported.

    Example: combo import-maskige /data/pre_SAM_mask --data s4 --note semantic-sam-l
    """
    from .pipeline.commands import imports, stages

    imports.take(
        _output(quiet, json),
        "maskige",
        folder,
        manifest,
        data or [],
        split or [],
        stages.parse_options(part, overwrite, retry_failed),
        stages.Computers(workers),
        note=note,
        tree=tree,
        dry_run=dry_run,
    )


@app.command()
def status(
    data: options.Data = None,
    split: options.Split = None,
    manifest: options.Manifest = None,
    json: options.Json = False,
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
    data: options.Data = None,
    split: options.Split = None,
    manifest: options.Manifest = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute what is wrong again, and only that.")
    ] = False,
    inputs: Annotated[
        bool, typer.Option("--inputs", help="Read the data sets' files too: have they changed?")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A data set with fewer clips than published is an error.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read the whole store, or a packed file, back: records, digests, shapes, counts.

    Example: combo verify --data s4 --full
    """
    from .pipeline.commands import stores

    stores.verify(
        _output(quiet, json), manifest, data or [], split or [], repair, inputs, full, file
    )


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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that holds something else.")
    ] = False,
    manifest: options.Manifest = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
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
        overwrite,
    )


@app.command()
def doctor(manifest: options.Manifest = None, json: options.Json = False) -> None:
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
    encoder: options.Encoder = None,
    generator: options.Generator = None,
    variant: options.Variants = None,
    store: options.Store = None,
    manifest: options.Manifest = None,
    quiet: options.Quiet = False,
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
        options.SoundName, typer.Option(help="The right sound, or a wrong one on purpose.")
    ] = options.SoundName.right,
    store: options.Store = None,
    variant: options.Variants = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
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
    quiet: options.Quiet = False,
) -> None:
    """Make a small data set in all three AVSBench layouts, so that nothing needs a download.

    Example: combo sample data/sample
    """
    from .pipeline.commands import stages

    stages.sample(_output(quiet), folder, s4, ms3, avss, seed)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    json: options.Json = False,
    quiet: options.Quiet = False,
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
def list_weights(manifest: options.Manifest = None, json: options.Json = False) -> None:
    """The catalogue: names, sources, licences, and which are on this machine.

    Example: combo weights list
    """
    from .pipeline.commands import weights as commands

    commands.show(_output(False, json), manifest)


@weights.command("fetch")
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="Names of the catalogue.")],
    quiet: options.Quiet = False,
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
    manifest: options.Manifest = None,
    json: options.Json = False,
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
    from .pipeline.jobs.stopping import EXIT_CODE, Stopped

    try:
        app()
    except ComboError as error:
        _output().warn(f"combo: {error}")
        sys.exit(1)
    except Stopped:
        _output().warn("combo: told to stop; the same command goes on where this one was")
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        _output().warn("combo: stopped; the same command goes on where this one was")
        sys.exit(130)
