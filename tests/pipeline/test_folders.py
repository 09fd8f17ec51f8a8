"""Folders of clips as people have them: each file is read, named, or fails its clip by name."""

import os
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from combo.pipeline.errors import ComboError, MediaError
from combo.pipeline.jobs.plan import planned
from combo.pipeline.layouts import Clip
from combo.pipeline.layouts.folders import Folders
from combo.pipeline.manifest import load_manifest
from combo.pipeline.media.pictures import read_frames
from combo.pipeline.media.video import VideoFrame

GREY = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))


def clip_of(folder: Path, *names: str) -> Path:
    """A clip's folder with pictures (and empty files of other kinds) of these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jp2", ".tif"):
            GREY.save(path)
        else:
            path.write_bytes(b"")
    return folder


def listed(root: Path, name: str = "all", **settings: object) -> dict[str, Clip]:
    return {clip.name: clip for clip in Folders(**settings).clips(root, name)}  # type: ignore[arg-type]


def only(root: Path) -> Clip:
    (clip,) = listed(root).values()
    return clip


# numbers


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (["0", "1", "3", "4"], "2.png"),
        (["f_008", "f_009", "f_011"], "f_010.png"),
        (["0", "25", "50", "100"], "75.png"),  # every 25th picture of a video
        (["shot 1 f0 0.00", "shot 1 f1 0.04", "shot 1 f3 0.12"], "shot 1 f2 0.png"),
    ],
)
def test_numbers_with_a_gap_are_a_failed_clip_that_names_the_missing_frame(
    tmp_path: Path, names: list[str], lacking: str
):
    clip_of(tmp_path / "c", *(f"{name}.png" for name in names))
    problem = only(tmp_path).problem or ""
    assert "missing: after frame" in problem
    assert lacking.split()[-1][:-4] in problem


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["0.0", "0.25", "0.5", "0.75", "1.0"], False),  # natural order has 0.5 before 0.25
        (["x_9.5", "x_10.0", "x_9.25", "x_9.75"], False),
        (["0.00", "0.25", "0.50", "0.75", "1.00"], True),
        (["0.5", "1.0", "1.5", "2.0"], True),
        ([f"1.{n}" for n in range(1, 12)], True),  # counted after the point
    ],
)
def test_times_that_natural_order_would_turn_round_are_a_failed_clip(
    tmp_path: Path, names: list[str], read: bool
):
    clip_of(tmp_path / "c", *(f"{name}.png" for name in names))
    clip = only(tmp_path)
    if read:
        assert [Path(str(f)).stem for f in clip.frames] == names
    else:
        assert "write them with equally many digits, as 0.25, 0.50" in (clip.problem or "")


@given(st.integers(0, 50), st.integers(1, 30), st.integers(3, 8), st.integers(0, 4), st.data())
def test_any_even_numbering_is_read_in_order_and_any_gap_is_found(
    tmp_path_factory: pytest.TempPathFactory, first: int, step: int, count: int, width: int, data
):
    root = tmp_path_factory.mktemp("numbers")
    names = [f"{first + n * step:0{width}d}.png" for n in range(count)]
    clip_of(root / "c", *names)
    assert [Path(str(f)).name for f in only(root).frames] == names
    inner = data.draw(st.integers(1, count - 2))
    (root / "c" / names[inner]).unlink()
    if count > 3:  # of two that are left the step is not known
        assert names[inner] in (only(root).problem or "")


def test_names_that_count_nothing_are_taken_as_they_are(tmp_path: Path):
    clip_of(tmp_path / "c", "dog.png", "cat.png", "a1b2.png", "c3.png")
    assert only(tmp_path).problem is None
    clip_of(tmp_path / "d", "12-00-59.png", "12-01-00.png", "12-01-01.png")
    assert listed(tmp_path)["d"].problem is None


def test_a_picture_that_is_not_numbered_as_the_others_are_is_named(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "1.png", "2.png", "thumbnail.jpg")
    assert "not named as the other frames (0.png)" in (only(tmp_path).problem or "")
    assert "thumbnail.jpg" in (only(tmp_path).problem or "")


def test_one_frame_saved_twice_is_named(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "1.png", "1.jpg", "2.png")
    assert "the same frame as 1.jpg" in (only(tmp_path).problem or "")


# kinds


@pytest.mark.parametrize("name", ["2.exr", "2.CR2", "2.svg", "2.psd"])
def test_a_picture_of_a_kind_that_is_not_read_is_named(tmp_path: Path, name: str):
    clip_of(tmp_path / "c", "0.png", "1.png", name, "3.png")
    problem = only(tmp_path).problem or ""
    assert "a kind of file that is not read" in problem
    assert problem.endswith(f"c/{name}")


def test_jpeg_2000_among_pngs_is_read_in_its_place(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "1.jp2", "2.tif")
    frames = only(tmp_path).frames
    assert [Path(str(f)).name for f in frames] == ["0.png", "1.jp2", "2.tif"]
    assert len(read_frames(frames)) == 3


@pytest.mark.parametrize("ending", ["mts", "M2TS", "ts", "3gp", "flv", "wmv", "ogv", "mxf"])
def test_whatever_pyav_opens_is_tried_as_a_video(tmp_path: Path, ending: str):
    (tmp_path / "c").mkdir()
    with av.open(str(tmp_path / "c" / f"v.{ending}"), "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = only(tmp_path)
    assert clip.problem is None
    assert all(isinstance(frame, VideoFrame) for frame in clip.frames)
    assert len(read_frames(clip.frames)) == len(clip.frames) > 0


def test_what_a_mac_or_windows_leaves_is_nobodys_clip(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "1.png", "._0.png", ".DS_Store", "Thumbs.db", "desktop.ini")
    clip_of(tmp_path / "__MACOSX", "._a")
    clip_of(tmp_path / "__MACOSX" / "c", "._0.png")
    assert len(only(tmp_path).frames) == 2


# labels and what is beside them


def test_names_are_compared_composed(tmp_path: Path):
    composed, apart = (unicodedata.normalize(form, "é0") for form in ("NFC", "NFD"))
    assert composed != apart
    clip_of(tmp_path / "c", f"{composed}.png", "é1.png", f"labels/{apart}.png")
    first, second = only(tmp_path).labels
    assert first is not None
    assert first.name == f"{apart}.png"
    assert second is None


@pytest.mark.parametrize("name", ["masks/0.png", "Labels/0.png", "labels/old/0.png"])
def test_sub_folders_that_are_not_read_are_named(tmp_path: Path, name: str):
    clip_of(tmp_path / "c", "0.png", name)
    assert only(tmp_path).unread == (f"{name[:-5]}",)


def test_files_beside_the_labels_and_unused_pictures_of_a_video_are_named(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "v.mp4", "labels/0.png", "labels/0.txt", "labels/classes.json")
    assert only(tmp_path).unread == ("pictures of v.mp4", "labels/0.txt", "labels/classes.json")


def test_a_label_of_a_kind_that_is_not_read_is_named(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "labels/0.svg")
    assert "a label of a kind that is not read, save it as PNG" in (only(tmp_path).problem or "")


# links


def test_links_to_nowhere_are_missing_files(tmp_path: Path):
    root = tmp_path / "root"
    for name in ("frame", "sound", "label", "labels"):
        clip_of(root / name, "0.png", "1.png", "2.png", "s.wav")
    for link in ("frame/1.png", "sound/s.wav", "label/labels/1.png", "labels/labels"):
        path = root / link
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to("/mnt/old_disk/x")
    (root / "whole clip").symlink_to("/mnt/old_disk/clip")
    clips = listed(root)
    missing = "missing, a link to /mnt/old_disk/"
    assert missing in (clips["whole clip"].problem or "")
    assert missing in (clips["labels"].problem or "")
    with pytest.raises(MediaError, match=f"{missing}.*frame/1.png"):
        read_frames(clips["frame"].frames)
    assert clips["sound"].sound == root / "sound" / "s.wav"
    assert clips["label"].labels == (None, root / "label" / "labels" / "1.png", None)


def test_a_split_or_a_table_of_classes_that_is_a_link_to_nowhere_is_missing(tmp_path: Path):
    clip_of(tmp_path / "train" / "c", "0.png")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "d").symlink_to("/mnt/old_disk/d")
    assert Folders().splits(tmp_path) == ("test", "train")
    assert "missing" in (listed(tmp_path, "test")["d"].problem or "")
    (tmp_path / "label2idx.json").symlink_to("/mnt/old_disk/label2idx.json")
    assert Folders().label_rule(tmp_path) == "index"
    with pytest.raises(ComboError, match=r"label2idx\.json: no such file"):
        Folders().classes(tmp_path)
    (tmp_path / "label2idx.json").unlink()
    (tmp_path / "val").symlink_to("/mnt/old_disk/val")
    with pytest.raises(ComboError, match="val: missing, a link to"):
        Folders().splits(tmp_path)


def test_a_pipe_among_frames_is_not_passed_over(tmp_path: Path):
    clip_of(tmp_path / "c", "0.png", "2.png")
    os.mkfifo(tmp_path / "c" / "1.png")
    frames = only(tmp_path).frames
    assert len(frames) == 3
    with pytest.raises(MediaError, match=r"a pipe or a device.*1\.png"):
        read_frames(frames)


# names


def test_names_that_are_no_utf_8_are_refused_at_the_listing(tmp_path: Path):
    old = os.fsdecode(b"caf\xe9")
    clip_of(tmp_path / old, "0.png")
    clip_of(tmp_path / "c", f"{old}.png")
    clip_of(tmp_path / "d", "0.png", f"labels/{old}.png")
    for clip in listed(tmp_path).values():
        assert "a name that is no UTF-8" in (clip.problem or "")
        (clip.name + str(clip.problem)).encode()  # what a plan and a record must be able to hold
    assert set(listed(tmp_path)) == {"caf\\udce9", "c", "d"}
    clip_of(tmp_path / "root" / old / "c", "0.png")
    with pytest.raises(ComboError, match="its name is no UTF-8; rename it"):
        Folders().splits(tmp_path / "root")


# division


def test_clips_in_the_root_are_divided_by_a_rule_that_others_do_not_change(tmp_path: Path):
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    for n in range(60):
        clip_of(tmp_path / f"clip{n}", "0.png")
    rules = Folders(split=shares)
    assert rules.splits(tmp_path) == ("train", "val", "test")
    before = {split: set(listed(tmp_path, split, split=shares)) for split in shares}
    assert sorted(map(len, before.values())) == [9, 12, 39]
    assert set.union(*before.values()) == {f"clip{n}" for n in range(60)}
    for n in range(60, 90):
        clip_of(tmp_path / f"clip{n}", "0.png")
    for split in shares:
        assert before[split] <= set(listed(tmp_path, split, split=shares))
    other = set(listed(tmp_path, "train", split=shares, split_seed=1))
    assert other != set(listed(tmp_path, "train", split=shares))


def test_a_division_that_leaves_a_split_empty_names_a_seed_that_does_not(tmp_path: Path):
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    for n in range(4):
        clip_of(tmp_path / f"clip{n}", "0.png")
    with pytest.raises(ComboError, match=r"none of its 4 clips falls to .*`split_seed: \d+`") as e:
        Folders(split=shares).splits(tmp_path)
    seed = int(str(e.value).partition("split_seed: ")[2].partition("`")[0])
    assert all(listed(tmp_path, split, split=shares, split_seed=seed) for split in shares)
    with pytest.raises(ComboError, match="give it a larger share"):
        Folders(split={"train": 1 - 1e-9, "val": 1e-9}).splits(tmp_path)


@pytest.mark.parametrize("store", ["clips/store", "clips", ".", "link/store"])
def test_a_store_that_overlaps_with_the_clips_is_refused(tmp_path: Path, store: str):
    (tmp_path / "clips" / "one").mkdir(parents=True)
    (tmp_path / "link").symlink_to("clips")
    file = tmp_path / "m.yaml"
    file.write_text(f"store: {store}\ndata_sets: {{mine: {{layout: folders, root: clips}}}}\n")
    with pytest.raises(ComboError, match=r"the store .* the folder of data set 'mine'.*give ano"):
        planned(load_manifest(file), "mine", "all")


def test_a_division_beside_split_folders_is_refused(tmp_path: Path):
    clip_of(tmp_path / "train" / "c", "0.png")
    with pytest.raises(ComboError, match=r"has folders for its splits \(train\); leave .* out"):
        Folders(split={"train": 0.5, "val": 0.5}).splits(tmp_path)


def test_folders_beside_the_splits_that_hold_no_clip_are_named(tmp_path: Path) -> None:
    for place in ("train/a", "test/b"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
    (tmp_path / "val" / "c").mkdir(parents=True)  # a split whose media were not copied
    (tmp_path / ".git").mkdir()
    assert Folders().splits(tmp_path) == ("test", "train")
    assert Folders().clips(tmp_path, "train").named_unread() == "val/ (no clip in it)"
    (tmp_path / "val" / "c" / "0.png").write_bytes((tmp_path / "test/b/0.png").read_bytes())
    assert not Folders().clips(tmp_path, "train").named_unread()
