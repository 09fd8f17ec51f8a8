"""Which files a data set's rows and folders mean, and what is said when they mean none."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from combo.pipeline.errors import ComboError
from combo.pipeline.layouts import AVSS, MS3, S4, Clip, layout
from combo.pipeline.layouts.folders import Folders
from combo.pipeline.media.labels import read_label
from combo.pipeline.media.pictures import read_frames
from combo.pipeline.media.video import VideoFrame

PHOTO_CLIPS = Path(__file__).parents[3] / "shared" / "tools" / "make_photo_clips.py"


def write_csv(path: Path, header: str, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def relative(paths: tuple, root: Path) -> list[str | None]:
    return [None if path is None else str(path.relative_to(root)) for path in paths]


# AVSBench


def test_s4_has_five_frames_a_clip_and_annotates_only_the_first_in_training(tmp_path: Path):
    rows = ("a1_0,0,cat,train", "b2_500,500,dog,test")
    write_csv(tmp_path / "s4_meta_data.csv", "name,start_time,category,split", *rows)
    (train,), (test,) = (S4.clips(tmp_path, split) for split in ("train", "test"))

    frames = [f"s4_data/visual_frames/train/cat/a1_0/a1_0_{n}.png" for n in range(1, 6)]
    assert relative(train.frames, tmp_path) == frames
    first = "s4_data/gt_masks/train/cat/a1_0/a1_0_1.png"
    assert relative(train.labels, tmp_path) == [first, None, None, None, None]
    assert train.sound == tmp_path / "s4_data/audio_wav/train/cat/a1_0.wav"
    masks = [f"s4_data/gt_masks/test/dog/b2_500/b2_500_{n}.png" for n in range(1, 6)]
    assert relative(test.labels, tmp_path) == masks
    assert (train.name, train.category, train.problem) == ("a1_0", "cat", None)
    assert S4.classes(tmp_path) == ["background", "object"]
    assert (S4.label_rule(tmp_path), S4.sound_rule, S4.fit("train")) == (
        "binary",
        "avsbench",
        "squash",
    )


def test_ms3_frames_carry_mp4_in_their_names_and_all_are_annotated(tmp_path: Path):
    write_csv(tmp_path / "ms3_meta_data.csv", "video_id,split", "xyz,train")
    (clip,) = MS3.clips(tmp_path, "train")
    frames = [f"ms3_data/visual_frames/xyz/xyz.mp4_{n}.png" for n in range(1, 6)]
    masks = [f"ms3_data/gt_masks/train/xyz/xyz_{n}.png" for n in range(1, 6)]
    assert relative(clip.frames, tmp_path) == frames
    assert relative(clip.labels, tmp_path) == masks
    assert clip.sound == tmp_path / "ms3_data/audio_wav/train/xyz.wav"


def test_avss_has_three_subsets_of_five_five_and_ten_frames(tmp_path: Path):
    header = "vid,uid,s_min,s_sec,a_obj,split,label"
    rows = [f"v,{label}_{split},0,0,dog_cat,{split},{label}"
            for label in ("v1s", "v1m", "v2") for split in ("train", "test")]  # fmt: skip
    write_csv(tmp_path / "metadata.csv", header, *rows)
    (tmp_path / "label2idx.json").write_text(json.dumps({"dog": 2, "background": 0, "cat": 1}))
    train, test = AVSS.clips(tmp_path, "train"), AVSS.clips(tmp_path, "test")

    assert [c.subset for c in train] == ["v1s", "v1m", "v2"]
    assert [len(c.frames) for c in train] == [5, 5, 10]
    assert [sum(label is not None for label in c.labels) for c in train] == [1, 5, 10]
    assert [sum(label is not None for label in c.labels) for c in test] == [5, 5, 10]
    assert relative(train[2].frames, tmp_path)[9] == "v2/v2_train/frames/9.jpg"
    assert relative(train[2].labels, tmp_path)[9] == "v2/v2_train/labels_semantic/9.png"
    assert train[0].sound == tmp_path / "v1s/v1s_train/audio.wav"
    assert train[0].category == "dog_cat"
    assert AVSS.classes(tmp_path) == ["background", "cat", "dog"]
    assert AVSS.label_rule(tmp_path) == "index"
    assert [AVSS.fit(split) for split in ("train", "val", "test")] == ["crop", "squash", "squash"]


def test_the_full_sets_sizes_are_known():
    assert [sum(each.expected.values()) for each in (S4, MS3, AVSS)] == [4932, 424, 11_356]


def test_clips_come_in_the_order_of_the_csv_and_nothing_is_opened_for_them(tmp_path: Path):
    names = [f"c{n}" for n in (3, 1, 2)]
    write_csv(tmp_path / "ms3_meta_data.csv", "video_id,split", *(f"{n},val" for n in names))
    assert [clip.name for clip in MS3.clips(tmp_path, "val")] == names  # there are no files at all


def test_clips_of_a_long_table_are_made_when_they_are_asked_for(tmp_path: Path):
    rows = [f"c{n},{('train', 'val')[n % 2]}" for n in range(3000)]
    table = write_csv(tmp_path / "ms3_meta_data.csv", "video_id,split", *rows)
    clips = pickle.loads(pickle.dumps(MS3.clips(tmp_path, "val")))  # noqa: S301 - our own
    assert clips.names == tuple(f"c{n}" for n in range(1, 3000, 2))
    assert (len(clips), clips[-1].name, [c.name for c in clips[2:4]]) == (
        1500,
        "c2999",
        ["c5", "c7"],
    )
    assert [clip.name for clip in clips] == list(clips.names)
    with pytest.raises(IndexError):
        clips[1500]
    table.write_text("video_id,split\nother,val\n")  # a table that was replaced is read anew
    assert MS3.clips(tmp_path, "val").names == ("other",)


def test_a_listing_tells_the_subsets_and_names_of_rows_that_mean_no_clip(tmp_path: Path):
    rows = ("v,u1,0,0,dog,train,v3", "v,u2,0,0,dog,train,v2", "v,a/b,0,0,dog,train,v1s", "v")
    write_csv(tmp_path / "metadata.csv", "vid,uid,s_min,s_sec,a_obj,split,label", *rows)
    clips = AVSS.clips(tmp_path, "train")
    assert clips.subsets == tuple(clip.subset for clip in clips) == ("", "v2", "")
    assert clips.names == tuple(clip.name for clip in clips)


def test_the_root_may_be_named_anywhere_along_the_published_folders(tmp_path: Path):
    home = tmp_path / "AVSBench_object" / "Multi-sources"
    write_csv(home / "ms3_meta_data.csv", "video_id,split", "xyz,train")
    listed = [list(MS3.clips(root, "train")) for root in (tmp_path, home.parent, home)]
    assert listed[0] == listed[1] == listed[2]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "", "tab\there", "a\x1bb"]
)
def test_a_row_that_leaves_the_root_is_a_clip_with_a_problem_and_no_files(tmp_path: Path, name):
    with (tmp_path / "ms3_meta_data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video_id", "split"), (name, "train"), ("good", "train")])
    bad, good = MS3.clips(tmp_path, "train")
    assert bad.problem is not None
    assert "ms3_meta_data.csv line 2: video_id" in bad.problem
    assert bad.name
    assert bad.name.isprintable()
    assert (bad.frames, bad.sound, bad.labels) == ((), None, ())
    assert good.problem is None


cells = st.one_of(
    st.text(max_size=12), st.text("./\\a", max_size=5), st.sampled_from(["v1s", "v2", ".."])
)


@settings(max_examples=100)
@given(cells, cells, cells)
def test_no_csv_text_whatever_makes_a_path_outside_the_root(name: str, category: str, label: str):
    root = Path("/data/root")
    rows = {"name": name, "category": category, "split": "train", "video_id": name}
    for each in (S4, MS3, AVSS):
        columns = {**rows, "uid": name, "label": label, "a_obj": category, "": ""}
        clip = each.clip(root / each.table, 2, columns, "train")
        paths = [*clip.frames, *clip.labels, clip.sound]
        for path in paths:
            assert path is None or root in Path(*path.parts).parents
            assert path is None or ".." not in path.parts
        assert bool(clip.frames) == (clip.problem is None)


def test_an_unknown_subset_of_avss_is_a_problem_of_its_row_only(tmp_path: Path):
    header = "vid,uid,s_min,s_sec,a_obj,split,label"
    rows = ("v,u1,0,0,dog,train,v3", "v,u2,0,0,dog,train,v2")
    write_csv(tmp_path / "metadata.csv", header, *rows)
    first, second = AVSS.clips(tmp_path, "train")
    assert first.problem == "metadata.csv: label 'v3' is not one of v1s, v1m, v2"
    assert second.problem is None


def one_line_error(text: str):
    return pytest.raises(ComboError, match=rf"^[^\n]*{text}[^\n]*$")


def test_what_is_wrong_with_a_listing_is_one_line_that_names_file_and_mend(tmp_path: Path):
    table = tmp_path / "ms3_meta_data.csv"
    with one_line_error(r"ms3_meta_data\.csv: no such file; set this data set's `root`"):
        MS3.clips(tmp_path, "train")
    write_csv(table, "video,split", "a,train")
    with one_line_error(r"ms3_meta_data\.csv: no column video_id"):
        MS3.clips(tmp_path, "train")
    write_csv(table, "video_id,split", "a,train", "b,test")
    with one_line_error(r"no clip of split 'val' \(splits in the file: test, train\)"):
        MS3.clips(tmp_path, "val")
    write_csv(table, "video_id,split", "a,train", "b,train", "a,train")
    with one_line_error("clip 'a' of split 'train' stands in lines 2 and 4"):
        MS3.clips(tmp_path, "train")
    table.write_bytes(b"video_id,split\n\xff\xfe,train\n")
    with one_line_error("cannot be read as CSV"):
        MS3.clips(tmp_path, "train")
    table.write_bytes(b"")
    with one_line_error("no column video_id, split"):
        MS3.clips(tmp_path, "train")


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"a": 0, "b": 2}', '{"a": 0, "b": "1"}', '{"a": false, "b": true}']
)
def test_class_names_must_be_numbered_without_a_gap(tmp_path: Path, text: str):
    write_csv(tmp_path / "metadata.csv", "uid,split,label")
    with one_line_error("label2idx.json: no such file"):
        AVSS.classes(tmp_path)
    (tmp_path / "label2idx.json").write_text(text)
    with one_line_error("label2idx.json: "):
        AVSS.classes(tmp_path)


def test_an_unknown_layout_names_those_there_are():
    with one_line_error("'s4'.*avsbench-s4, avsbench-ms3, avsbench-avss, folders"):
        layout("s4")
    assert layout("avsbench-s4") is S4


@pytest.mark.skipif(not PHOTO_CLIPS.exists(), reason="needs ../shared/tools/make_photo_clips.py")
def test_all_three_layouts_as_documented_are_read_whole(tmp_path: Path):
    counts = ["--s4", "2,1,1", "--ms3", "1,1,1", "--avss", "3,1,1"]
    command = [sys.executable, PHOTO_CLIPS, tmp_path, *counts]
    subprocess.run(command, check=True, capture_output=True)
    seen: dict[str, int] = {}
    for rules in (S4, MS3, AVSS):
        classes, rule = rules.classes(tmp_path), rules.label_rule(tmp_path)
        for split in rules.splits(tmp_path):
            for clip in rules.clips(tmp_path, split):
                assert clip.sound is not None
                assert clip.sound.is_file()
                frames = read_frames(clip.frames)
                for frame, path in zip(frames, clip.labels, strict=True):
                    if path is not None:
                        top = read_label(path, rule, len(classes), frame.shape).max()
                        seen[rules.name] = max(seen.get(rules.name, 0), int(top))
    assert seen == {"avsbench-s4": 1, "avsbench-ms3": 1, "avsbench-avss": len(classes) - 1}


# folders


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def video(path: Path, seconds: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a listing does not open it")
    return path


def test_a_folder_of_images_is_a_clip_in_natural_order_with_labels_by_name(tmp_path: Path):
    for name in ("f10.png", "f9.jpg", "F8.png", ".hidden.png", "notes.txt"):
        picture(tmp_path / "b" / "x.png").rename(tmp_path / "b" / name)
    label = picture(tmp_path / "b" / "labels" / "f9.png")
    track = sound(tmp_path / "b" / "track.flac")
    rules = Folders()
    assert rules.splits(tmp_path) == ("all",)
    (clip,) = rules.clips(tmp_path, "all")
    assert [path.name for path in clip.frames if isinstance(path, Path)] == [
        "F8.png",
        "f9.jpg",
        "f10.png",
    ]
    assert (clip.labels, clip.sound) == ((None, label, None), track)
    assert clip.times == (0.5, 1.5, 2.5)


def test_clips_and_splits_come_in_natural_order(tmp_path: Path):
    for split in ("val", "train"):
        for name in ("clip10", "clip2", "Clip1"):
            picture(tmp_path / split / name / "0.png")
    rules = Folders()
    assert rules.splits(tmp_path) == ("train", "val")
    assert [c.name for c in rules.clips(tmp_path, "val")] == ["Clip1", "clip2", "clip10"]


def test_a_video_gives_the_middle_frame_of_every_span_and_its_own_sound(tmp_path: Path):
    path = video(tmp_path / "c" / "v.mp4", 3.0)
    label = picture(tmp_path / "c" / "labels" / "1.png")
    (clip,) = Folders().clips(tmp_path, "all")
    assert clip.frames == tuple(VideoFrame(path, t) for t in (0.5, 1.5, 2.5))
    assert (clip.sound, clip.labels) == (path, (None, label, None))
    (starts,) = Folders(anchor="start", seconds_per_frame=0.5).clips(tmp_path, "all")
    assert starts.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert len(read_frames(starts.frames)) == 6


def test_a_video_shorter_than_a_span_gives_its_middle_frame(tmp_path: Path):
    video(tmp_path / "c" / "v.mp4", 0.4)
    (clip,) = Folders().clips(tmp_path, "all")
    assert clip.times == pytest.approx([0.2])
    assert len(read_frames(clip.frames)) == 1


def test_a_table_of_classes_at_the_root_makes_label_values_classes(tmp_path: Path):
    picture(tmp_path / "c" / "0.png")
    rules = Folders()
    assert (rules.label_rule(tmp_path), len(rules.classes(tmp_path))) == ("binary", 2)
    (tmp_path / "label2idx.json").write_text('{"background": 0, "dog": 1, "cat": 2}')
    assert rules.label_rule(tmp_path) == "index"
    assert rules.classes(tmp_path) == ["background", "dog", "cat"]


def problems(root: Path, rules: Folders | None = None) -> dict[str, str | None]:
    return {clip.name: clip.problem for clip in (rules or Folders()).clips(root, "all")}


def test_a_clip_folder_that_is_unclear_is_a_problem_of_that_clip_only(tmp_path: Path):
    picture(tmp_path / "good" / "0.png")
    sound(tmp_path / "silent" / "a.wav")
    sound(picture(tmp_path / "deeper" / "frames" / "0.png").parent.parent / "a.wav")
    for name in ("a.wav", "b.wav"):
        sound(picture(tmp_path / "two_sounds" / "0.png").with_name(name))
    for name in ("a.mp4", "b.mp4"):
        sound(tmp_path / "two_videos" / name)
    sound(tmp_path / "bad_video" / "v.mp4")
    picture(picture(tmp_path / "stray" / "0.png").parent / "labels" / "7.png")
    for n in range(11):
        picture(tmp_path / "long" / f"{n}.png")
    found = problems(tmp_path, Folders(frames_per_clip=10))
    assert found.pop("good") is None
    for name, text in {
        "silent": "no frame images and no video",
        "deeper": "frames lie straight in it, not in frames/",
        "two_sounds": "more than one sound file",
        "two_videos": "more than one video file",
        "bad_video": "damaged video",
        "stray": "label of no frame",
        "long": "11 frames, more than 10",
    }.items():
        assert text in (found.pop(name) or "")
    assert not found
    assert problems(tmp_path, Folders())["long"] is None


def test_a_root_without_clips_or_with_clips_and_splits_is_one_line(tmp_path: Path):
    rules = Folders()
    with one_line_error("cannot be listed .*set this data set's `root`"):
        rules.splits(tmp_path / "nowhere")
    with one_line_error("no clip in it"):
        rules.splits(tmp_path)
    picture(tmp_path / "train" / "c" / "0.png")
    with one_line_error("no split 'test' in it, it has train"):
        rules.clips(tmp_path, "test")
    picture(tmp_path / "stray" / "0.png")
    with one_line_error(r"holds clips \(stray\) and folders of clips \(train\)"):
        rules.splits(tmp_path)


def test_a_symbolic_link_in_the_root_is_followed(tmp_path: Path):
    picture(tmp_path / "elsewhere" / "c" / "0.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (clip,) = Folders().clips(root, "all")
    assert isinstance(clip, Clip)
    assert len(read_frames(clip.frames)) == 1
    shutil.rmtree(tmp_path / "elsewhere")
