"""The goldens of the public COMBO, and the weights that belong to them (golden README)."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from combo.model.state_dicts import published_combo

DATA = Path(__file__).parent.parent / "data" / "network"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "combo"

Arrays = dict[str, np.ndarray]


def offset_grid() -> Tensor:
    """Eight directions, three levels, four points; a head's point p at distance p + 1."""
    angle = torch.arange(8, dtype=torch.float32) * (2 * math.pi / 8)
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    direction = direction / direction.abs().max(dim=1, keepdim=True).values
    distance = torch.arange(1, 5, dtype=torch.float32)
    return (direction[:, None, None] * distance[:, None]).expand(8, 3, 4, 2).flatten()


def deterministic_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The README's rule: the tensor follows from its published name and shape alone."""
    last = name.rsplit(".", 1)[-1]
    if name == "criterion.empty_weight":
        return torch.tensor([1.0] * (shape[0] - 1) + [0.1])
    if name.endswith("sampling_offsets.bias"):
        return offset_grid()
    seed = zlib.crc32(name.encode())
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    if "gamma_v_list" in name or name.endswith("gamma_a"):
        value = np.float32(0.5) + np.float32(0.05) * z
    elif last == "running_var":
        value = np.float32(1) + np.float32(0.05) * np.abs(z)
    elif len(shape) == 1:
        value = np.float32(0.05) * z + np.float32(last == "weight")
    elif name.endswith(("query_feat.weight", "query_embed.weight")):
        value = z
    elif name.endswith(("level_embed.weight", "audio_pos.weight", "level_embed")):
        value = np.float32(0.5) * z
    else:
        n = math.prod(shape[1:])
        d = np.rint(z.astype(np.float64) * 2**20) / 2**20
        if shape[1] > 1:
            d -= d.sum(axis=tuple(range(1, len(shape))), keepdims=True) / n
        gain = 1.0
        if name.endswith("out_v_proj.weight"):
            gain = 64.0
        elif "scale_factor_module" in name:
            gain = 4.0
        elif "audio_backbone" in name:
            gain = 1.5
        value = (d * (gain / math.sqrt(n))).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(value))


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
