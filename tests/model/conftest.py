"""The goldens of the public COMBO, and the weights that belong to them (golden README)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from combo.model.state_dicts import published_combo

from .golden import DATA, deterministic_weight

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "combo"

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public R50 S4 network, sound encoder included."""
    listed = json.loads((DATA / "r50_s4_keys.json").read_text())
    return {name: tuple(shape) for name, shape, _, _ in listed}


@pytest.fixture(scope="session")
def published_state(published_shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The public R50 S4 checkpoint with the README's weights, its sound encoder left out."""
    return {
        name: deterministic_weight(name, shape)
        for name, shape in published_shapes.items()
        if not name.startswith("audio_backbone.")
    }


@pytest.fixture(scope="session")
def network_state(published_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`published_state` in our names."""
    return published_combo(published_state)[0]


@pytest.fixture(scope="session")
def network_golden() -> Callable[[str], Arrays]:
    """Reads r50_s4_{inputs,outputs,loss}.npz: a part of the outputs, the rest whole."""

    def read(name: str) -> Arrays:
        with np.load(DATA / f"r50_s4_{name}.npz") as archive:
            return dict(archive)

    return read


@pytest.fixture(scope="session")
def whole_outputs() -> Arrays:
    """All golden outputs, which lie beside the repository; skips without them."""
    path = SHARED / "r50_s4_outputs.npz"
    if not path.exists():
        pytest.skip("the whole golden outputs are not beside the repository (../shared/golden)")
    with np.load(path) as archive:
        return dict(archive)
