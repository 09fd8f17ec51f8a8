"""The mean of a run's networks: what it is, and whose the evaluations and the best network are."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.evaluate import measure, open_run
from combo.pipeline.train.run_folder import RunFolder

from .conftest import small_run

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=3",
    "evaluate_every=3", "log_every=1", "warmup=0", "device=cpu",
)  # fmt: skip


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_mean_of_the_networks_is_evaluated_and_the_best(
    finished: Manifest, tmp_path: Path, checkpointing: str
) -> None:
    changes = ("ema=0.75", f"checkpointing={checkpointing}")
    trainer, networks = small_run(finished, tmp_path / "run", *TINY, *changes), []
    begun = {name: value.clone() for name, value in trainer.network.state_dict().items()}

    def keep(_: object) -> None:
        networks.append({k: v.clone() for k, v in trainer.network.state_dict().items()})

    trainer.train(keep)
    mean: dict[str, Tensor] = begun
    for network in networks:
        mean = {name: 0.75 * value + 0.25 * network[name] for name, value in mean.items()}
    run = RunFolder(tmp_path / "run")
    kept, last = checkpoint.network_of(run.best), checkpoint.load(run.last)
    learned = [name for name, _ in trainer.network.named_parameters()]
    for name in learned:
        torch.testing.assert_close(kept[name], mean[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(last.averaged[name], kept[name])
    assert not all(torch.equal(last.network[name], kept[name]) for name in learned)
    opened, average = open_run(run, torch.device("cpu")), trainer.average
    assert average is not None
    clip = trainer.readers["val"].read([0]).to(torch.device("cpu"))
    with torch.no_grad():
        mine, saved = (
            net.scores(net(clip.frames, clip.maskige, clip.sound, clip.present))
            for net in (average.network, opened)
        )
    assert torch.equal(mine, saved), "it computes with its own parameters"
    assert measure(opened, trainer.readers["val"], torch.device("cpu")).m_j == trainer.best


def test_a_mean_that_never_moves_or_grows_is_refused(finished: Manifest, tmp_path: Path) -> None:
    for wrong in ("ema=1", "ema=-0.1"):
        with pytest.raises(ComboError, match=r"must be 0 \(none\), or below 1"):
            small_run(finished, tmp_path / "run", wrong)
