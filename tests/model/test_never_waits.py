"""A training step on a GPU asks for numbers once: the costs of the matching.

Shown without a GPU, by tensors that have a device but no numbers (tests/fake_gpu.py).
"""

import pytest
import torch
from fake_gpu import GPU, answered, autocast, backward, fake_gpu
from torch import Tensor

from combo.model import Combo, Criterion
from combo.model.interface import label_values
from combo.model.maskige import reference_palette
from combo.pipeline.train.augment import Augment, Recipe
from combo.pipeline.train.loader import Batch, StoredBatch

from .test_network import TINY

FRAMES = torch.tensor([[True] * 3, [True, True, False]])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    return answered(monkeypatch)


def step(
    precision: torch.dtype | None, valid: Tensor | None, values: Tensor | None, **settings: object
) -> int:
    """Forward, criterion and backward; returns how many parameters got a gradient."""
    settings = {**TINY, "backbone": "resnet10t", "mask_points": 64, **settings}
    with fake_gpu() as watch:
        with GPU:
            net = Combo.from_preset("combo-r50-s4", **settings).train()
        criterion = Criterion(net.settings)
        frames = torch.empty(2, 3, 3, 64, 64, dtype=torch.uint8, device=GPU)
        labels = torch.empty(2, 3, 64, 64, dtype=torch.uint8, device=GPU)
        sound = torch.empty(2, 3, 8, device=GPU)
        watch.waits.clear()
        with autocast(precision):
            out = net(frames, frames, sound, valid)
        losses = criterion(out, labels, annotated=FRAMES, values=values)
        gradients = backward(losses.total)
    assert not watch.waits
    return len(gradients)


def held() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return label_values(torch.randint(0, 3, (2, 3, 4, 4), generator=generator, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("fidelity", "valid", "precision"),
    [("reference", None, None), ("reference", FRAMES, torch.bfloat16), ("paper", FRAMES, None)],
    ids=["whole clips", "mixed lengths, bf16", "mixed lengths, paper"],
)
def test_a_step_on_a_gpu_waits_for_the_matching_alone(
    asked: list[tuple[int, ...]], fidelity: str, valid: Tensor | None, precision: torch.dtype | None
) -> None:
    learning = step(precision, valid, held(), fidelity=fidelity)
    with torch.device("meta"):
        net = Combo.from_preset(
            "combo-r50-s4", **{**TINY, "backbone": "resnet10t"}, fidelity=fidelity
        )
    assert learning == len(list(net.parameters()))
    assert len(asked) == 1


def test_labels_of_which_nothing_is_known_are_asked_for(asked: list[tuple[int, ...]]) -> None:
    with pytest.raises(RuntimeError, match="numpy"):
        step(None, None, None)
    assert not asked


@pytest.mark.parametrize("recipe", ["colour-flip", "resize-crop-colour-flip"])
def test_augmentation_on_a_gpu_waits_for_nothing(recipe: Recipe) -> None:
    augment, draws = Augment(recipe), [torch.Generator().manual_seed(clip) for clip in range(2)]
    with fake_gpu() as watch:
        pictures = torch.empty(2, 3, 3, 64, 64, dtype=torch.uint8, device=GPU)
        batch = Batch(
            frames=pictures,
            maskige=pictures,
            labels=pictures[:, :, 0],
            sound=torch.empty(2, 3, 8, device=GPU),
            present=FRAMES,
            annotated=FRAMES,
            clips=("a", "b"),
        )
        watch.waits.clear()
        after = augment(batch, augment.draw(draws, batch))
    assert not watch.waits
    assert after.frames.device == after.labels.device == GPU


def test_a_batch_on_its_way_to_a_gpu_is_not_waited_for() -> None:
    maps = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    stored = StoredBatch(
        frames=torch.zeros(2, 3, 64, 64, 3, dtype=torch.uint8).movedim(-1, 2),
        label_map=maps,
        labels=maps,
        sound=torch.zeros(2, 3, 8),
        present=FRAMES,
        annotated=FRAMES,
        clips=("a", "b"),
        palette=reference_palette(),
    )
    with fake_gpu() as watch:
        there = stored.to(GPU)
    assert not watch.waits
    assert there.maskige.shape == (2, 3, 3, 64, 64)
    assert {each.device for each in (there.frames, there.maskige, there.labels)} == {GPU}
