"""A store, a packed file and a run of an older combo go on under this one."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import combo

from combo.pipeline.sample import write_sample

ARCHIVE = Path(__file__).parent.parent / "data" / "old_store" / "old_store.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder that the older combo left: store, run and manifest, and its data set."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    write_sample(tmp_path / "data", s4=(2, 1, 1), ms3=(4, 2, 4), avss=(2, 1, 1))
    return tmp_path


def answer(folder: Path, *arguments: str) -> str:
    """What a command says, which must succeed."""
    done = combo(*arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(folder: Path) -> dict[str, bytes]:
    found = sorted(folder.glob("store/*/*/records/*/*/0*.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_an_old_store_is_verified_and_goes_on_where_it_was(old: Path) -> None:
    before = records(old)
    done = json.loads(answer(old, "preprocess", "all", "--data", "ms3", "--json", "--quiet"))
    assert all(each["finished"] for each in done)
    assert {(e["split"], e["stage"]): e["units_computed"] for e in done if e["units_computed"]} == {
        ("test", "maskige"): 1
    }
    after = records(old)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    verdict = json.loads(answer(old, "verify", "--json", "--quiet"))
    assert (verdict["findings"], verdict["units_good"]) == ([], len(after))
    assert json.loads(answer(old, "verify", "packed.h5", "--json", "--quiet"))["findings"] == []


@pytest.mark.parametrize("store", ["store", "packed.h5"])
def test_an_old_run_is_resumed_and_a_new_one_trained_on_an_old_store(old: Path, store: str) -> None:
    structure = json.loads((old / "run" / "last.json").read_text())
    torch.save(filled(structure), old / "run" / "last.pt")
    settings = json.loads((old / "run" / "settings.json").read_text())
    iterations = settings["train"]["iterations"] = settings["train"]["iterations"] + 2
    (old / "run" / "settings.json").write_text(json.dumps(settings))
    answer(old, "train", "--resume", "run", "--store", store, "--quiet")
    logged = [json.loads(line) for line in (old / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["iteration"] == iterations
    assert 0 <= json.loads(answer(old, "evaluate", "run", "--split", "val", "--json"))["M_J"] <= 1
    changes = [f"{name}={settings['network'][name]}" for name in SMALL]
    more = [f"--set={change}" for change in (*changes, "iterations=2", "evaluate_every=2")]
    manifest = ("--preset", "combo-small-ms3", "--out", "new", "--quiet")
    answer(old, "train", *manifest, "--store", store, *more)
    assert (old / "new" / "best.pt").exists()


SMALL = (
    "sem", "width", "heads", "pixel_layers", "pixel_ffn", "audio_hidden", "query_count",
    "decoder_layers", "decoder_ffn", "mask_points", "fusion_heads",
)  # fmt: skip


def filled(structure: dict[str, Any]) -> Any:
    """The value that a structure describes, its tensors small and positive."""
    ((kind, value), *_) = structure.items()
    if kind == "tensor":
        dtype = getattr(torch, structure["dtype"])
        if dtype == torch.uint8:  # the state of a random generator
            return torch.Generator().get_state()
        values = torch.rand(value, generator=torch.Generator().manual_seed(len(value)))
        return (0.02 * values + 0.01).to(dtype) if value else torch.tensor(4, dtype=dtype)
    if kind == "dict":
        return {key if isinstance(key, str) else int(key): filled(each) for key, each in value}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](filled(each) for each in value)
    return value
