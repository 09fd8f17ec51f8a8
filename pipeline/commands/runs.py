"""`combo train`."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import remedies
from ..console import Bar, Output, duration
from ..errors import counted
from . import completion
from .options import (
    BeginRun,
    Printing,
    Requeue,
    command,
    one_variant_each,
)

if TYPE_CHECKING:
    from ..train.loader import ClipReader
    from ..train.pace import Step
    from ..train.processes import Processes
    from ..train.trainer import Trainer

app = typer.Typer()


@command(app, goes_on=True)
def train(
    printing: Printing,
    begin: BeginRun,
    preset: Annotated[
        str | None,
        typer.Option(
            help="combo-{r50,pvt,small}-{s4,ms3,avss}.", autocompletion=completion.presets
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/PRESET, numbered when taken.")
    ] = None,
    requeue: Requeue = False,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, and of the preset; --set goes before it."),
    ] = None,
    profile: Annotated[
        int, typer.Option(min=0, help="Write a PyTorch profile of so many steps.")
    ] = 0,
    print_settings: Annotated[
        bool,
        typer.Option("--print-settings", help="Print the settings as such a file; train nothing."),
    ] = False,
) -> None:
    """Train a network on a finished store, or on a file that was packed from one.

    Example: combo train --preset combo-r50-s4 --set iterations=20000
    """
    from ..train import processes, start

    changes = begin.changes
    if resume is not None:
        given = {
            "--preset": preset,
            "--config": config,
            "--out": out,
            "--encoder": begin.encoder,
            "--generator": begin.generator,
            "--variant": begin.variant,
            "--manifest": begin.manifest,
            "--data": begin.data,
        }
        if refused := [option for option, value in given.items() if value]:
            raise typer.BadParameter(
                f"{', '.join(refused)} with --resume: a run goes on with its own; only --store "
                "may be given, where the store has moved, --device, and some settings with --set"
            )
    elif config is not None:
        from ..train.settings_file import read_settings

        configured, own = read_settings(config)
        changes = own + changes
        if preset and configured and preset != configured:
            raise typer.BadParameter(f"--preset {preset}, and {config} has preset: {configured}")
        preset = preset or configured
    if resume is None and preset is None:
        raise typer.BadParameter("give --preset NAME, or --resume RUN")
    if print_settings:
        printing.output.answer(*_settings(preset or "", resume, changes))
        return

    def trainer(together: "Processes") -> "Trainer":
        if resume is not None:
            return start.resume(resume, begin.store, together, changes)
        named = one_variant_each(begin.variant)
        return start.start(begin.open(), name, changes, folder, named, together)

    with processes.joined() as together:
        name = preset or ""
        (folder, *_) = together.gather(out or start.free_folder(Path("runs") / name))
        run_trainer(printing.output, together.alike(lambda: trainer(together)), requeue, profile)


def _settings(preset: str, run: Path | None, changes: list[str]) -> tuple[dict[str, Any], str]:
    """What a run would be trained with on this machine, as a dictionary and as YAML."""
    from ..devices import has_bf16
    from ..train.presets import amend, prefer_bf16, resolve
    from ..train.run_folder import RunFolder, run_of
    from ..train.settings_file import text_of

    if run is not None:
        settings = amend(RunFolder(run_of(run)).settings(), changes)
    else:
        settings = resolve(preset, changes)
        settings = prefer_bf16(settings, changes, has_bf16(settings.train.device))
    return settings.as_dict(), text_of(settings).rstrip()


@command(app)
def presets(printing: Printing) -> None:
    """What `combo train --preset` takes: networks, data sets and their main settings.

    Example: combo presets --json
    """
    from ...model.networks import NETWORKS
    from ..train.presets import resolve

    found = [resolve(name).as_dict() for kind in NETWORKS.values() for name in kind.presets]
    main = ("data", "iterations", "batch_size", "learning_rate", "precision", "augment",
            "initialisation")  # fmt: skip
    printing.output.records(
        found,
        {
            "preset": lambda row: row["train"]["preset"],
            "network": lambda row: f"{row['kind']}, {row['network'].get('backbone', '')}",
            **{name: (lambda row, name=name: row["train"][name]) for name in main},
        },
    )


@command(app)
def settings(printing: Printing) -> None:
    """Every setting of the manifest, of training and of the networks: type, default, meaning.

    Example: combo settings
    """
    from ...model.networks import NETWORKS
    from .. import reference

    output = printing.output
    if not output.as_json:
        output.result(reference.page().rstrip())
        return
    networks = {name: reference.of_network(name) for name in NETWORKS}
    parts = {"manifest": reference.of_manifest(), "training": reference.of_training(), **networks}
    output.json({part: [asdict(each) for each in found] for part, found in parts.items()})


def run_trainer(
    output: Output,
    trainer: "Trainer",
    requeue: bool = False,
    profile: int = 0,
    of_all: Bar | None = None,
) -> None:
    """Train to the end with a progress bar. requeue, profile: as the options of `combo train`.
    of_all: the bar of a command that does more, to which this is no result; it knows of all
    iterations."""
    from ..devices import keep_freed_memory
    from ..jobs import scheduler
    from ..jobs.stopping import Stopped, listening
    from ..train.profiling import Profile

    keep_freed_memory()
    if not trainer.together.first:
        output = Output(quiet=True)
    for split, reader in trainer.readers.items() if trainer.together.first else ():
        left_out = f", {len(reader.left_out)} left out" if reader.left_out else ""
        without = len(reader) - len(reader.labelled)
        labels = f", {without} of them without a label" if without else ""
        output.note(f"{split}: {counted(len(reader), 'clip')}{labels}{left_out}")
        tell_unchecked(output, reader)
    settings, root = trainer.settings, trainer.run.root
    count = trainer.together.count
    several = f", {count} processes" if count > 1 else ""
    told = f"{trainer.device}{several}, {settings.precision}"
    output.note(f"{root}: {counted(settings.iterations, 'iteration')} on {told}")
    done = trainer.iteration
    left, seconds_left = settings.iterations - done, ""
    if of_all is not None:
        of_all.add(-done)
        of_all.advance(0, title=root.name)
    asked = "stopping after this iteration; Ctrl-C again leaves at once"
    with (
        listening(at_once=False, on_interrupt=lambda: output.warn(asked)) as stop,
        nullcontext(of_all)
        if of_all
        else output.bar("training", left, lambda: seconds_left) as bar,
    ):

        def advance(step: "Step") -> None:
            nonlocal done, seconds_left
            skipped = f", {counted(step.skipped, 'step')} skipped" if step.skipped else ""
            seconds_left = f"{duration(step.seconds_left)} left"
            pace = f", {step.pace}" if step.pace else ""
            bar.advance(step.iteration - done, f"loss {step.loss:.3f}{skipped}", more=pace)
            done = step.iteration

        def tell_score(iteration: int, score: float, best: float) -> None:
            so_far = "the best so far" if score == best else f"best so far {best:.4f}"
            output.note(f"iteration {iteration:,}: M_J on val {score:.4f}, {so_far}")

        try:
            of_steps = Profile(profile, output.note) if profile else None
            trainer.train(advance, stop, output.warn, tell_score, of_steps)
        except KeyboardInterrupt:
            raise trainer.together.ended(_interrupted(trainer)) from None
        except Stopped:
            if stop.interrupted:
                raise trainer.together.ended(_interrupted(trainer)) from None
            if requeue and (here := scheduler.here()):
                here.requeue(stop.warned, lambda said: output.warn(f"combo: {said}"))
            raise
    if not trainer.together.first or of_all is not None:
        return
    best = None if trainer.best < 0 else trainer.best
    words = "" if best is None else f"; best M_J on val {best:.4f}"
    value = {"run": str(root), "iterations": settings.iterations, "best_M_J": best}
    trained = counted(settings.iterations, "iteration")
    output.answer(value, f"{root}: trained {trained}{words}")


def _interrupted(trainer: "Trainer") -> KeyboardInterrupt:
    """What was done when Ctrl-C came, and what goes on."""
    said = f"{trainer.iteration:,} of {counted(trainer.settings.iterations, 'iteration')} done"
    if trainer.saved != trainer.iteration:
        said += f", {trainer.saved:,} saved"
    return KeyboardInterrupt(f"{said}; go on with: {remedies.resume(trainer.run.root)}")


def tell_unchecked(output: Output, reader: "ClipReader") -> None:
    """Say which variants an older combo wrote: nothing tells one clip's bytes from another's."""
    if reader.unchecked:
        where = reader.split
        output.warn(
            f"{where}: {', '.join(reader.unchecked)} have no checks of each clip yet; "
            f"to add them, run: {remedies.repair(where.data_set, where.split)}"
        )
