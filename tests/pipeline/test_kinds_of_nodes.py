"""Units of one variant, computed by nodes whose processors differ in the last bit.

A sound encoder with a network in it is computed under two settings of PyTorch's, as two processors
would compute it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from combo.pipeline.jobs import records
from combo.pipeline.jobs.records import UnitRecord
from combo.pipeline.manifest import load_manifest
from combo.pipeline.store import SplitStore

OLD = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
NEW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NODE = """
from combo.cli import main
from combo.pipeline.encoders import ENCODERS
from combo.pipeline.encoders.encoder import Encoder

def opened(weights, device, memory_limit):
    import torch
    kernels = torch.randn(128, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    return lambda patches: torch.conv2d(patches[:, None], kernels).tanh().mean((2, 3))

ENCODERS["convolution"] = Encoder(opened)
main()
"""
SPLIT = ("--data", "ms3", "--split", "train")


def node(kind: dict[str, str], *arguments: str) -> str:
    """What `combo` answers on such a node, which has nothing to complain of."""
    done = subprocess.run(
        [sys.executable, "-c", NODE, *arguments, *SPLIT],
        env={**os.environ, "OMP_NUM_THREADS": "1", **kind},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compute(kind: dict[str, str], manifest: Path, *arguments: str) -> None:
    node(kind, "preprocess", "audio", "--manifest", str(manifest), *arguments)


def verify(kind: dict[str, str], manifest: Path, *arguments: str) -> dict[str, Any]:
    """The findings and the rest of the answer, which has no complaint."""
    return json.loads(node(kind, "verify", "--json", "--manifest", str(manifest), *arguments))


def split_of(manifest: Path) -> SplitStore:
    return SplitStore(load_manifest(manifest).store_path, "ms3", "train")


def made(manifest: Path) -> list[UnitRecord]:
    """The records of the split's units."""
    split = split_of(manifest)
    (variant,) = split.variants("audio")
    return list(records.done_units(split, variant, split.plan()))


def test_units_of_two_kinds_of_nodes_are_one_sound_variant(
    manifest_file: Callable[..., Path],
) -> None:
    alone, mixed = manifest_file(store="alone"), manifest_file(store="mixed")
    for manifest in (alone, mixed):
        manifest.write_text(manifest.read_text().replace("mel-stats", "convolution"))
    compute(OLD, alone)
    compute(OLD, mixed, "--part", "1/2")
    compute(NEW, mixed, "--part", "2/2")
    before = made(mixed)
    assert before[0].outputs == made(alone)[0].outputs
    if before[1].outputs == made(alone)[1].outputs:
        pytest.skip("both settings compute the same on this processor")

    sound = {"units_good": 2, "findings": [], "repaired": []}
    assert verify(OLD, mixed, "--inputs") == sound
    assert verify(NEW, mixed, "--repair") == sound
    compute(NEW, mixed)
    assert made(mixed) == before, "nothing is computed again"

    split = split_of(mixed)
    (variant,) = split.variants("audio")
    split.shards(variant, 1)[0].unlink()
    assert len(verify(OLD, mixed, "--repair")["repaired"]) == 1
    assert verify(NEW, mixed) == sound
    assert made(mixed)[0] == before[0]
    assert made(mixed)[1].outputs == made(alone)[1].outputs
