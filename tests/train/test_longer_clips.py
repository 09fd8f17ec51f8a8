"""Clips of more frames than a network was trained with: windows everywhere, the same numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import combo

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import load_manifest
from combo.pipeline.report.of_run import look_at_run
from combo.pipeline.ruler.candidates import Where, candidate
from combo.pipeline.train import checkpoint
from combo.pipeline.train.elsewhere import Elsewhere
from combo.pipeline.train.run_folder import RunFolder
from combo.pipeline.train.start import start

from .test_own_clips import MANIFEST, write_clip

CPU = torch.device("cpu")
SETTINGS = (
    "iterations=1", "batch_size=2", "evaluate_every=1", "log_every=1", "threads=1", "device=cpu",
)  # fmt: skip
LENGTHS = {"train": (3, 3), "val": (2,), "test": (4, 11)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of clips, test's longer than any position of train's; and a run on it."""
    folder = tmp_path_factory.mktemp("longer")
    for split, lengths in LENGTHS.items():
        for number, frames in enumerate(lengths):
            write_clip(folder / "clips" / split / f"clip{number}", frames, frames)
    (folder / "data_manifest.yaml").write_text(MANIFEST)
    assert combo("preprocess", "all", folder=folder).returncode == 0
    manifest = load_manifest(folder / "data_manifest.yaml")
    start(manifest, "combo-small-s4", ("data=mine", *SETTINGS), folder / "run").train()
    return folder


def test_a_report_says_of_longer_clips_what_evaluate_says(home: Path) -> None:
    words = ("evaluate", "run", "--split", "test", "--sound", "right,swapped,silent", "--json")
    told = {row["sound"]: row for row in json.loads(combo(*words, folder=home).stdout)["rows"]}
    looks = look_at_run(home / "run", "test", CPU)
    for sound, row in told.items():
        found = looks.evaluations[sound].protocols["avsbench"]
        assert row["M_J"]["mean"] == pytest.approx(found[0], abs=1e-6), sound
        assert row["M_F"]["mean"] == pytest.approx(found[1], abs=1e-6), sound
    assert looks.worst


def test_a_longer_clip_is_shown_with_what_a_run_says_of_it(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown = ("show", "store", "clip1", "--split", "test", "--run", "run", "--out", str(page))
    done = combo(*shown, folder=home)
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size > 1000


def test_a_file_that_stands_alone_takes_longer_clips(home: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(home / "run" / "best.pt", tmp_path / "alone.pt"))
    where = Where(data="mine", manifest=home / "data_manifest.yaml")
    network = candidate(file, where).network(CPU)
    assert isinstance(network, Elsewhere)
    assert network.length == 10, "as many positions as it has"
    done = combo("evaluate", str(file), "--data", "mine", "--json", folder=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == 2


def test_a_run_on_longer_clips_begins_with_the_positions_that_there_are(
    home: Path, tmp_path: Path
) -> None:
    for frames in (2, 12):
        write_clip(tmp_path / "clips" / "train" / f"clip{frames}", frames, 1)
    (tmp_path / "data_manifest.yaml").write_text(MANIFEST)
    assert combo("preprocess", "all", folder=tmp_path).returncode == 0
    manifest = load_manifest(tmp_path / "data_manifest.yaml")
    name = "bilateral_fusion.audio_pos.weight"

    def begun(*changes: str) -> torch.Tensor:
        settings = ("data=mine", *SETTINGS, *changes)
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        return start(manifest, "combo-small-s4", settings, folder).network.state_dict()[name]

    given = checkpoint.network_of(RunFolder(home / "run").best)[name]
    random, filled = begun("initialisation=random"), begun(f"initialisation={home / 'run'}")
    assert (len(given), len(filled)) == (10, 12)
    assert torch.equal(filled, torch.cat([given, random[10:]]))
    of_longer = tmp_path / "longer.pth"
    torch.save({**checkpoint.network_of(RunFolder(home / "run").best), name: filled}, of_longer)
    settings = ("data=mine", *SETTINGS, f"initialisation={of_longer}")
    shorter = start(
        load_manifest(home / "data_manifest.yaml"), "combo-small-s4", settings, tmp_path / "shorter"
    )
    assert torch.equal(shorter.network.state_dict()[name], given)
    with pytest.raises(ComboError, match="has another network"):
        begun(f"initialisation={home / 'run'}", "fidelity=reference")
