"""What only a GPU can show: that the host waits where it must and nowhere else, and that kernels,
kept clips and compiled parts give the numbers of a CPU there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from combo.model import Combo, Criterion
from combo.model.deformable_attention import sample_levels
from combo.model.interface import label_values
from combo.model.levels import Levels
from combo.pipeline.jobs.stopping import Stop
from combo.pipeline.manifest import Manifest
from combo.pipeline.train.augment import Augment, Recipe
from combo.pipeline.train.cache import batches
from combo.pipeline.train.loader import shuffled
from combo.pipeline.train.run_folder import RunFolder

from .test_not_a_number import spoil
from .test_nothing_is_lost import lines, tiny

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GPU = torch.device("cuda")
SMALL = {"backbone": "resnet10t", "width": 32, "heads": 4, "fusion_heads": 4, "pixel_ffn": 64,
         "pixel_layers": 2, "decoder_ffn": 64, "decoder_layers": 2, "query_count": 12,
         "image_size": 64, "mask_points": 64}  # fmt: skip


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, sound, labels, and which frames have some, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    labels[:, :, 20:50, 10:40] = 1
    annotated = torch.tensor([[True, True, False], [True] * 3])
    return frames, torch.rand(2, 3, 128, generator=generator), labels, annotated


def network() -> Combo:
    torch.manual_seed(0)
    return Combo.from_preset("combo-r50-s4", **SMALL)


def test_the_network_of_these_tests_is_one() -> None:
    """So that whoever has no GPU sees that what others will run can run."""
    frames, sound, labels, annotated = batch()
    net = network().train()
    losses = Criterion(net.settings)(
        net(frames, frames, sound, annotated), labels, annotated=annotated
    )
    assert bool(torch.isfinite(losses.total))


@on_gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_waits_for_the_matching_alone(precision: torch.dtype | None, compiled: bool) -> None:
    frames, sound, labels, annotated = batch()
    net = network().to(GPU).train()
    if compiled:
        net.compile_parts()
    criterion = Criterion(net.settings)
    values, there = label_values(labels), [each.to(GPU) for each in (frames, sound, labels)]
    frames, sound, labels = there

    def step() -> Tensor:
        with torch.autocast("cuda", precision or torch.float16, enabled=precision is not None):
            out = net(frames, frames, sound, annotated)
        losses = criterion(out, labels, annotated=annotated, values=values)
        losses.total.backward()
        net.zero_grad(set_to_none=True)
        return losses.total.detach()

    step()  # what is made once: tables of positions, kernels
    with nobody_waits():
        totals = [step() for _ in range(2)]
    assert bool(torch.isfinite(torch.stack(totals)).all())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_whole_step_of_the_trainer_waits_for_the_matching_alone(
    finished: Manifest, tmp_path: Path, precision: str, device: str
) -> None:
    """From the batch to the mean of the networks. On a CPU it shows that this can run."""
    changes = (f"precision={precision}", f"device={device}", "ema=0.9", "iterations=9")
    trainer = tiny(finished, tmp_path / "run", *changes)
    reader, there = trainer.readers["train"], torch.device(device)
    order = shuffled(len(reader), 2, 0, 0, 4)
    for number, batch in enumerate(batches(reader, order, "none", there)):
        warm = number > 1  # what is made once: tables of positions, kernels, the optimiser's state
        with nobody_waits() if warm and device == "cuda" else contextlib.nullcontext():
            losses = trainer._step(batch, Stop())
    assert losses["total"].device.type == device
    assert bool(torch.isfinite(losses["total"]))


@on_gpu
@pytest.mark.parametrize("recipe", ["colour-flip", "resize-crop-colour-flip"])
def test_augmentation_is_that_of_a_cpu(finished: Manifest, open_split, recipe: Recipe) -> None:
    stored, cpu = open_split(finished).read([0, 3, 5]), torch.device("cpu")
    draws = [torch.Generator().manual_seed(clip) for clip in range(3)]
    drawn = Augment.draw(draws, stored.to(cpu))
    there, here = (Augment(recipe)(stored.to(device), drawn) for device in (GPU, cpu))
    assert torch.equal(there.labels.cpu(), here.labels)
    torch.testing.assert_close(there.frames.cpu(), here.frames, rtol=0, atol=0.05)


@on_gpu
@pytest.mark.parametrize("where", ["device", "host", "none"])
def test_kept_clips_are_the_ones_that_are_read(finished: Manifest, open_split, where) -> None:
    reader = open_split(finished)
    order = [[3, 1], [0, 3], [2, 5]]
    for kept, read in zip(batches(reader, order, where, GPU), reader.batches(order), strict=True):
        assert kept.frames.is_cuda
        assert torch.equal(kept.held(), read.held())
        ours, theirs = kept.to(GPU), read.to(GPU)
        assert ours.clips == theirs.clips
        for name in ("frames", "maskige", "labels", "sound"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_wherever_clips_are_kept_a_run_takes_the_same_steps(
    finished: Manifest, tmp_path: Path, device: str
) -> None:
    """And a batch that is kept, since its step was bad, can be read where there is no GPU."""
    totals = []
    for where in ("device", "host", "none"):
        run = RunFolder(tmp_path / where)
        trainer = tiny(finished, run.root, f"cache={where}", f"device={device}", "iterations=3")
        spoil(trainer, 2)
        trainer.train()
        train = [line for line in lines(run) if line["kind"] == "train"]
        assert [line["skipped"] for line in train] == [0, 1, 1]
        totals.append([line["total"] for line in train])
        kept = torch.load(run.skipped / "000002.pt", weights_only=True)["batch"]
        of_batch = [value for value in kept.values() if isinstance(value, Tensor)]
        assert len(of_batch) >= 6
        assert {value.device.type for value in of_batch} == {"cpu"}
    for other in totals[1:]:
        assert other == pytest.approx(totals[0], rel=1e-2)


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_give_the_numbers_of_plain_pytorch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    levels = Levels.of([(7, 7), (14, 14), (28, 28)], 8, 4, GPU)
    grid = (3, levels.pixels, 8, 3, 4)
    given = [
        torch.randn(3, levels.pixels, 8, 32, device=GPU).to(dtype),
        torch.rand(*grid, 2, device=GPU) * 1.4 - 0.2,
        torch.rand(grid, device=GPU),
    ]
    results: list[list[Tensor]] = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        try:
            value, places, weights = inputs = [each.clone().requires_grad_() for each in given]
            out = sample_levels(value, levels, places, weights)
            up = torch.linspace(-1, 1, out.numel(), device=GPU).view_as(out).to(out.dtype)
            results.append([out, *torch.autograd.grad(out, inputs, up)])
        finally:
            torch.use_deterministic_algorithms(False)
    noise = 4 * torch.finfo(dtype).eps
    for ours, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max())
        torch.testing.assert_close(
            ours.float(), plain.float(), rtol=noise, atol=max(noise, 1e-5) * scale
        )


@on_gpu
def test_outputs_are_those_of_a_cpu() -> None:
    frames, sound, _, annotated = batch()
    net = network().eval()
    with torch.inference_mode():
        here = net.scores(net(frames, frames, sound, annotated))
        net.to(GPU)
        there = net.scores(net(frames.to(GPU), frames.to(GPU), sound.to(GPU), annotated))
    # A mask bit on the other side of its threshold moves scores; in the mean nothing moves.
    assert float((there.cpu() - here).abs().mean()) < 1e-3
