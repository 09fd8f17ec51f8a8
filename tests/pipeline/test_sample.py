"""The data set made by the project: AVSBench's layouts, and only listening finds the answer."""

import csv
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from combo.pipeline.errors import ComboError
from combo.pipeline.layouts import AVSS, MS3, S4, Clip
from combo.pipeline.media.labels import read_label
from combo.pipeline.media.pictures import read_frames
from combo.pipeline.sample import AVSS_SIZES, MARK, _cast, _lead, write_sample
from combo.pipeline.sample_scenes import KINDS, RATE, film

COUNTS = {"s4": (2, 1, 6), "ms3": (1, 1, 1), "avss": (3, 1, 3)}
TINY = {"s4": (1, 1, 1), "ms3": (0, 0, 0), "avss": (0, 0, 0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "data"
    assert write_sample(folder, **COUNTS)
    return folder


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def sound_of(clip: Clip) -> np.ndarray:
    assert clip.sound is not None
    samples, rate = soundfile.read(clip.sound, dtype="float32")
    assert rate == RATE
    return samples


def test_it_has_the_clips_asked_for_at_the_published_sizes(root: Path):
    for rules, counts in ((S4, COUNTS["s4"]), (MS3, COUNTS["ms3"]), (AVSS, COUNTS["avss"])):
        classes, rule = len(rules.classes(root)), rules.label_rule(root)
        for split, count in zip(rules.splits(root), counts, strict=True):
            clips = rules.clips(root, split)
            assert len(clips) == count
            for clip in clips:
                frames = read_frames(clip.frames)
                assert {f.shape[:2] for f in frames} <= (
                    set(AVSS_SIZES) if rules is AVSS else {(224, 224)}
                )
                assert len(sound_of(clip)) == len(frames) * RATE
                for frame, path in zip(frames, clip.labels, strict=True):
                    assert path is None or read_label(path, rule, classes, frame.shape).any()


def test_its_tables_have_the_published_columns(root: Path):
    def header(path: str) -> list[str]:
        with (root / path).open() as file:
            return next(csv.reader(file))

    s4 = header("AVSBench_object/Single-source/s4_meta_data.csv")
    assert s4 == ["name", "start_time", "category", "split"]
    assert header("AVSBench_object/Multi-sources/ms3_meta_data.csv") == ["video_id", "split"]
    avss = header("AVSBench_semantic/metadata.csv")
    assert avss == ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]


def test_only_what_the_published_sets_annotate_is_annotated(root: Path):
    masks = root / "AVSBench_object/Single-source/s4_data/gt_masks"
    assert len(list(masks.glob("train/*/*/*.png"))) == COUNTS["s4"][0]
    assert len(list(masks.glob("test/*/*/*.png"))) == 5 * COUNTS["s4"][2]
    subsets = {clip.subset: clip for clip in AVSS.clips(root, "train")}
    labels = {name: len(list((root / "AVSBench_semantic" / name / subsets[name].name
              / "labels_semantic").iterdir())) for name in subsets}  # fmt: skip
    assert labels == {"v1s": 1, "v1m": 5, "v2": 10}


def test_every_kind_of_shape_sounds_once_in_six_clips(root: Path):
    kinds = [clip.category for clip in S4.clips(root, "test")]
    assert sorted(kinds) == sorted(kind.name for kind in KINDS)


def test_swapping_sounds_by_half_a_split_seldom_pairs_equals():
    for number in range(3):
        leads = np.array([_lead(0, number, 2, index) for index in range(60)])
        for count in range(4, 61):
            swapped = np.roll(leads[:count], count // 2)
            assert (leads[:count] == swapped).mean() <= 0.34


def test_the_truth_marks_the_shapes_that_sound_and_no_others():
    rng = np.random.default_rng(3)
    sources = [(0,), (0, 2), (2,), (), (4,)]
    scene = film(rng, (224, 224), visible=(0, 2, 4), sources=sources)
    marked = [set(np.unique(labels)) - {0} for labels in scene.labels]
    assert marked == [{1 + kind for kind in now} for now in sources]
    loudness = scene.sound.reshape(5, RATE)[:, RATE // 10 : -RATE // 10].std(axis=1)
    assert loudness[3] < 0.01 < min(loudness[[0, 1, 2, 4]])


def test_some_visible_shape_is_silent_in_every_second(root: Path):
    for clip in AVSS.clips(root, "test"):
        for path in clip.labels:
            assert path is not None
            heard = set(np.unique(read_label(path, "index", 7))) - {0}
            assert 1 <= len(heard) <= 2
    for seed in range(20):
        visible, sources = _cast(np.random.default_rng(seed), 10, seed % 6, steady=False)
        assert all(0 < len(set(now)) < len(visible) for now in sources)
        assert all(set(now) <= set(visible) for now in sources)


def test_voices_are_told_apart_by_their_spectra():
    """Comparing one second's spectrum with the mean of a few others names every voice."""

    def spectrum(seed: int, kind: int) -> np.ndarray:
        sound = film(np.random.default_rng([seed, kind]), (16, 16), (kind,), [(kind,)]).sound
        power = np.abs(np.fft.rfft(sound))[20:8000] ** 2
        edges = np.geomspace(1, len(power), 30).astype(int)[:-1]
        return np.log(np.maximum.reduceat(power, edges) + 1)

    known = np.stack([np.mean([spectrum(s, k) for s in range(4)], axis=0) for k in range(6)])
    for seed in range(4, 10):
        for kind in range(6):
            distances = np.linalg.norm(known - spectrum(seed, kind), axis=1)
            assert int(distances.argmin()) == kind


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_sample(tmp_path / name, **TINY, seed=seed)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a.values()).isdisjoint(c.values())


def test_more_clips_leave_the_clips_there_were_as_they_are(tmp_path: Path):
    write_sample(tmp_path / "few", **TINY)
    write_sample(tmp_path / "many", **{**TINY, "s4": (2, 2, 1)})
    few, many = tree(tmp_path / "few"), tree(tmp_path / "many")
    media = {name for name in few if not name.endswith((".csv", ".json"))}
    assert len(media) == 3 * 5 + 1 + 5 + 5 + 3
    assert all(few[name] == many[name] for name in media)


def test_progress_counts_clips(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    write_sample(tmp_path / "a", **TINY, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_writing_it_again_changes_nothing(root: Path):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not write_sample(root, **COUNTS)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_nothing_of_the_users_is_overwritten(tmp_path: Path):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(ComboError, match=r"not empty \(precious\.txt\).*combo sample DIR"):
        write_sample(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_sample_of_other_settings_or_with_a_file_gone_is_left_alone(tmp_path: Path):
    root = tmp_path / "a"
    write_sample(root, **TINY)
    with pytest.raises(ComboError, match="a sample of other settings"):
        write_sample(root, **TINY, seed=1)
    next(root.rglob("*.wav")).unlink()
    with pytest.raises(ComboError, match="files were changed or removed"):
        write_sample(root, **TINY)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 2), (1, 2)])
def test_senseless_counts_are_one_line(tmp_path: Path, counts):
    with pytest.raises(ComboError):
        write_sample(tmp_path / "a", s4=counts, ms3=(0, 0, 0), avss=(0, 0, 0))
    assert not (tmp_path / "a").exists()


def test_an_empty_folder_that_is_there_is_filled(tmp_path: Path):
    assert write_sample(tmp_path, **TINY)
    assert len(S4.clips(tmp_path, "train")) == 1


def test_a_sample_killed_while_it_is_written_is_not_one_and_is_begun_again(tmp_path: Path):
    root, whole = tmp_path / "killed", tmp_path / "whole"
    counts = {"s4": (3, 1, 1), "ms3": (1, 1, 1), "avss": (1, 1, 1)}
    code = (
        "from pathlib import Path; from combo.pipeline.sample import write_sample;"
        f"write_sample(Path({str(root)!r}), **{counts!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300
    while not list(root.rglob("*_3.png")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / MARK).exists()
    with pytest.raises(ComboError, match=r"s4_meta_data\.csv: no such file"):
        S4.clips(root, "train")
    assert write_sample(root, **counts)
    write_sample(whole, **counts)
    assert tree(root) == tree(whole)


def test_a_sample_killed_while_it_is_moved_into_place_is_finished(tmp_path: Path):
    root, whole = tmp_path / "killed", tmp_path / "whole"
    counts = {**TINY, "avss": (1, 1, 1)}
    write_sample(whole, **counts)
    write_sample(root, **counts)
    staging = root / ".sample.partial"
    staging.mkdir()
    for name in ("AVSBench_semantic", MARK):
        (root / name).rename(staging / name)
    assert write_sample(root, **counts)
    assert tree(root) == tree(whole)
    assert not staging.exists()
