"""`combo train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import remedies
from ..console import Output, duration
from .options import (
    Manifest,
    MaskigeGenerator,
    Printing,
    SoundEncoder,
    Store,
    Variants,
    command,
    one_variant_each,
)

if TYPE_CHECKING:
    from ..train.loader import ClipReader
    from ..train.trainer import Step, Trainer

app = typer.Typer()


@command(app)
def train(
    printing: Printing,
    preset: Annotated[str | None, typer.Option(help="combo-{r50,pvt,small}-{s4,ms3,avss}.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/PRESET, numbered when taken.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, of the training or the network; may be repeated."),
    ] = None,
    encoder: SoundEncoder = None,
    generator: MaskigeGenerator = None,
    variant: Variants = None,
    store: Store = None,
    manifest: Manifest = None,
) -> None:
    """Train a network on a finished store, or on a file that was packed from one.

    Example: combo train --preset combo-r50-s4 --set iterations=20000
    """
    from ..manifest import load_manifest
    from ..train import start

    if resume is not None:
        given = {
            "--preset": preset,
            "--out": out,
            "--set": settings,
            "--encoder": encoder,
            "--generator": generator,
            "--variant": variant,
            "--manifest": manifest,
        }
        if refused := [option for option, value in given.items() if value]:
            raise typer.BadParameter(
                f"{', '.join(refused)} with --resume: a run goes on with its own settings; "
                "only --store may be given, where the store has moved"
            )
        run_trainer(printing.output, start.resume(resume, store))
        return
    if preset is None:
        raise typer.BadParameter("give --preset NAME, or --resume RUN")
    opened = load_manifest(manifest).with_stages(encoder, generator).with_store(store)
    folder = out or start.free_folder(Path("runs") / preset)
    named = one_variant_each(variant)
    run_trainer(printing.output, start.start(opened, preset, settings or (), folder, named))


def run_trainer(output: Output, trainer: "Trainer") -> None:
    """Train to the end with a progress bar."""
    from ..devices import keep_freed_memory
    from ..jobs.stopping import listening

    keep_freed_memory()
    for split, reader in trainer.readers.items():
        left_out = f", {len(reader.left_out)} left out" if reader.left_out else ""
        without = len(reader) - len(reader.labelled)
        labels = f", {without} of them without a label" if without else ""
        output.note(f"{split}: {len(reader)} clips{labels}{left_out}")
        tell_unchecked(output, reader)
    settings, root = trainer.settings, trainer.run.root
    output.note(f"{root}: {settings.iterations} iterations on {trainer.device}")
    done = trainer.iteration
    left = settings.iterations - done
    with listening(at_once=False) as stop, output.bar("training", left) as bar:

        def tell(step: "Step") -> None:
            nonlocal done
            skipped = f", {step.skipped} steps skipped" if step.skipped else ""
            left = duration(step.seconds_left)
            bar.advance(step.iteration - done, f"loss {step.loss:.3f}{skipped}, {left} left")
            done = step.iteration

        try:
            trainer.train(tell, stop, output.warn)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"go on with: {remedies.resume(root)}") from None
    best = None if trainer.best < 0 else trainer.best
    words = "" if best is None else f"; best M_J on val {best:.4f}"
    value = {"run": str(root), "iterations": settings.iterations, "best_M_J": best}
    output.answer(value, f"{root}: trained {settings.iterations} iterations{words}")


def tell_unchecked(output: Output, reader: "ClipReader") -> None:
    """Say which variants an older combo wrote: nothing tells one clip's bytes from another's."""
    if reader.unchecked:
        where = reader.split
        output.warn(
            f"{where}: {', '.join(reader.unchecked)} have no checks of each clip yet; "
            f"to add them, run: {remedies.repair(where.data_set, where.split)}"
        )
