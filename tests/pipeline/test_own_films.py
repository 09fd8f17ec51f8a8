"""A folder of videos is a data set: found, shown, of any length, and cheap to add to."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numbered_clips import film
from PIL import Image
from typer.testing import CliRunner, Result

from combo.cli import app
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.plan import jobs, planned
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.layouts import Clip
from combo.pipeline.layouts.folders import Folders
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.store import STAGES, SplitStore

MANIFEST = """\
store: {store}
data_sets:
  mine: {{layout: folders, root: {root}{more}}}
stages:
  frames: {{size: 32}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
"""


def shoot(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    film(path, seconds, Fraction(5))
    return path


def label(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)


def listed(root: Path, split: str = "all", **settings: int) -> dict[str, Clip]:
    return {clip.name: clip for clip in Folders(**settings).clips(root, split)}  # type: ignore[arg-type]


def opened(home: Path, store: str = "store", more: str = "") -> Manifest:
    file = home / f"{store}.yaml"
    file.write_text(MANIFEST.format(store=store, root=home / "clips", more=more))
    return load_manifest(file)


def run(manifest: Manifest, discard: bool = False) -> list[str]:
    """Preprocess everything; what was told of lists that have changed."""
    told: list[str] = []
    options = Options(discard=discard)
    for job in jobs(manifest, STAGES, ["mine"], []):
        settle_plan(job, options, told.append)
        assert run_job(job, options).finished
    return told


def arrays_of(manifest: Manifest, clip: str) -> dict[str, np.ndarray]:
    """A clip's frames that are there, their labels, sound and label maps."""
    split = SplitStore(manifest.store_path, "mine", "all")
    row, found = split.plan().clips.index(clip), {}
    for variant in split.variants():
        for spec in variant.arrays:
            found[spec.name] = split.read_array(variant, spec.name)[row]
    there = found["present"].astype(bool)
    return {name: array[there] for name, array in found.items()}


def combo(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_each_video_of_a_flat_folder_is_a_clip_with_the_sound_and_labels_of_its_name(
    tmp_path: Path,
) -> None:
    for name in ("b10.mp4", "b9.mov", "x.MP4"):
        shoot(tmp_path / name, 2)
    (tmp_path / "b9.wav").write_bytes(b"")
    (tmp_path / "notes.wav").write_bytes(b"")
    label(tmp_path / "labels" / "x" / "1.png")
    label(tmp_path / "labels" / "y" / "1.png")
    clips = listed(tmp_path)
    assert list(clips) == ["b9.mov", "b10.mp4", "x.MP4"]
    assert [len(clip.frames) for clip in clips.values()] == [2, 2, 2]
    assert clips["b9.mov"].sound == tmp_path / "b9.wav"
    assert clips["x.MP4"].sound == tmp_path / "x.MP4"
    assert clips["x.MP4"].labels == (None, tmp_path / "labels" / "x" / "1.png")
    unread = Folders().clips(tmp_path, "all").named_unread()
    assert unread == "notes.wav, labels/y/ (no video of this name)"


def test_videos_in_split_folders_and_beside_folders_of_clips(tmp_path: Path) -> None:
    shoot(tmp_path / "train" / "a.mp4", 1)
    shoot(tmp_path / "train" / "b.mp4", 1)
    shoot(tmp_path / "test" / "c.mp4", 1)
    assert Folders().splits(tmp_path) == ("test", "train")
    assert list(listed(tmp_path, "train")) == ["a.mp4", "b.mp4"]
    shoot(tmp_path / "test" / "d" / "d.mp4", 1)
    assert list(listed(tmp_path, "test")) == ["c.mp4", "d"]
    shoot(tmp_path / "intro.mp4", 1)
    with pytest.raises(ComboError, match=r"holds clips \(intro.mp4\) and folders of clips \(test"):
        Folders().splits(tmp_path)


def test_a_name_that_two_videos_share_is_asked_about_where_it_matters(tmp_path: Path) -> None:
    shoot(tmp_path / "a.mp4", 1)
    shoot(tmp_path / "a.mov", 1)
    assert [clip.problem for clip in listed(tmp_path).values()] == [None, None]
    label(tmp_path / "labels" / "a" / "0.png")
    assert all("rename one" in (clip.problem or "") for clip in listed(tmp_path).values())


def test_long_clips_are_cut_into_parts_that_keep_their_times(tmp_path: Path) -> None:
    shoot(tmp_path / "a.mp4", 7)
    label(tmp_path / "labels" / "a" / "4.png")
    whole, parts = listed(tmp_path)["a.mp4"], listed(tmp_path, cut=3)
    assert list(parts) == ["a.mp4#1", "a.mp4#2", "a.mp4#3"]
    assert [len(part.frames) for part in parts.values()] == [3, 3, 1]
    assert sum((part.times for part in parts.values()), ()) == whole.times
    assert sum((part.labels for part in parts.values()), ()) == whole.labels
    (tmp_path / "a.mp4#2").mkdir()
    with pytest.raises(ComboError, match=r"two clips are called a.mp4#2; rename one"):
        listed(tmp_path, cut=3)


def test_the_longest_clip_says_how_much_room_there_is_and_a_longer_one_costs_only_itself(
    tmp_path: Path,
) -> None:
    shoot(tmp_path / "clips" / "a.mp4", 2)
    shoot(tmp_path / "clips" / "b.mp4", 3)
    label(tmp_path / "clips" / "labels" / "b" / "2.png")
    manifest = opened(tmp_path)
    assert run(manifest) == []
    assert planned(manifest, "mine", "all").plan.frames_per_clip == 3
    before = {name: arrays_of(manifest, name) for name in ("a.mp4", "b.mp4")}

    shoot(tmp_path / "clips" / "aa.mp4", 13)
    told = run(manifest)
    assert sum("2 clips taken over" in line for line in told) == len(STAGES)
    assert planned(manifest, "mine", "all").plan.frames_per_clip == 13
    for name, arrays in before.items():
        for each, array in arrays_of(manifest, name).items():
            assert np.array_equal(array, arrays[each]), (name, each)
    fresh = opened(tmp_path, "fresh")
    run(fresh)
    for name in ("a.mp4", "b.mp4", "aa.mp4"):
        for each, array in arrays_of(manifest, name).items():
            assert np.array_equal(array, arrays_of(fresh, name)[each]), (name, each)

    (tmp_path / "clips" / "aa.mp4").unlink()
    with pytest.raises(ComboError, match=r"--discard"):
        run(manifest)
    told = run(manifest, discard=True)
    assert sum("2 clips taken over" in line for line in told) == len(STAGES)
    assert planned(manifest, "mine", "all").plan.frames_per_clip == 13, "room is not taken away"
    assert verified(manifest)


def verified(manifest: Manifest) -> bool:
    return combo("verify", "--manifest", str(manifest.file)).exit_code == 0


def test_the_parts_of_a_cut_film_are_what_the_film_is_there(
    tmp_path: Path,
) -> None:
    shoot(tmp_path / "clips" / "a.mp4", 5)
    whole, cut = opened(tmp_path), opened(tmp_path, "cut", ", cut: 2")
    run(whole)
    run(cut)
    assert planned(cut, "mine", "all").plan.frames_per_clip == 2
    parts = [arrays_of(cut, f"a.mp4#{n}") for n in (1, 2, 3)]
    for name, array in arrays_of(whole, "a.mp4").items():
        assert np.allclose(np.concatenate([part[name] for part in parts]), array, atol=1e-5), name


# combo init


def test_init_writes_a_manifest_that_the_next_command_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        shoot(tmp_path / "my clips" / f"clip{number}.mp4", 2 + number)
    shoot(tmp_path / "my clips" / "clip4.mp4", 12)
    label(tmp_path / "my clips" / "labels" / "clip2" / "0.png")
    (tmp_path / "my clips" / "broken.mp4").write_bytes(b"no video")

    done = combo("init", "my clips", "--json")
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["data_sets"]
    assert told["name"] == "my-clips"
    assert sum(split["clips"] for split in told["splits"]) == 7, "the longest is two"
    assert sum(split["frames"] for split in told["splits"]) == 2 + 3 + 4 + 5 + 12
    assert sum(split["with_sound"] for split in told["splits"]) == 6
    assert sum(split["labelled"] for split in told["splits"]) == 1
    assert [name for split in told["splits"] for name in split["problems"]] == ["broken.mp4"]

    text = (tmp_path / "data_manifest.yaml").read_text()
    assert 'root: "my clips"' in text
    entry = load_manifest(tmp_path / "data_manifest.yaml").data_sets["my-clips"]
    assert entry.cut == 10
    assert set(entry.split) == {"train", "val", "test"}

    again = combo("init", "my clips")
    assert again.exit_code == 1
    assert "is there already and stays as it is" in str(again.exception)
    assert (tmp_path / "data_manifest.yaml").read_text() == text
    assert combo("preprocess", "frames", "--quiet").exit_code == 1, "one of them is broken"


def test_init_in_the_folder_of_the_clips_puts_the_store_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoot(tmp_path / "clips" / "a.mp4", 1)
    monkeypatch.chdir(tmp_path / "clips")
    monkeypatch.delenv("COMBO_STORE", raising=False)
    assert combo("init", ".").exit_code == 0
    assert load_manifest().store_path == tmp_path / "clips-store"
    assert combo("preprocess", "frames", "--dry-run").exit_code == 0


def test_init_knows_avsbench_and_says_where_nothing_can_be_learned(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = combo("init", str(sample), "--manifest", "avs.yaml")
    assert done.exit_code == 0, done.output
    assert "layout avsbench-avss" in done.stdout
    assert "then: combo train --preset combo-r50-s4 --manifest avs.yaml" in done.stderr
    assert list(load_manifest(Path("avs.yaml")).data_sets) == ["s4", "ms3", "avss"]
    shutil.copy(shoot(tmp_path / "clips" / "a.mp4", 1), tmp_path / "clips" / "b.mp4")
    alone = combo("init", "clips")
    assert "clips: no frame has a label, so there is nothing to train on" in alone.stderr
    (tmp_path / "empty").mkdir()
    assert "no clip in it; put videos there" in str(combo("init", "empty").exception)
    Path("deep/train/one/frames").mkdir(parents=True)
    shutil.copy(next(sample.rglob("*.png")), "deep/train/one/frames/0.png")
    shutil.copy(next(sample.rglob("*.wav")), "deep/train/one/sound.wav")
    deep = combo("init", "deep", "--manifest", "deep.yaml").output
    assert "deep: no clip of it can be read; a clip is a video, or a folder with" in deep
    assert "next:" not in deep
