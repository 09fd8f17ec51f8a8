"""Settings that change speed or memory and no number are obeyed: a run would not show it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from combo.pipeline.manifest import Manifest
from combo.pipeline.train import start
from combo.pipeline.train.loader import ClipReader

from .conftest import small_run

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=3",
    "batch_size=2", "evaluate_every=100", "device=cpu", "precision=fp32",
)  # fmt: skip


@pytest.mark.parametrize(
    ("checkpointing", "again"),
    [("none", (False, False)), ("encoder", (True, False)), ("all", (True, True))],
)
def test_checkpointing_computes_blocks_again(
    finished: Manifest, tmp_path: Path, checkpointing: str, again: tuple[bool, bool]
) -> None:
    trainer = small_run(finished, tmp_path / "run", *TINY, f"checkpointing={checkpointing}")
    network: Any = trainer.network
    (*_, conv) = (each for each in network.siam_encoder.frames.modules() if type(each) is nn.Conv2d)
    watched = [conv, network.mask_decoder.layers[0].linear1]
    times = [0, 0]

    def count(number: int) -> None:
        times[number] += torch.is_grad_enabled()

    for number, module in enumerate(watched):
        module.register_forward_hook(lambda *_, number=number: count(number))
    del trainer.readers["val"]
    trainer.train()
    assert times == [3 * (1 + twice) for twice in again]


@pytest.mark.parametrize("cache", ["host", "device", "none"])
def test_clips_that_are_kept_are_read_once(
    finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    trainer = small_run(finished, tmp_path / "run", *TINY, f"cache={cache}")
    del trainer.readers["val"]
    asked, ask = list[int](), ClipReader.ask

    def noted(reader: ClipReader, clips: Any) -> Any:
        asked.extend(clips)
        return ask(reader, clips)

    monkeypatch.setattr(ClipReader, "ask", noted)
    trainer.train()
    if cache == "none":
        assert len(asked) == 3 * 2
    else:
        assert asked == [*range(len(trainer.readers["train"]))]


@pytest.mark.parametrize(
    ("preset", "asked", "bf16", "taken"),
    [
        ("combo-r50-avss", (), True, "bf16"),
        ("combo-r50-avss", (), False, "fp16"),
        ("combo-r50-avss", ("precision=fp16",), True, "fp16"),
        ("combo-r50-s4", (), True, "fp32"),
    ],
)
def test_a_run_takes_bf16_where_the_device_has_it(
    finished: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    asked: tuple[str, ...],
    bf16: bool,
    taken: str,
) -> None:
    monkeypatch.setattr(start, "has_bf16", lambda _: bf16)
    tiny = [each for each in TINY if not each.startswith("precision")]
    own = ("backbone=resnet10t", "initialisation=random", "micro_batch=1")
    trainer = start.start(finished, preset, [*tiny, *own, *asked], tmp_path / "run")
    assert trainer.settings.precision == taken
    assert trainer.run.settings().train.precision == taken
