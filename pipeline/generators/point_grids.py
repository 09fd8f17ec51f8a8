"""Generators that ask a network for masks at the points of a grid: what they share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import remedies
from ..devices import Place, float32_products, threads
from ..errors import ComboError
from ..media.images import Pixels
from .generator import Arithmetic, Generate, Generator, LabelMap

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.point_prompts import PointPromptable

    MakeNetwork = Callable[[Mapping[str, Tensor]], PointPromptable]
    """The network with these weights. Raises RuntimeError, ValueError for others."""


def point_grid(
    name: str,
    section: str,
    settings: type[Any],
    network: "MakeNetwork",
    facts: Callable[[Any], Mapping[str, Any]],
    levels: Callable[[Any], tuple[int, ...]],
) -> Generator:
    """The generator of a network, named as its weights are.

    settings: a `GridSettings`.  facts: of them, what else the store records.  levels: the
    granularities they ask for.
    """

    def all_facts(own: Any, arithmetic: Arithmetic) -> dict[str, Any]:
        return {
            "precision": arithmetic.precision,
            "compile": arithmetic.compile,
            **facts(own),
        }

    def open_network(
        own: Any, arithmetic: Arithmetic, weights: Path | None, place: Place
    ) -> Generate:
        import torch

        from ...model.point_grid import PointGrid
        from ..state_files import load_state

        if weights is None:
            raise ComboError(f"{name} needs weights; run: {remedies.fetch(name)}")
        precisions = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        precision = precisions[arithmetic.precision]
        try:
            net = network(load_state(weights))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ComboError(f"{weights} does not fit {name}: {reason}") from error
        if arithmetic.compile:
            _check_compiler(place.device)
        grid = PointGrid(
            net.to(place.device),
            own,
            levels=levels(own),
            memory_limit=arithmetic.memory_limit,
            autocast=precision,
            compile=arithmetic.compile,
        )

        def generate(frames: Sequence[Pixels]) -> list[LabelMap]:
            stack = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
            exact = nullcontext() if precision else float32_products()
            with threads(place.threads), exact:
                return [
                    LabelMap(m.label_map.cpu().numpy(), len(m.order) + m.left_out, m.left_out)
                    for m in grid.merged(stack)
                ]

        return generate

    return Generator(section, settings, open_network, all_facts, name)


def _check_compiler(device: str) -> None:
    """Raises ComboError where torch.compile lacks what it needs; before any frame is read."""
    import torch

    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a compiler's absence looks like on this platform
        reason = " ".join(str(error).split())[:200]
        raise ComboError(
            f"stages.maskige.compile: torch.compile does not work here on {device} ({reason});"
            " it needs a C++ compiler, on GPUs also Triton; or set compile: false"
        ) from error
