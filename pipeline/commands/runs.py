"""`combo train` and `combo evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import protocols, remedies
from ..console import Output, duration
from .options import (
    Begin,
    Device,
    Printing,
    Requeue,
    SoundName,
    Store,
    Variants,
    command,
    one_variant_each,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..train.loader import ClipReader, StoredBatch
    from ..train.processes import Processes
    from ..train.trainer import Step, Trainer

app = typer.Typer()


@command(app)
def train(
    printing: Printing,
    begin: Begin,
    preset: Annotated[str | None, typer.Option(help="combo-{r50,pvt,small}-{s4,ms3,avss}.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/PRESET, numbered when taken.")
    ] = None,
    requeue: Requeue = False,
) -> None:
    """Train a network on a finished store, or on a file that was packed from one.

    Example: combo train --preset combo-r50-s4 --set iterations=20000
    """
    from ..train import processes, start

    if resume is not None:
        given = {
            "--preset": preset,
            "--out": out,
            "--encoder": begin.encoder,
            "--generator": begin.generator,
            "--variant": begin.variant,
            "--manifest": begin.manifest,
        }
        if refused := [option for option, value in given.items() if value]:
            raise typer.BadParameter(
                f"{', '.join(refused)} with --resume: a run goes on with its own; only --store "
                "may be given, where the store has moved, and some settings with --set"
            )
    elif preset is None:
        raise typer.BadParameter("give --preset NAME, or --resume RUN")

    def trainer(together: "Processes") -> "Trainer":
        if resume is not None:
            return start.resume(resume, begin.store, together, begin.settings or ())
        named = one_variant_each(begin.variant)
        return start.start(begin.open(), name, begin.settings or (), folder, named, together)

    with processes.joined() as together:
        name = preset or ""
        (folder, *_) = together.gather(out or start.free_folder(Path("runs") / name))
        run_trainer(printing.output, together.alike(lambda: trainer(together)), requeue)


def run_trainer(output: Output, trainer: "Trainer", requeue: bool = False) -> None:
    """Train to the end with a progress bar. requeue: as the option of `combo train`."""
    from ..devices import keep_freed_memory
    from ..jobs import scheduler
    from ..jobs.stopping import Stopped, listening

    keep_freed_memory()
    if not trainer.together.first:
        output = Output(quiet=True)
    for split, reader in trainer.readers.items():
        left_out = f", {len(reader.left_out)} left out" if reader.left_out else ""
        without = len(reader) - len(reader.labelled)
        labels = f", {without} of them without a label" if without else ""
        output.note(f"{split}: {len(reader)} clips{labels}{left_out}")
        _tell_unchecked(output, reader)
    settings, root = trainer.settings, trainer.run.root
    count = trainer.together.count
    several = f", {count} processes" if count > 1 else ""
    told = f"{trainer.device}{several}, {settings.precision}"
    output.note(f"{root}: {settings.iterations} iterations on {told}")
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
            end = KeyboardInterrupt(f"go on with: {remedies.resume(root)}")
            raise trainer.together.ended(end) from None
        except Stopped:
            if requeue and (here := scheduler.here()):
                here.requeue(stop.warned, lambda said: output.warn(f"combo: {said}"))
            raise
    if not trainer.together.first:
        return
    best = None if trainer.best < 0 else trainer.best
    words = "" if best is None else f"; best M_J on val {best:.4f}"
    value = {"run": str(root), "iterations": settings.iterations, "best_M_J": best}
    output.answer(value, f"{root}: trained {settings.iterations} iterations{words}")


def _tell_unchecked(output: Output, reader: "ClipReader") -> None:
    """Say which variants an older combo wrote: nothing tells one clip's bytes from another's."""
    if reader.unchecked:
        where = reader.split
        output.warn(
            f"{where}: {', '.join(reader.unchecked)} have no checks of each clip yet; "
            f"to add them, run: {remedies.repair(where.data_set, where.split)}"
        )


@command(app)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder, or a checkpoint in one.")],
    printing: Printing,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Another data set than the run's own.")
    ] = None,
    split: Annotated[str, typer.Option("--split", "-s", help="Split to evaluate.")] = "test",
    sound: Annotated[
        SoundName, typer.Option(help="The right sound, or a wrong one on purpose.")
    ] = SoundName.right,
    store: Store = None,
    variant: Variants = None,
    device: Device = "auto",
    predictions: Annotated[
        Path | None, typer.Option(help="Save the masks in this folder, for combo score.")
    ] = None,
) -> None:
    """M_J and M_F of a run's best network, on its own data set or on another one.

    Example: combo evaluate runs/combo-r50-s4 --split test --json
    """
    from ..devices import choose_device, keep_freed_memory
    from ..saved_masks import demand_empty, write_clip
    from ..train import checkpoint
    from ..train.elsewhere import Elsewhere, clips_of, open_elsewhere
    from ..train.evaluate import as_json, measure, open_split
    from ..train.run_folder import checkpoint_of

    keep_freed_memory()
    if predictions is not None:
        demand_empty(predictions)
    output, (folder, file) = printing.output, checkpoint_of(run)
    settings, known, naming = folder.settings(), folder.data(), None
    if data is None or data == known["data_set"]:
        reader = open_split(folder, split, store, one_variant_each(variant))
        length = known.get("frames_per_clip", reader.plan.frames_per_clip)
    else:
        length, _ = clips_of(folder, known)
        reader, naming = open_elsewhere(folder, data, split, store, one_variant_each(variant))
        if naming is not None:
            output.note(f"{reader.split}: {naming.said}")
    _tell_unchecked(output, reader)
    where = choose_device(device)
    with output.bar(f"{split}, {sound} sound", len(reader.labelled)) as bar:
        network = settings.build()
        checkpoint.load_network(file, network)
        network = network.to(where)
        if naming is not None or reader.plan.frames_per_clip > length:
            network = Elsewhere(network, length, naming)

        def seen(clip: "StoredBatch", scores: "Tensor") -> None:
            if predictions is not None:
                frames = clip.present[0].nonzero()[:, 0].tolist()
                write_clip(predictions, clip.clips[0], scores, frames)
            bar.advance()

        result = measure(network, reader, where, sound=sound.value, on_clip=seen)
    if output.as_json:
        output.json(
            {
                "run": str(run),
                "data_set": reader.split.data_set,
                "split": split,
                **({} if naming is None else {"classes": naming.said}),
                **as_json(result),
                "size": list(reader.choice.frames.settings["size"]),
                "initialisation": settings.train.initialisation,
                **settings.network.noted,
                "labels": reader.plan.layout,
                "clips_per_batch": 1,
            }
        )
        return
    title = f"{reader.split}, {sound} sound, {len(reader.labelled)} clips"
    output.table(protocols.HEADER, protocols.rows(result.protocols), title=title)
    if result.without_labels:
        output.warn(f"{result.without_labels} clips left out: no frame of theirs has a label")
    if reader.left_out:
        output.warn(f"{len(reader.left_out)} clips left out: they failed in preprocessing")
