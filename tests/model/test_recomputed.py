"""Blocks that are computed again give the same gradients, bit for bit, and keep less."""

import pytest
import torch
from torch import Tensor

from combo.model import Combo, Criterion

from .test_network import TINY


def step(backbone: str, everything: bool | None) -> tuple[dict[str, Tensor], int]:
    """All gradients of a step with dropout, and how many numbers it kept for them."""
    torch.manual_seed(0)
    settings = {**TINY, "backbone": backbone, "mask_points": 64, "fusion_dropout": 0.1}
    net = Combo.from_preset("combo-r50-s4", **settings).train()
    if everything is not None:
        net.recompute(everything)
    pictures = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 2, (2, 3, 64, 64), dtype=torch.uint8)
    sound = torch.rand(2, 3, 8)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(pictures, pictures, sound)
    torch.manual_seed(2)
    Criterion(net.settings)(out, labels).total.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return found, sum(kept.values())


@pytest.mark.parametrize("backbone", ["resnet10t", "pvt_v2_b0"])
def test_recomputed_blocks_give_the_same_gradients_and_keep_less(backbone: str) -> None:
    (plain, most), (encoder, fewer), (every, fewest) = (
        step(backbone, everything) for everything in (None, False, True)
    )
    assert most > fewer > fewest
    assert plain.keys() == encoder.keys() == every.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, encoder[name]), name
        assert torch.equal(gradient, every[name]), name
