"""What a run never loses: the work since its last checkpoint when it is told to go, its bits when
it is killed, and the batch's gradient in parts. (Its network when a gradient is not a number:
test_not_a_number.py.)"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.stopping import Stop, Stopped
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.pace import Pace, Step
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import resume, start
from combo.pipeline.train.trainer import Trainer

from .conftest import OF_PACE, finished_run, small_run
from .together import Killed, at, die

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=2",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=6",
    "batch_size=2", "micro_batch=1", "evaluate_every=4", "log_every=1", "threads=1", "device=cpu",
    "augment=resize-crop-colour-flip",
)  # fmt: skip
BY_CHANCE = (
    "fidelity=reference", "fusion_dropout=0.5", "drop_path=0.5", "ema=0.9", "precision=fp16",
)  # fmt: skip
"""Layers that draw, and everything else that a checkpoint holds."""


def tiny(manifest: Manifest, folder: Path, *changes: str) -> Trainer:
    return small_run(manifest, folder, *TINY, *changes)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An undisturbed run in micro-batches; not to be changed."""
    return finished_run(prepared, tmp_path_factory, TINY)


def lines(run: RunFolder) -> list[dict[str, Any]]:
    def no_json(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    found = run.metrics.read_text().splitlines()
    return [json.loads(line, parse_constant=no_json) for line in found]


def steps_shown(run: RunFolder) -> dict[str, list[int]]:
    """By TensorBoard, of each curve."""
    found = EventAccumulator(str(run.tensorboard)).Reload()
    return {tag: [each.step for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def log(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in OF_PACE} for line in lines(run)]


def equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def same(run: RunFolder, other: RunFolder) -> bool:
    """Whether two runs told the same and ended with the same bits of everything."""
    one, two = (vars(checkpoint.load(each.last)) for each in (run, other))
    assert one.pop("run") != two.pop("run") or run.root == other.root
    del one["settings"], two["settings"]  # which say how often it is saved
    return equal(one, two) and log(run) == log(other)


def network_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


# -- kills and checkpoints -------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "changes"), [(1, ()), (2, ()), (3, BY_CHANCE)])
def test_a_run_killed_at_random_steps_ends_with_the_same_bits(
    trained: RunFolder, finished: Manifest, tmp_path: Path, seed: int, changes: tuple[str, ...]
) -> None:
    if changes:
        tiny(finished, tmp_path / "whole", *changes).train()
        trained = RunFolder(tmp_path / "whole")
    draw, folder = random.Random(seed), tmp_path / "run"
    trainer, kills = tiny(finished, folder, f"checkpoint_every={seed % 2 + 1}", *changes), 0
    while kills < 4:
        with pytest.raises(Killed):
            trainer.train(at(draw.randint(trainer.iteration + 1, 6), die))
        kills += 1
        torch.manual_seed(draw.randint(0, 99))  # another process would stand elsewhere
        trainer = resume(folder)
        if trainer.iteration == 6:
            break
    trainer.train()
    assert same(RunFolder(folder), trained)


def test_checkpoints_come_by_iterations_and_by_time_apart_from_evaluations(
    finished: Manifest, tmp_path: Path
) -> None:
    run, seen = RunFolder(tmp_path / "run"), list[tuple[int, int | None]]()

    def look(_: Step) -> None:
        paths = (run.last, run.previous)
        seen.append(tuple(checkpoint.load(p).iteration if p.exists() else None for p in paths))

    for folder, changes, expected in (
        ("every", ("checkpoint_every=2",), [(0, None), (0, None), (2, 0), (2, 0), (4, 2), (4, 2)]),
        ("time", ("checkpoint_minutes=1e-9",), [(0, None), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]),
        ("end", ("checkpoint_minutes=0",), [(0, None)] * 6),
    ):
        run, seen = RunFolder(tmp_path / folder), []
        tiny(finished, run.root, "augment=none", *changes).train(look)
        assert seen == expected, folder
        assert checkpoint.load(run.last).iteration == 6
    for wrong in ("checkpoint_every=-1", "checkpoint_minutes=-1", "checkpoint_minutes=.inf"):
        with pytest.raises(ComboError, match="must be 0 or more"):
            tiny(finished, tmp_path / "wrong", wrong)


def test_a_damaged_last_checkpoint_names_the_one_before_which_ends_with_the_same_bits(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(Killed):
        tiny(finished, run.root, "checkpoint_every=1").train(at(4, die))
    run.last.write_bytes(run.last.read_bytes()[:5000])
    with pytest.raises(ComboError, match=r"last\.pt is cut short") as caught:
        resume(run.root)
    command = str(caught.value).rpartition("cp ")[2].split()
    assert command == [str(run.previous), str(run.last)]
    assert f"{run.previous} (iteration 2)" in str(caught.value)
    shutil.copy(*command)
    resume(run.root).train()
    assert same(run, trained)


def test_a_run_that_is_told_to_go_finishes_its_step_and_saves_it(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    run, stop = RunFolder(tmp_path / "run"), Stop()
    with pytest.raises(Stopped, match=f"combo train --resume {run.root}"):
        tiny(finished, run.root).train(at(3, lambda: setattr(stop, "asked", True)), stop)
    assert checkpoint.load(run.last).iteration == 3
    resume(run.root).train()
    assert same(run, trained)


def test_a_run_that_is_told_to_go_while_it_evaluates_evaluates_again(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    run, stop = RunFolder(tmp_path / "run"), Stop()
    trainer = tiny(finished, run.root)
    scores = trainer.network.scores

    def scored(out: Any) -> Tensor:
        stop.asked = True  # the first clip of two
        return scores(out)

    trainer.network.scores = scored
    with pytest.raises(Stopped):
        trainer.train(stop=stop)
    assert (checkpoint.load(run.last).iteration, checkpoint.load(run.last).evaluated) == (4, 0)
    assert [line["kind"] for line in lines(run)] == ["train"] * 4
    # Killed before a checkpoint says that it is evaluated: it is done once more, and told once.
    with pytest.raises(Killed):
        resume(run.root).train(on_evaluation=lambda *_: die())
    assert [line["kind"] for line in lines(run)] == ["train"] * 4 + ["val"]
    resume(run.root).train()
    assert same(run, trained)
    told = steps_shown(run)
    assert told["val/M_J"] == [4, 6]
    assert told["train/total"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_signals_end_a_run_that_then_ends_with_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    many = ("iterations=24", "evaluate_every=12", "checkpoint_every=3")
    settings = [word for each in (*TINY, *many) for word in ("--set", each)]
    run = RunFolder(tmp_path / "run")
    begin = ("--preset", "combo-small-s4", "--manifest", str(prepared), "--out", str(run.root))
    words = ["train", *begin, *settings]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL):
        before = len(lines(run)) if run.metrics.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "combo", *words], stderr=subprocess.PIPE, text=True
        )
        while not run.metrics.exists() or run.metrics.read_bytes().count(b"\n") < before + 3:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate()
        if number == signal.SIGKILL:
            assert process.returncode == -number
        else:
            assert process.returncode == 75
            assert f"combo: told to stop; go on with: combo train --resume {run.root}" in said
            assert checkpoint.load(run.last).iteration == lines(run)[-1]["iteration"]
        words = ["train", "--resume", str(run.root)]
    resume(run.root).train()
    tiny(load_manifest(prepared), tmp_path / "whole", *many).train()
    assert same(run, RunFolder(tmp_path / "whole"))


# -- micro-batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["combo-small-avss", "combo-small-s4"])
def test_micro_batches_give_the_losses_and_the_gradient_of_the_batch(
    finished: Manifest, tmp_path: Path, preset: str
) -> None:
    # AVSS: clips of five and ten frames. The reference's queries see the other clips of a batch.
    size = 3 if preset.endswith("avss") else 4
    found: list[tuple[dict[str, Any], Tensor]] = []
    for micro in (size, 1):
        changes = ("fusion_dropout=0.0", "fidelity=paper", "iterations=1",
                   f"batch_size={size}", f"micro_batch={micro}", "clip_norm=1e9")  # fmt: skip
        trainer = start(finished, preset, [*TINY, *changes], tmp_path / str(micro))
        gradients: list[Tensor] = []

        def keep(*_: object, net: Any = trainer.network, to: Any = gradients) -> None:
            to += [p.grad.flatten() for p in net.parameters() if p.grad is not None]

        trainer.optimiser.register_step_pre_hook(keep)
        trainer.train()
        found.append((log(trainer.run)[0], torch.cat(gradients).double()))
    (whole, gradient), (parts, summed) = found
    names = [name for name in whole if name.startswith("loss_")]
    assert {name.split("_")[1] for name in names} == {"ce", "mask", "dice", "cosine"}
    for name in (*names, "total", "gradient_norm"):
        assert parts[name] == pytest.approx(whole[name], rel=2e-4), name
    assert torch.cosine_similarity(gradient, summed, dim=0) > 1 - 1e-6
    assert float((gradient - summed).norm() / gradient.norm()) < 1e-3


@pytest.mark.slow
def test_a_compiled_run_trains_alike(
    finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        "iterations=2",
        "evaluate_every=2",
        "decoder_layers=1",
        "pixel_layers=1",
        "sem=shared",
    )
    plain = tiny(finished, tmp_path / "plain", *changes)
    compiled = tiny(finished, tmp_path / "compiled", *changes, "compile=true")
    asked, by_default = list[str](), compiled.network.compile_parts

    def with_another_backend() -> None:
        """What needs no C++ compiler; dropout is drawn otherwise."""
        asked.append("to be compiled")
        by_default("aot_eager")

    compiled.network.compile_parts = with_another_backend
    # As on a GPU whose speed is known, where the first step's products are counted.
    monkeypatch.setattr(Pace, "_peak", lambda _: 1e12)
    for trainer in (plain, compiled):
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
    for one, two in zip(log(plain.run), log(compiled.run), strict=True):
        assert one.pop("kind") == two.pop("kind")
        one.pop("precision", None), two.pop("precision", None)
        assert one == pytest.approx(two, rel=1e-3)
    assert asked == ["to be compiled"]
    assert compiled.run.settings().train.compile
    assert "mfu" in compiled.run.metrics.read_text()


@pytest.mark.parametrize(("told", "evaluating"), [(True, False), (True, True), (False, False)])
def test_a_signal_that_kills_the_compiler_is_still_an_order_to_stop(
    finished: Manifest, tmp_path: Path, told: bool, evaluating: bool
) -> None:
    """Schedulers send it to all processes of a job; the job must be queued again."""
    changes = ("compile=true", "evaluate_every=1")
    trainer, stop = tiny(finished, tmp_path / "run", *changes), Stop()
    by_default = trainer.network.compile_parts

    def killed(graph: torch.fx.GraphModule, *_: object) -> Any:
        if torch.is_grad_enabled() == evaluating:
            return graph.forward
        stop.asked = told
        raise RuntimeError("g++ was killed")

    trainer.network.compile_parts = lambda: by_default(killed)
    before = network_of(trainer)
    with pytest.raises(Stopped if told else BackendCompilerFailed):
        trainer.train(stop=stop)
    last = checkpoint.load(trainer.run.last)
    assert (last.iteration, last.evaluated) == (evaluating, 0)
    assert equal(dict(last.network), before) != evaluating


# -- files of weights ------------------------------------------------------------------------------


def test_a_checkpoint_is_begun_with_as_a_file(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    network = checkpoint.load(trained.last).network
    converted = tmp_path / "converted.pt"
    torch.save({"network": network, "vggish": {}}, converted)
    for file in (trained.last, converted):
        begun = tiny(finished, tmp_path / file.stem, f"initialisation={file}")
        assert equal(dict(begun.network.state_dict()), dict(network))
    published = tmp_path / "published.pth"
    torch.save({"model": {"sem_seg_head.weight": torch.ones(2)}}, published)
    with pytest.raises(ComboError, match=r"published\.pth: not a published COMBO checkpoint"):
        tiny(finished, tmp_path / "other", f"initialisation={published}")
    published.write_bytes(b"no weights")
    with pytest.raises(ComboError, match=r"published\.pth: damaged, or not a weights file"):
        tiny(finished, tmp_path / "other", f"initialisation={published}")
