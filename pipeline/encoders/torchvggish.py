"""VGGish by the package torchvggish, its own front-end and network: slow, and what `vggish` is held
against on real sounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encoder import Encoder, misfit

if TYPE_CHECKING:
    from torch import Tensor

    from .encoder import Encode, FrontEnd

AT_ONCE = 64
"""Patches a batch."""


def _front_end() -> "FrontEnd":
    import torch
    from torchvggish.vggish_input import waveform_to_examples

    def patches(windows: "Tensor", at_once: int) -> "Tensor":
        del at_once
        sounds = (window.double().numpy() for window in windows)
        made: list[Any] = [waveform_to_examples(sound, 16_000, False) for sound in sounds]
        return torch.cat([torch.from_numpy(each).float() for each in made])

    return patches


def _open(weights: Mapping[str, Path], device: str, memory_limit: int | None) -> "Encode":
    import torch
    from torchvggish import torchvggish

    from ..state_files import load_state

    del memory_limit
    network: Any = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
    try:
        network.load_state_dict(load_state(weights["vggish"]))
    except RuntimeError as error:
        raise misfit(error) from None
    network = network.eval().to(device)

    @torch.inference_mode()
    def encode(patches: "Tensor") -> "Tensor":
        some = patches[:, None].split(AT_ONCE)
        return torch.cat([network(each.to(device)) for each in some]).cpu()

    return encode


TORCHVGGISH = Encoder(_open, ("vggish",), front_end=_front_end)
