"""What training and evaluation ask of a network, whatever it looks like inside."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .optimiser import parameter_groups
from .recomputed import recompute_blocks

IGNORED = 255
"""What stands in a label map where no class does."""


def label_values(labels: Tensor) -> Tensor:
    """Which values each map has: [..., H, W] integers -> [..., 256] bool, on the labels' device.

    Raises ValueError for values that are not 0..255.
    """
    flat = labels.flatten(-2).long()
    if labels.dtype != torch.uint8 and bool(((flat < 0) | (flat > IGNORED)).any()):
        raise ValueError(f"labels from {int(flat.min())} to {int(flat.max())}, not 0..{IGNORED}")
    found = torch.zeros(*flat.shape[:-1], IGNORED + 1, dtype=torch.bool, device=labels.device)
    return found.scatter_(-1, flat, True)


class Network(nn.Module, ABC):
    """A network for audio-visual segmentation.

    A parameter or buffer whose shape depends on the number of classes has "class" in its name: it
    starts anew where a run begins with the network of another data set. One with a row for each
    frame of a clip has "audio_pos" in it: of longer clips the further rows start anew.
    """

    @abstractmethod
    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Any:
        """frames, maskige: [B, T, 3, H, W] RGB 0..255, maskige None where the settings read none;
        sound: [B, T, D]; valid: [B, T] bool, the frames that exist, on the CPU.

        What it returns is for `scores` and the network's criterion.
        """

    @abstractmethod
    def scores(self, out: Any) -> Tensor:
        """[B, T, K, H, W] float32, the more the likelier; zeros for frames that are not valid."""

    def clip_scores(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Iterator[Tensor]:
        """`scores` of one clip after the other, [T, K, H, W], as if each had come alone.

        Here each does; a network that can keep clips apart in one forward has its own way.
        """
        for number in range(len(frames)):
            one = slice(number, number + 1)
            seen, there = (None if of is None else of[one] for of in (maskige, valid))
            yield self.scores(self(frames[one], seen, sound[one], there))[0]

    @property
    def all_learn(self) -> bool:
        """Whether each parameter gets a gradient in every step. Where a network does not know that,
        several processes look in each step for those without one, which takes time."""
        return False

    @property
    def parts(self) -> Sequence[nn.Module]:
        """What computes nearly all, in modules that torch.compile takes whole; those of one kind
        have one code, which is compiled once."""
        return ()

    def compile_parts(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Has torch.compile take over the parts, each as one graph; names of tensors stay.

        In this process, code may then be compiled for 64 kinds of calls instead of 8, beyond which
        a part of one graph is an error: training and evaluation, precisions, numbers of frames.
        """
        limit = torch.compiler.config.recompile_limit
        torch.compiler.config.recompile_limit = max(limit, 64)
        for part in self.parts:
            part.compile(fullgraph=True, backend=backend)

    def recompute(self, everything: bool) -> None:
        """Has the encoders' blocks, or all, be computed again in the backward direction."""
        encoders = [module for module in self.modules() if isinstance(module, Backbone)]
        for module in [self] if everything else encoders:
            recompute_blocks(module)

    def parameter_groups(
        self, lr: float, weight_decay: float, backbone_lr_factor: float
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimiser."""
        return parameter_groups(self, lr, weight_decay, backbone_lr_factor)


class NetworkCriterion(nn.Module, ABC):
    """What a network is to learn.

    Losses are sums over a batch, each over a divisor: a number of targets, say. Where a batch is
    computed in parts, a part's losses are divided by what belongs to the whole batch, so that the
    parts' losses add up to the batch's, and their gradients too.
    """

    @abstractmethod
    def divisors(self, labels: Tensor, annotated: Tensor, present: Tensor) -> Tensor:
        """What the losses of a batch are divided by: a tensor of any shape, on the
        labels' device. Those of two batches add up to those of both together, wherever they are.

        labels: [B, T, H, W]; annotated, present: [B, T] bool, on the CPU, the frames to learn from
        and the frames that exist. Costs no wait for a device that the labels are on.
        """

    @abstractmethod
    def forward(
        self,
        out: Any,
        labels: Tensor,
        *,
        annotated: Tensor,
        values: Tensor | None = None,
        divisors: Tensor | None = None,
        draws: Sequence[torch.Generator] | None = None,
    ) -> "Losses":
        """Of a network's output for some clips.

        values: `label_values` of the labels before augmentation, on the CPU, so that nobody has
        to ask the device for them. divisors: of the batch that these clips are a part of; when
        left out, these clips are the batch. draws: what each clip's random numbers come from, on
        the labels' device; when left out, PyTorch's own generator.
        """


class Losses(dict[str, Tensor]):
    """What a criterion gives: losses by name, before their weights; `weighted` after them, `total`
    their sum. A name's first two words, as in loss_mask_3, are what its weight is known by.
    """

    def __init__(self, unweighted: dict[str, Tensor], weights: dict[str, float]) -> None:
        super().__init__(unweighted)
        factors = {name: weights["_".join(name.split("_")[:2])] for name in unweighted}
        self.stacked: Tensor = torch.cat(
            [
                torch.stack([unweighted[name] for name in names]) * factor
                for factor, names in groupby(unweighted, key=factors.__getitem__)
            ]
        )
        """Each loss times its weight, in the order of the names: one array to keep for the log."""

    @property
    def weighted(self) -> dict[str, Tensor]:
        """Each loss times its weight."""
        return dict(zip(self, self.stacked.unbind(), strict=True))

    @property
    def total(self) -> Tensor:
        """What training minimises."""
        return self.stacked.sum()
