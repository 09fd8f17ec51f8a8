"""`combo train` and `combo evaluate`."""

from collections.abc import Sequence
from pathlib import Path

from ..console import Output, duration
from ..devices import choose_device
from ..errors import ComboError
from ..evaluate import SoundCondition, as_json, measure, open_run, open_split
from ..manifest import load_manifest
from ..train.run_folder import RunFolder
from ..train.start import free_folder, start
from ..train.start import resume as go_on
from ..train.trainer import Step, Trainer


def train(
    output: Output,
    manifest_file: Path | None,
    preset: str,
    changes: Sequence[str],
    *,
    out: Path | None = None,
    encoder: str | None = None,
    generator: str | None = None,
    variants: Sequence[str] = (),
    store: Path | None = None,
) -> None:
    """`combo train --preset`."""
    manifest = load_manifest(manifest_file).with_stages(encoder, generator).with_store(store)
    folder = out or free_folder(Path("runs") / preset)
    trainer = start(manifest, preset, changes, folder, _named(variants))
    run_trainer(output, trainer)


def resume(output: Output, folder: Path, store: Path | None = None) -> None:
    """`combo train --resume`."""
    run_trainer(output, go_on(folder, store))


def run_trainer(output: Output, trainer: Trainer) -> None:
    """Train to the end with a progress bar."""
    for split, reader in trainer.readers.items():
        left_out = f", {len(reader.left_out)} left out" if reader.left_out else ""
        output.note(f"{split}: {len(reader)} clips{left_out}")
    settings = trainer.settings
    output.note(f"{trainer.run.root}: {settings.iterations} iterations on {trainer.device}")
    done = trainer.iteration
    with output.bar("training", settings.iterations - done) as bar:

        def tell(step: Step) -> None:
            nonlocal done
            left = duration(step.seconds_left)
            bar.advance(step.iteration - done, f"loss {step.loss:.3f}, {left} left")
            done = step.iteration

        trainer.train(tell)
    best = "" if trainer.best < 0 else f"; best M_J on val {trainer.best:.4f}"
    output.result(f"{trainer.run.root}: trained {settings.iterations} iterations{best}")


def evaluate(
    output: Output,
    folder: Path,
    split: str,
    sound: SoundCondition,
    store: Path | None,
    variants: Sequence[str],
    device: str,
) -> None:
    """`combo evaluate`."""
    run = RunFolder(folder)
    settings = run.settings()
    reader = open_split(run, split, store, _named(variants))
    where = choose_device(device)
    with output.bar(f"{split}, {sound} sound", len(reader)) as bar:
        result = measure(
            open_run(run, where), reader, where, sound=sound, on_clip=lambda *_: bar.advance()
        )
    value = {
        "run": str(folder),
        "data_set": reader.split.data_set,
        "split": split,
        **as_json(result),
        "size": list(reader.choice.frames.settings["size"]),
        "initialisation": settings.train.initialisation,
        "fidelity": settings.network.fidelity,
        "labels": reader.plan.layout,
        "clips_per_batch": 1,
    }
    if output.as_json:
        output.json(value)
        return
    output.table(
        ("protocol", "M_J", "M_F"),
        (
            (name, f"{100 * j:.2f}", "" if f is None else f"{100 * f:.2f}")
            for name, (j, f) in result.protocols.items()
        ),
        title=f"{reader.split}, {sound} sound, {len(reader)} clips",
    )
    if reader.left_out:
        output.warn(f"{len(reader.left_out)} clips left out: they failed in preprocessing")


def _named(variants: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for text in variants:
        stage, equals, name = text.partition("=")
        if not equals or stage not in ("frames", "audio", "maskige"):
            raise ComboError(f"--variant {text}: write stage=NAME, with a NAME of combo status")
        named[stage] = name
    return named
