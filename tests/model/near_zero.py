"""Bits of the attention masks that float arithmetic leaves open.

A key is open to a query where the logit of its last mask is not negative. Where the public
network's own logit is zero within float noise, the processor, the number of threads and the kernels
decide on which side it falls, and later layers of that frame visibly follow.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from combo.model import Combo

from .golden import DATA, SETS, key_side

FILE = DATA / "r50_s4_near_zero.json"

Bit = tuple[int, int, int, int]
"""Prediction set, frame of the batch, query, key."""


@dataclass(frozen=True)
class NearZero:
    """The public network's open bits of one batch."""

    margin: float
    """Logits as near to zero are listed; in deviations of their set's mask logits."""
    noise: float
    """How far a float32 run was seen from another one, in the same unit."""
    logits: dict[Bit, float]
    """In the same unit."""

    @classmethod
    def of(cls, case: str) -> "NearZero":
        """`outputs` (also the batch of `fully_annotated`), or `first_frame_only`."""
        read = json.loads(FILE.read_text())
        logits = {tuple(bit): logit for *bit, logit in read[case]["bits"]}
        return cls(read["margin"], read["noise"], logits)

    @property
    def most(self) -> int:
        """So many bits at most may differ of themselves: those within the noise that was seen."""
        return sum(abs(logit) <= self.noise for logit in self.logits.values())

    def open(self, of_set: int, shape: tuple[int, ...]) -> np.ndarray:
        """Which of a set's bits [frames, queries, keys] may differ."""
        mask = np.zeros(shape, bool)
        for number, *place in self.logits:
            if number == of_set:
                mask[tuple(place)] = True
        return mask


@contextmanager
def settled(net: Combo, sides: dict[Bit, float]) -> Iterator[None]:
    """The network takes these sides where its masks have these bits, and its own everywhere else.

    sides: of each bit a number with the sign that its logit is to have.
    """
    sets = itertools.cycle(range(SETS - 1))

    def take_sides(_: nn.Module, given: tuple[Tensor], open_to: Tensor) -> Tensor:
        number, (mask_logits,) = next(sets), given
        assert mask_logits.shape[2] == key_side(number) ** 2
        rows: dict[tuple[int, int], dict[int, bool]] = {}
        for (of_set, frame, query, key), logit in sides.items():
            if of_set == number:
                rows.setdefault((frame, query), {})[key] = logit >= 0
        for (frame, query), keys in rows.items():
            within = mask_logits[frame, query] >= 0
            for key, side in keys.items():
                within[key] = side
            open_to[frame, query] = within | ~within.any()
        return open_to

    hook = net.mask_decoder.open_keys.register_forward_hook(take_sides)
    try:
        yield
    finally:
        hook.remove()
