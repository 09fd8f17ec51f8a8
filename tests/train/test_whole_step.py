"""A whole step of the trainer on a GPU, from the batch to the mean of the networks, waits for the
costs of the matching alone.

Shown without a GPU (tests/fake_gpu.py): what PyTorch makes of a device that is there only, such as
its events and random generators, is stood in for.
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import GPU, answered, autocast, backward, fake_gpu
from torch import Tensor
from torch.cuda.amp import common

from combo.pipeline.jobs.stopping import Stop
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import draws, processes
from combo.pipeline.train.trainer import Trainer

from .conftest import small_run

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=2",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "batch_size=4",
    "ema=0.9", "device=cpu", "augment=resize-crop-colour-flip",
)  # fmt: skip
CPU = torch.device("cpu")


class Event:
    """As `torch.cuda.Event`, of which each would ask the driver for one."""

    def record(self, stream: str) -> None:
        assert stream == f"that of {GPU}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the host asked for. Puts its parts in the place of a GPU's."""

    def of_cpu(*numbers: Any) -> list[torch.Generator]:
        return generators(*numbers[:4])

    def autocast_of(
        _: str, dtype: torch.dtype | None = None, enabled: bool = True
    ) -> AbstractContextManager[None]:
        return autocast(dtype if enabled else None)

    def backward_of(loss: Tensor) -> None:
        for leaf, gradient in backward(loss).items():
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    generators = draws.generators
    monkeypatch.setattr(draws, "generators", of_cpu)
    monkeypatch.setattr(processes, "choose_device", lambda name: {"cuda": GPU, "cpu": CPU}[name])
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _: module)  # made where it is to be
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", "that of {}".format)
    monkeypatch.setattr(torch, "autocast", autocast_of)
    monkeypatch.setattr(Tensor, "backward", backward_of)
    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    return answered(monkeypatch)


def on_gpu(trainer: Trainer) -> Trainer:
    """A run that is about to begin, there instead."""
    train = replace(trainer.settings, device="cuda")
    settings = replace(trainer.run.settings(), train=train)
    with GPU:
        network = settings.build().train()
    return Trainer(trainer.run, settings, network, trainer.readers)


# Of copying a network for the mean.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("micro_batch", [4, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_whole_step_on_a_gpu_waits_for_the_matching_alone(
    finished: Manifest,
    tmp_path: Path,
    asked: list[tuple[int, ...]],
    precision: str,
    micro_batch: int,
) -> None:
    changes = (*TINY, f"precision={precision}", f"micro_batch={micro_batch}")
    trainer = small_run(finished, tmp_path / "run", *changes)
    batch = trainer.readers["train"].read(range(4))
    with fake_gpu() as watch:
        there = on_gpu(trainer)
        assert there.scaler.is_enabled() == (precision == "fp16")
        watch.waits.clear()
        losses = there._step(batch, Stop())
    assert not watch.waits
    assert len(asked) == 4 / micro_batch
    assert losses["total"].device == GPU
