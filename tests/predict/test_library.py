"""combo as a library: what a user of PyTorch guesses is there, and as the documentation says."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_clips import film
from torch.utils.data import DataLoader

import combo
from combo.pipeline.errors import ComboError
from combo.pipeline.train.evaluate import open_run
from combo.pipeline.train.run_folder import RunFolder

HOME = Path(__file__).parents[2]


def test_a_store_is_a_mapping_of_splits_which_are_sequences_of_clips(home: Path) -> None:
    store = combo.open_store(home / "store")
    assert set(store) == {"mine/train", "mine/val", "mine/test"}
    split = store["mine/test"]
    assert (len(split), split.classes, dict(split.left_out)) == (2, ("background", "object"), {})
    first, second = split[:]
    assert (first.name, second.name) == ("clip0", "clip1")
    for clip, frames in ((first, 3), (split[-1], 2)):
        assert (clip.frames.shape, clip.frames.dtype) == ((frames, 64, 64, 3), np.uint8)
        assert (clip.labels.shape, clip.sound.shape) == ((frames, 64, 64), (frames, 128))
        assert clip.maskige is not None
        assert clip.maskige.shape == clip.frames.shape
        assert clip.annotated.all()
    with pytest.raises(ComboError, match="there is mine/"):
        store["mine/dev"]
    with pytest.raises(IndexError):
        split[2]
    with pytest.raises(ComboError, match="no such store"):
        combo.open_store(home / "nothing")


def test_a_split_goes_into_pytorchs_loader_and_to_other_processes(home: Path) -> None:
    data = combo.open_store(home / "store")["mine/test"].dataset()
    (batch,) = DataLoader(pickle.loads(pickle.dumps(data)), batch_size=2)  # noqa: S301
    assert batch["name"] == ["clip0", "clip1"]
    assert batch["frames"].shape == batch["maskige"].shape == (2, 3, 3, 64, 64)
    assert batch["present"].tolist() == [[True] * 3, [True, True, False]]
    assert batch["sound"].shape == (2, 3, 128)


def test_a_network_comes_from_a_run(run: RunFolder) -> None:
    mine, other = combo.Combo.from_run(run.root), open_run(run, torch.device("cpu"))
    assert not mine.training
    assert mine.state_dict().keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name
    assert isinstance(combo.Combo.from_run(run.last), combo.model.Combo)
    assert combo.Combo.from_preset("combo-small-s4").settings.classes == 2


def test_a_film_is_predicted_frame_by_frame_while_it_is_read(
    run: RunFolder, tmp_path: Path
) -> None:
    film(tmp_path / "film.mp4", 12.0)
    frames = combo.predict(run.root, tmp_path / "film.mp4", device="cpu")
    first = next(frames)
    assert first.picture.shape == (64, 64, 3)
    assert first.mask.shape == (64, 64)
    assert [first.time, *(frame.time for frame in frames)] == [t + 0.5 for t in range(12)]
    with pytest.raises(ComboError, match="fetch it first"):
        combo.predict(run.root, "rtsp://camera/stream")
    film(tmp_path / "other.mp4", 1.0)
    with pytest.raises(ComboError, match="holds several"):
        combo.predict(run.root, tmp_path)


def test_the_documentations_examples_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/own_video.md, in a folder with a run, a store and a film."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(home / "run")
    (tmp_path / "store").symlink_to(home / "store")
    film(tmp_path / "holiday.mp4", 2.0)
    examples = re.findall(r"```python\n(.*?)```", (HOME / "docs/own_video.md").read_text(), re.S)
    assert len(examples) >= 4
    for example in examples:
        exec(compile(example, "docs/own_video.md", "exec"), {})


def test_importing_combo_loads_nothing_heavy() -> None:
    code = "import sys, combo; print([m for m in ('torch', 'numpy', 'zarr') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
