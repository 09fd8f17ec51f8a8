"""A loss or gradient that is not a number costs its step, and nothing that was there before."""

import math
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from combo.pipeline.devices import threads
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.stopping import Stop, Stopped
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import checkpoint, health
from combo.pipeline.train.loader import StoredBatch
from combo.pipeline.train.pace import Step
from combo.pipeline.train.presets import Precision
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume
from combo.pipeline.train.trainer import Trainer

from .test_nothing_is_lost import equal, lines, network_of, same, tiny
from .together import Killed, at, die


def spoil(trainer: Trainer, *iterations: int) -> None:
    """Makes a gradient of these iterations (counted from 1) NaN, under a loss that is finite."""
    weight = next(p for p in trainer.network.parameters() if p.requires_grad)

    def spoiled(gradient: Tensor) -> Tensor:
        return gradient * math.nan if trainer.iteration + 1 in iterations else gradient

    weight.register_hook(spoiled)


def test_a_gradient_that_is_no_number_costs_its_step_and_nothing_else(
    finished: Manifest, tmp_path: Path
) -> None:
    run, told = RunFolder(tmp_path / "run"), list[str]()
    trainer = tiny(finished, run.root)
    spoil(trainer, 3)
    states: list[dict[str, Tensor]] = []
    rates: list[float] = []

    def look(_: Step) -> None:
        states.append(network_of(trainer))
        (used,) = {group["lr"] / group["initial_lr"] for group in trainer.optimiser.param_groups}
        rates.append(used)

    trainer.train(look, on_problem=told.append)
    assert equal(states[1], states[2])
    assert not equal(states[2], states[3])
    assert all(value.isfinite().all() for value in states[-1].values() if value.is_floating_point())

    train = [line for line in lines(run) if line["kind"] == "train"]
    assert [line["skipped"] for line in train] == [0, 0, 1, 1, 1, 1]
    assert [line["gradient_norm"] is None for line in train] == [False, False, True] + [False] * 3
    settings = trainer.settings  # the schedule goes by batches, taken or not
    assert settings.warmup == 20
    assert rates == pytest.approx([(i + 1) / 20 * (1 - i / 6) ** settings.power for i in range(6)])
    logged = [line["learning_rate"] / settings.learning_rate for line in train]
    assert logged == pytest.approx(rates)
    (entry,) = (line for line in lines(run) if line["kind"] == "skipped")
    assert (entry["iteration"], entry["loss"], entry["gradient_norm"]) == (
        3, train[2]["total"], None,
    )  # fmt: skip

    file = run.skipped / "000003.pt"
    (line,) = told
    assert "the gradient is nan at iteration 3: step not taken" in line
    assert all(text in line for text in (*entry["clips"], str(file)))
    kept = torch.load(file, weights_only=True)
    assert equal(dict(kept["network"]), states[1])
    assert (kept["iteration"], kept["clips"]) == (2, entry["clips"])

    # What was kept does the step again: the loss is that of the log.
    again = resume(run.root)
    again.network.load_state_dict(kept["network"])
    reader, again.iteration = again.readers["train"], kept["iteration"]
    batch = reader.read([reader.plan.clips.index(name) for name in kept["clips"]])
    assert equal(kept["batch"], {k: v for k, v in vars(batch).items() if k != "clips"})
    again.network.train()
    with threads(settings.threads):
        assert float(again._step(batch, Stop())["total"]) == train[2]["total"]


def test_a_run_is_killed_after_a_skipped_step_and_ends_with_the_same_bits(
    finished: Manifest, tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        trainer = tiny(finished, tmp_path / name, "checkpoint_every=2")
        spoil(trainer, 2)
        if name == "whole":
            trainer.train()
            continue
        with pytest.raises(Killed):
            trainer.train(at(3, die))
        resume(tmp_path / name).train()
    assert same(*(RunFolder(tmp_path / name) for name in ("whole", "killed")))
    assert checkpoint.load(tmp_path / "whole" / "last.pt").skipped == 1


def test_several_in_a_row_end_the_run_with_a_good_checkpoint_and_a_way_out(
    finished: Manifest, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    trainer, states = tiny(finished, run.root, "log_every=6"), list[dict[str, Tensor]]()
    spoil(trainer, 2, 3, 4)
    step = trainer.optimiser.step

    def counted() -> None:
        step()
        states.append(network_of(trainer))

    trainer.optimiser.step = counted
    with pytest.raises(
        ComboError, match=r"the gradient is nan at iteration 4 .* 3 times in"
    ) as end:
        trainer.train()
    sound = f"--set initialisation={run.previous}, and a lower learning_rate; else"
    for text in (sound, f"combo train --resume {run.root}"):
        assert text in str(end.value)
    assert "\n" not in str(end.value)
    assert sorted(path.name for path in run.skipped.iterdir()) == [
        "000002.pt", "000003.pt", "000004.pt",
    ]  # fmt: skip
    last = checkpoint.load(run.last)
    assert (last.iteration, last.skipped, last.in_a_row) == (4, 3, 3)
    assert equal(dict(last.network), states[0])

    # The network from before the first of them is kept, whatever comes.
    shutil.copytree(run.root, tmp_path / "again")
    again = resume(tmp_path / "again")
    spoil(again, 5)
    with pytest.raises(ComboError, match=r"at iteration 5 .* 4 times in a row"):
        again.train()
    assert checkpoint.load(again.run.last).iteration == 5
    assert checkpoint.load(again.run.previous).iteration == 0

    resume(run.root).train()
    assert checkpoint.load(run.last).iteration == 6
    assert checkpoint.load(run.last).in_a_row == 0

    # Had the run been stopped there by hand, it would have gone on alike.
    other = tiny(finished, tmp_path / "other", "log_every=6")
    spoil(other, 2, 3, 4)
    stop = Stop()
    other.optimiser.register_step_post_hook(
        lambda *_: setattr(stop, "asked", other.iteration + 1 == 3)
    )
    with pytest.raises(Stopped):
        other.train(stop=stop)
    again = resume(tmp_path / "other")
    spoil(again, 4)
    with pytest.raises(ComboError, match="3 times in a row"):
        again.train()
    resume(tmp_path / "other").train()
    assert same(RunFolder(tmp_path / "other"), run)


def test_a_loss_that_is_no_number_ends_the_run_with_a_way_out(
    finished: Manifest, tmp_path: Path
) -> None:
    trainer = tiny(finished, tmp_path / "run")
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(math.nan)
    with pytest.raises(ComboError, match=r"the loss is nan at iteration 3 .*lower learning_rate"):
        trainer.train()
    assert [line["total"] for line in lines(trainer.run) if line["kind"] == "train"] == [None] * 2


def test_scores_that_are_no_numbers_end_an_evaluation_in_one_line(
    finished: Manifest, tmp_path: Path
) -> None:
    trainer = tiny(finished, tmp_path / "run", "evaluate_every=1")
    scores = trainer.network.scores
    trainer.network.scores = lambda out: scores(out) * math.nan
    with pytest.raises(ComboError, match=r"scores of clip \S+ are not numbers: .*precision=fp32"):
        trainer.train()


@pytest.mark.parametrize(
    ("precision", "wider"),
    [
        ("fp16", ", or set precision=bf16 or fp32;"),
        ("bf16", ", or set precision=fp32;"),
        ("fp32", ";"),
    ],
)
def test_a_run_that_ends_is_told_of_wider_numbers_where_there_are_some(
    tmp_path: Path, precision: Precision, wider: str
) -> None:
    run, batch = RunFolder(tmp_path), cast("StoredBatch", None)
    bad = health.BadStep(7, math.nan, 1.0, 3, batch)
    assert f"a lower learning_rate{wider} else go on" in str(health.several(bad, run, precision))
    assert f"initialisation={run.previous}," in str(health.several(bad, run, precision))
    run.best.touch()
    assert f"initialisation={run.best}," in str(health.several(bad, run, precision))


def test_what_half_precision_skips_is_counted_and_shown(finished: Manifest, tmp_path: Path) -> None:
    trainer = tiny(finished, tmp_path / "run", "precision=fp16")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**110, backoff_factor=2.0**-52)
    told, problems = list[Step](), list[str]()
    trainer.train(told.append, on_problem=problems.append)
    assert [step.skipped for step in told] == [1, 2, 2, 2, 2, 2]
    train = [line for line in lines(trainer.run) if line["kind"] == "train"]
    assert [line["skipped"] for line in train] == [1, 2, 2, 2, 2, 2]
    assert [math.log2(line["loss_scale"]) for line in train] == [58, 6, 6, 6, 6, 6]
    assert problems == []
    assert not trainer.run.skipped.exists()
