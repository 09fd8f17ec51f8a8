"""What two processes of a run do, for `test_processes.py`: run as RANK PORT MANIFEST FOLDER."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.stopping import Stop
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.train import processes
from combo.pipeline.train.evaluate import measure_sounds
from combo.pipeline.train.pace import Step
from combo.pipeline.train.processes import ALONE, Processes
from combo.pipeline.train.start import resume, start
from combo.pipeline.train.trainer import Trainer

# The learning rate is the published one. With ten times as much, noise grows 100,000 times in five
# iterations on some processors; with this one it was seen to grow 200 times.
COMMON = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=2",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=5",
    "evaluate_every=3", "log_every=1", "warmup=0", "learning_rate=1e-4", "threads=1", "device=cpu",
    "augment=resize-crop-colour-flip", "fidelity=paper",
)  # fmt: skip
S4 = (*COMMON, "batch_size=4", "micro_batch=1", "ema=0.9")
AVSS = (*COMMON, "batch_size=2", "micro_batch=2")
UNHEARD = (*S4, "queries=none", "iterations=3")
ALIKE = {"s4": S4, "avss": AVSS, "unheard": UNHEARD}
"""Runs that are those of one process. S4: micro-batches.  AVSS: clips of five and ten frames, with
different numbers of classes.  The last one has parameters without a gradient."""
REFERENCE = (*S4, "fidelity=reference", "fusion_dropout=0.1", "checkpoint_every=1")

SOUNDS = ("right", "noise")


class Killed(Exception):
    """The end of a process, as far as a run's folder can tell."""


def begin(
    manifest: Manifest, folder: Path, changes: tuple[str, ...], together: Processes = ALONE
) -> Trainer:
    preset = "combo-small-avss" if changes == AVSS else "combo-small-s4"
    return start(manifest, preset, changes, folder, together=together)


def at(iteration: int, do: Callable[[], object]) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if step.iteration == iteration:
            do()

    return on_step


def die() -> None:
    raise Killed


def scores(trainer: Trainer) -> list[Any]:
    """Of each sound those of all processes together, then those of one; some clips have no other
    of their category."""
    reader, sounds = trainer.readers["train"], (*SOUNDS, "same-class")
    categories = {name: min(number, 3) for number, name in enumerate(reader.plan.clips)}
    named = {name: f"category {number}" for name, number in categories.items()}
    found = [
        measure_sounds(trainer.network, reader, trainer.device, sounds, named, together=each)
        for each in (trainer.together, ALONE)
    ]
    assert found[1]["same-class"].without_sound == 3
    return [vars(each[sound]) for sound in sounds for each in found]


def end_of(run: Callable[[], object], together: Processes) -> str:
    """How it ended, as text, on all processes."""
    try:
        run()
    except BaseException as error:
        together.gather(None)
        return f"{type(error).__name__}: {error}"
    return ""


def main(rank: int, manifest: Manifest, root: Path, together: Processes) -> None:
    found: dict[str, Any] = {}
    whole = begin(manifest, root / "s4", S4, together)
    whole.train()
    found["scores"] = scores(whole)
    for name in ("avss", "unheard"):
        begin(manifest, root / name, ALIKE[name], together).train()

    reference = begin(manifest, root / "reference", REFERENCE, together)
    reference.train()
    found["weights"] = dict(reference.network.state_dict())
    again = begin(manifest, root / "again", REFERENCE, together)
    for iteration in (1, 4):
        killed = end_of(lambda: again.train(at(iteration, die)), together)  # noqa: B023
        found[f"killed at {iteration}"] = killed
        torch.manual_seed(rank)  # another process would stand elsewhere
        again = resume(root / "again", together=together)
    again.train()

    # The second process alone is told to stop: after a step, and before an evaluation.
    told = begin(manifest, root / "told", S4, together)
    for iteration in (1, 3):
        stop = Stop()
        ask = at(iteration, lambda: setattr(stop, "asked", rank == 1))  # noqa: B023
        found[f"told at {iteration}"] = end_of(lambda: told.train(ask, stop), together)  # noqa: B023
        told = resume(root / "told", together=together)
        found[f"goes on from after {iteration}"] = told.iteration
    told.train()

    # The second process's gradient is no number.
    bad, problems = begin(manifest, root / "bad", S4, together), list[str]()
    weight = next(p for p in bad.network.parameters() if p.requires_grad)

    def spoiled(gradient: Tensor) -> Tensor:
        return gradient * torch.nan if rank == 1 and bad.iteration == 1 else gradient

    weight.register_hook(spoiled)
    bad.train(on_problem=problems.append)
    found["problems"] = problems
    torch.save(found, root / f"found-{rank}.pt")

    # The second process dies.
    dead = begin(manifest, root / "dead", S4, together)
    try:
        dead.train(at(3, lambda: os._exit(9) if rank == 1 else None))
    except ComboError as error:
        found["dead"] = str(error)
    torch.save(found, root / f"found-{rank}.pt")
    os._exit(0)


if __name__ == "__main__":
    number, port, file, folder = sys.argv[1:]
    os.environ |= {
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    with processes.joined() as both:
        main(int(number), load_manifest(Path(file)), Path(folder), both)
