"""Weights are read from every way they are published in; nothing in a file is run."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from combo.pipeline import weights
from combo.pipeline.errors import ComboError

# reading


@pytest.fixture(scope="module")
def torch() -> SimpleNamespace:
    return pytest.importorskip("torch")


STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}


def equal(found: dict, expected: dict = STATE) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name].numpy(), expected[name]) for name in found
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("entry", [None, "model", "state_dict"])
def test_pytorchs_files_are_read_in_both_formats(tmp_path: Path, torch, zipped: bool, entry):
    tensors = OrderedDict((k, torch.from_numpy(v)) for k, v in STATE.items())
    value = tensors if entry is None else {entry: tensors, "iteration": 3, "optimizer": {"lr": 1.0}}
    path = tmp_path / "a.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    assert equal(weights.load_state(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_arrays_in_pytorchs_files_become_tensors(tmp_path: Path, torch, zipped: bool):
    """VGGish's PCA parameters are published so."""
    path = tmp_path / "pca.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert equal(weights.load_state(path))


@pytest.mark.parametrize("protocol", [2, 4])
def test_detectron2s_pickles_of_arrays_are_read(tmp_path: Path, protocol: int):
    value = {"model": STATE, "__author__": "somebody", "matching_heuristics": True}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    assert equal(weights.load_state(path))


def test_numpys_older_module_names_are_admitted(tmp_path: Path):
    path = tmp_path / "old.pkl"
    data = pickle.dumps({"model": STATE}, protocol=2)
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert equal(weights.load_state(path))


@pytest.mark.parametrize("averaged", [True, False])
def test_of_a_run_with_a_mean_of_its_networks_that_is_read(
    tmp_path: Path, torch, averaged: bool
) -> None:
    mean = {"a": torch.ones(2)} if averaged else {}
    torch.save({"network": {"a": torch.zeros(2)}, "averaged": mean}, tmp_path / "last.pt")
    assert weights.load_state(tmp_path / "last.pt")["a"].tolist() == [averaged] * 2


def test_safetensors_are_read(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file(STATE, tmp_path / "a.safetensors")
    assert equal(weights.load_state(tmp_path / "a.safetensors"))


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["pkl", "zip", "legacy", "object array"])
def test_what_a_file_would_run_is_named_and_not_run(tmp_path: Path, torch, kind: str):
    trap = tmp_path / "was run"
    value = {"model": {**STATE, "evil": Malicious(trap)}}
    path = tmp_path / ("a.pkl" if kind in ("pkl", "object array") else "a.pth")
    if kind == "pkl":
        path.write_bytes(pickle.dumps(value))
    elif kind == "object array":
        value["model"]["evil"] = np.array([Malicious(trap)], dtype=object)
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ComboError, match=r"mkdir") as caught:
        weights.load_state(path)
    assert not trap.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [b"cbuiltins\neval\n(S'1'\ntR.", b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", b"Pelsewhere\n."],
)
def test_handwritten_pickles_are_refused(tmp_path: Path, code: bytes):
    path = tmp_path / "a.pkl"
    path.write_bytes(code)
    with pytest.raises(ComboError, match=r"a\.pkl: "):
        weights.load_state(path)


def test_damaged_empty_and_missing_files_are_one_line(tmp_path: Path, torch):
    path = tmp_path / "a.pth"
    torch.save({k: torch.from_numpy(v) for k, v in STATE.items()}, path)
    path.write_bytes(path.read_bytes()[:300])
    empty = tmp_path / "empty.pth"
    empty.write_bytes(b"")
    nothing = tmp_path / "nothing.pth"
    torch.save({"epoch": 3}, nothing)
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"\xff" * 20)
    for file, text in (
        (path, "damaged"),
        (empty, "damaged"),
        (short, "damaged"),
        (nothing, "no parameters in it"),
        (tmp_path / "missing.pth", "no such weights file"),
    ):
        with pytest.raises(ComboError, match=text) as caught:
            weights.load_state(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


GOLDEN_KEYS = Path(__file__).parents[3] / "shared" / "golden" / "combo" / "r50_s4_keys.json"


@pytest.mark.slow
@pytest.mark.skipif(
    not GOLDEN_KEYS.exists(), reason="needs ../shared/golden/combo/r50_s4_keys.json"
)
def test_a_published_checkpoint_is_converted_completely(tmp_path: Path, torch):
    """Names and shapes are the published ones; every tensor is one zero seen many times."""
    from combo.model import Combo

    keys = json.loads(GOLDEN_KEYS.read_text())
    state = {name: torch.zeros(()).expand(shape) for name, shape, _, _ in keys}
    torch.save({"model": state, "iteration": 1}, tmp_path / "published.pth")
    counts = weights.convert(tmp_path / "published.pth", tmp_path / "ours.pth")
    converted = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert counts == (len(converted["network"]), len(converted["vggish"]))
    with torch.device("meta"):
        network = Combo.from_preset("combo-r50-s4")
    network.load_state_dict(converted["network"], strict=True, assign=True)
    with pytest.raises(ComboError, match="is there already"):
        weights.convert(tmp_path / "published.pth", tmp_path / "ours.pth")


def test_what_is_no_combo_checkpoint_is_not_converted(tmp_path: Path, torch):
    path = tmp_path / "other.pth"
    torch.save({"model": {"a.weight": torch.zeros(3)}}, path)
    with pytest.raises(ComboError, match=r"other\.pth: not a published COMBO checkpoint"):
        weights.convert(path, tmp_path / "ours.pth")
    assert not (tmp_path / "ours.pth").exists()
