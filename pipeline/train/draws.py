"""What a training step draws by chance, and from what.

Draws depend on the run's seed, the iteration and a clip's place in the batch, and on nothing else:
they are the same however many processes or micro-batches share the batch and wherever the run was
stopped, so no state of a generator has to be saved. Dropout and stochastic depth alone, which
layers draw for all clips that go through them together, depend on the process, too.
"""

from collections.abc import Iterable

import numpy as np
import torch

AUGMENTATION, POINTS, LAYERS = range(3)
"""What is drawn; each has numbers of its own."""


def seed_of(*numbers: int) -> int:
    """A seed that other numbers do not share."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def generators(
    seed: int, iteration: int, places: Iterable[int], what: int, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator for each clip of a batch. places: theirs in the whole batch."""
    return [
        torch.Generator(device).manual_seed(seed_of(seed, what, iteration, place))
        for place in places
    ]


def seed_layers(seed: int, iteration: int, process: int) -> None:
    """What PyTorch's own generators, which layers draw from, give from here on."""
    torch.manual_seed(seed_of(seed, LAYERS, iteration, process))
