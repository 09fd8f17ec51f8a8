"""The three stages: what they make of a clip, and what they say about one they cannot read."""

import pickle
import shutil
import wave
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage.segmentation import felzenszwalb

from combo.model.maskige import merge, reference_palette
from combo.model.vggish import LogMel, consecutive, mel_statistics
from combo.pipeline.devices import Place
from combo.pipeline.errors import ComboError
from combo.pipeline.generators.felzenszwalb import merge_segments
from combo.pipeline.jobs.plan import make_job, splits_of, stage_settings
from combo.pipeline.jobs.run import Options, run_job, settle_plan
from combo.pipeline.layouts import AVSS, MS3, S4, Clip
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.media.labels import LABEL_IGNORED, read_label
from combo.pipeline.media.pictures import read_frames
from combo.pipeline.preprocess.stage import Outcome
from combo.pipeline.store import STAGES

RATE = 16_000


def made(manifest: Manifest, data_set: str, split: str, stage: str, clips: Sequence[Clip]):
    """The arrays of clips that a stage can read."""
    outcomes = run(manifest, data_set, split, stage, clips)
    assert [outcome.reason for outcome in outcomes] == [""] * len(clips)
    return [outcome.arrays for outcome in outcomes]


def run(
    manifest: Manifest, data_set: str, split: str, stage: str, clips: Sequence[Clip]
) -> list[Outcome]:
    return make_job(manifest, data_set, split, stage).stage.open(Place())(clips)


def write_tone(path: Path, seconds: float, hertz: float = 440.0) -> Path:
    """A tone that rises, so that no second of it is like another."""
    time = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * (hertz + 50 * time) * time) * 0.5
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("data_set", ["s4", "ms3", "avss"])
def test_every_stage_makes_the_arrays_that_it_announces(
    manifest: Manifest, data_set: str, stage: str
) -> None:
    clips = make_job(manifest, data_set, "train", stage).clips[:2]
    made_stage = make_job(manifest, data_set, "train", stage).stage
    assert pickle.loads(pickle.dumps(made_stage)) == made_stage  # noqa: S301 - goes to workers
    for found in made(manifest, data_set, "train", stage, clips):
        announced = {
            spec.name: (spec.shape, np.dtype(spec.dtype)) for spec in made_stage.variant().arrays
        }
        assert {name: (each.shape, each.dtype) for name, each in found.items()} == announced


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_clip_gives_the_same_arrays_whoever_stands_beside_it(
    manifest: Manifest, stage: str
) -> None:
    clips = list(make_job(manifest, "s4", "train", stage).clips[:3])
    lost = Clip("lost", problem="its row leaves the root")
    together = run(manifest, "s4", "train", stage, [clips[0], lost, *clips[1:]])
    assert together[1].arrays is None
    assert "leaves the root" in together[1].reason
    alone = [run(manifest, "s4", "train", stage, [clip])[0] for clip in clips]
    for left, right in zip([together[0], *together[2:]], alone, strict=True):
        assert left.inputs == right.inputs
        assert left.arrays is not None
        assert right.arrays is not None
        for name in left.arrays:
            np.testing.assert_allclose(left.arrays[name], right.arrays[name], atol=1e-5)


# -- frames --------------------------------------------------------------------------------------


def test_s4_frames_are_squashed_and_in_training_only_the_first_is_annotated(
    manifest: Manifest, sample: Path
) -> None:
    clip = S4.clips(sample, "train")[0]
    (found,) = made(manifest, "s4", "train", "frames", [clip])
    for frame, path in zip(found["frames"], clip.frames, strict=True):
        assert isinstance(path, Path)
        picture = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        assert np.array_equal(frame, np.asarray(picture))
    assert found["present"].tolist() == [1] * 5
    assert found["annotated"].tolist() == [1, 0, 0, 0, 0]
    assert (found["labels"][1:] == LABEL_IGNORED).all()
    assert clip.labels[0] is not None
    mask = Image.open(clip.labels[0]).convert("L").resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(found["labels"][0], np.asarray(mask) // 255)


def test_s4_test_and_ms3_clips_are_annotated_throughout(manifest: Manifest, sample: Path) -> None:
    for data_set, split, rules in (("s4", "test", S4), ("ms3", "train", MS3)):
        (found,) = made(manifest, data_set, split, "frames", rules.clips(sample, split)[:1])
        assert found["annotated"].tolist() == [1] * 5
        assert set(np.unique(found["labels"])) <= {0, 1}


def test_avss_clips_have_five_or_ten_frames(manifest: Manifest, sample: Path) -> None:
    clips = AVSS.clips(sample, "train")
    assert [clip.subset for clip in clips] == ["v1s", "v1m", "v2"]
    found = made(manifest, "avss", "train", "frames", clips)
    assert [each["present"].tolist() for each in found] == [[1] * 5 + [0] * 5] * 2 + [[1] * 10]
    assert [int(each["annotated"].sum()) for each in found] == [1, 5, 10]
    classes = len(AVSS.classes(sample))
    for each in found:
        there = each["annotated"].astype(bool)
        assert (each["labels"][~there] == LABEL_IGNORED).all()
        assert each["labels"][there].max() < classes
        assert not each["frames"][~each["present"].astype(bool)].any()


@pytest.mark.parametrize(
    ("split", "fit"), [("train", "crop"), ("val", "squash"), ("test", "squash")]
)
def test_avss_is_cropped_in_training_and_squashed_elsewhere(
    manifest: Manifest, sample: Path, split: str, fit: str
) -> None:
    for clip in AVSS.clips(sample, split):
        (found,) = made(manifest, "avss", split, "frames", [clip])
        assert isinstance(clip.frames[0], Path)
        assert clip.labels[0] is not None
        for array, path, filter_ in (
            (found["frames"][0], clip.frames[0], Image.Resampling.BILINEAR),
            (found["labels"][0], clip.labels[0], Image.Resampling.NEAREST),
        ):
            picture = Image.open(path)
            width, height = picture.size
            assert width != height
            if fit == "squash":
                picture = picture.resize((64, 64), filter_)
            else:
                scaled = (int(64 * width / height), 64) if width > height else (
                    64, int(64 * height / width)
                )  # fmt: skip
                picture = picture.resize(scaled, filter_)
                left, top = ((long - 64) / 2 for long in scaled)
                picture = picture.crop((round(left), round(top), round(left) + 64, round(top) + 64))
            assert np.array_equal(array, np.asarray(picture))


def test_a_crop_loses_the_ends_of_the_long_side_and_a_squash_keeps_them(
    manifest: Manifest, tmp_path: Path
) -> None:
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[:, :30] = picture[:, -30:] = 255
    label = (picture[..., 0] > 0).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    clip = Clip("wide", (tmp_path / "0.png",), None, (tmp_path / "label.png",), times=(0.5,))
    (cropped,) = made(manifest, "avss", "train", "frames", [clip])
    (squashed,) = made(manifest, "avss", "test", "frames", [clip])
    assert not cropped["labels"][0].any()
    assert not cropped["frames"][0].any()
    assert squashed["labels"][0].mean() == pytest.approx(60 / 160, abs=0.01)
    assert np.array_equal(squashed["frames"][0, :, :, 0] > 127, squashed["labels"][0] == 1)


def test_how_a_split_is_fitted_can_be_changed_in_the_manifest(manifest_file, sample: Path) -> None:
    path = manifest_file()
    text = path.read_text().replace(
        "AVSBench_semantic}", "AVSBench_semantic, fit: {train: squash}}"
    )
    path.write_text(text)
    manifest = load_manifest(path)
    clip = AVSS.clips(sample, "train")[0]
    (found,) = made(manifest, "avss", "train", "frames", [clip])
    frame = Image.fromarray(read_frames(clip.frames)[0])
    expected = frame.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(found["frames"][0], np.asarray(expected))
    assert stage_settings(manifest, "avss", "train")["frames"]["fit"] == "squash"
    assert stage_settings(manifest, "avss", "test")["frames"]["fit"] == "squash"


# -- sound ---------------------------------------------------------------------------------------


def patches_of(path: Path) -> torch.Tensor:
    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return LogMel()(consecutive(torch.from_numpy(data.astype(np.float32) / 32768)))


def with_sound(manifest: Manifest, data_set: str, path: Path) -> Clip:
    return replace(make_job(manifest, data_set, "train", "audio").clips[0], sound=path)


def test_a_sound_of_full_length_has_a_window_for_every_frame(
    manifest: Manifest, tmp_path: Path
) -> None:
    path = write_tone(tmp_path / "five.wav", 5.0)
    (found,) = made(manifest, "s4", "train", "audio", [with_sound(manifest, "s4", path)])
    expected = mel_statistics(patches_of(path))
    assert expected.shape == (5, 128)
    np.testing.assert_allclose(found["embedding"], expected.numpy(), atol=1e-4)


def test_object_clips_repeat_the_last_window_of_a_short_sound(
    manifest: Manifest, tmp_path: Path
) -> None:
    path = write_tone(tmp_path / "short.wav", 3.2)
    for data_set in ("s4", "ms3"):
        (found,) = made(
            manifest, data_set, "train", "audio", [with_sound(manifest, data_set, path)]
        )
        embedding = found["embedding"]
        expected = mel_statistics(patches_of(path)).numpy()
        assert len(expected) == 3
        np.testing.assert_allclose(embedding[:3], expected, atol=1e-4)
        assert np.array_equal(embedding[3], embedding[2])
        assert np.array_equal(embedding[4], embedding[2])


def test_semantic_clips_get_patches_of_zeros_after_the_sound(
    manifest: Manifest, tmp_path: Path
) -> None:
    path = write_tone(tmp_path / "short.wav", 3.2)
    (found,) = made(manifest, "avss", "train", "audio", [with_sound(manifest, "avss", path)])
    expected = mel_statistics(torch.cat((patches_of(path), torch.zeros(7, 96, 64)))).numpy()
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-4)


def test_windows_around_the_frames_times_belong_to_each_frame(
    manifest_file, tmp_path: Path
) -> None:
    path = manifest_file()
    path.write_text(path.read_text().replace("mel-stats}", "mel-stats, windows: centred}"))
    manifest = load_manifest(path)
    clip = with_sound(manifest, "s4", write_tone(tmp_path / "long.wav", 9.0))
    (found,) = made(manifest, "s4", "train", "audio", [clip])
    later = replace(clip, times=tuple(t + 1 for t in clip.times))
    (shifted,) = made(manifest, "s4", "train", "audio", [later])
    np.testing.assert_allclose(found["embedding"][1:], shifted["embedding"][:-1], atol=1e-4)
    assert not np.allclose(found["embedding"][0], found["embedding"][1], atol=1e-2)


@pytest.mark.parametrize(("seconds", "says"), [(0.9, "short"), (6.0, "sound"), (60.0, "sound")])
def test_a_sound_of_the_wrong_length_fails_its_clip_by_name(
    manifest: Manifest, tmp_path: Path, seconds: float, says: str
) -> None:
    path = write_tone(tmp_path / "wrong.wav", seconds)
    (outcome,) = run(manifest, "s4", "train", "audio", [with_sound(manifest, "s4", path)])
    assert outcome.arrays is None
    assert says in outcome.reason
    assert str(path) in outcome.reason


def test_a_clip_without_sound_says_so(manifest: Manifest) -> None:
    clip = replace(make_job(manifest, "s4", "train", "audio").clips[0], sound=None)
    (outcome,) = run(manifest, "s4", "train", "audio", [clip])
    assert outcome.arrays is None
    assert "no sound" in outcome.reason
    assert clip.name in outcome.reason


# -- Maskiges ------------------------------------------------------------------------------------


def merged_masks(frame: np.ndarray) -> torch.Tensor:
    """The Maskige rule as the network's side states it, from one boolean mask a segment."""
    segments = torch.from_numpy(felzenszwalb(frame, scale=200.0, sigma=0.8, min_size=60))
    return merge(torch.stack([segments == i for i in range(int(segments.max()) + 1)])).label_map


def test_a_label_map_is_the_merged_masks_of_the_stored_frame(
    manifest: Manifest, sample: Path
) -> None:
    clip = AVSS.clips(sample, "train")[2]
    (frames,) = made(manifest, "avss", "train", "frames", [clip])
    (found,) = made(manifest, "avss", "train", "maskige", [clip])
    for t in (0, 9):
        assert np.array_equal(found["label_map"][t], merged_masks(frames["frames"][t]).numpy())
        assert found["masks"][t] == found["label_map"][t].max()
    assert not found["left_out"].any()


def test_masks_of_the_native_frame_go_the_labels_way_to_the_stored_size(
    manifest_file, sample: Path
) -> None:
    path = manifest_file()
    path.write_text(path.read_text().replace("at: stored", "at: native"))
    manifest = load_manifest(path)
    (clip,) = AVSS.clips(sample, "test")[:1]
    (found,) = made(manifest, "avss", "test", "maskige", [clip])
    frame = read_frames(clip.frames)[0]
    assert frame.shape[:2] != (64, 64)
    native = Image.fromarray(merged_masks(frame).numpy())
    expected = np.array(native.resize((64, 64), Image.Resampling.NEAREST))
    assert np.array_equal(found["label_map"][0], expected)
    # In training it is cropped, as the labels are.
    (cropped,) = made(manifest, "avss", "train", "maskige", [clip])
    assert not np.array_equal(cropped["label_map"][0], expected)


def test_frames_that_a_clip_does_not_have_have_no_masks(manifest: Manifest, sample: Path) -> None:
    (found,) = made(manifest, "avss", "train", "maskige", AVSS.clips(sample, "train")[:1])
    assert found["masks"][:5].all()
    assert not found["masks"][5:].any()
    assert not found["label_map"][5:].any()


@given(
    segments=arrays.arrays(
        np.int64, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 400)
    )
)
def test_segments_merge_as_their_masks_do(segments: np.ndarray) -> None:
    found = merge_segments(segments)
    tensor = torch.from_numpy(segments)
    expected = merge(torch.stack([tensor == i for i in range(int(segments.max()) + 1)]))
    assert np.array_equal(found.label_map, expected.label_map.numpy())
    assert found.left_out == expected.left_out
    assert found.masks == segments.max() + 1


def test_a_frame_of_more_segments_than_any_counter_holds_is_counted(
    manifest_file, tmp_path: Path
) -> None:
    path = manifest_file()
    crumbs = "at: native, felzenszwalb: {scale: 0.001, sigma: 0, min_size: 1}"
    path.write_text(path.read_text().replace("at: stored", crumbs))
    noise = np.random.default_rng(0).integers(0, 256, (280, 280, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    clip = Clip("noise", (tmp_path / "noise.png",), None, (None,), times=(0.5,))
    (found,) = made(load_manifest(path), "s4", "train", "maskige", [clip])
    assert found["masks"][0] > 2**16
    assert found["left_out"][0] == found["masks"][0] - 255


def test_a_maskige_keeps_the_palette_it_is_coloured_with(manifest: Manifest) -> None:
    variant = make_job(manifest, "s4", "train", "maskige").variant
    assert variant.attributes["palette"] == reference_palette().tolist()


# -- from the manifest to jobs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "stage", "file"),
    [
        ({"generator": "sam-vit-b"}, "maskige", "sam_vit_b_01ec64.pth"),
        ({"generator": "sam-vit-h"}, "maskige", "sam_vit_h_4b8939.pth"),
        ({"encoder": "vggish"}, "audio", "vggish-10086976.pth"),
    ],
)
def test_missing_weights_are_one_line_before_any_work(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes, stage, file
) -> None:
    monkeypatch.setenv("COMBO_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ComboError, match=r"missing: .* published at .*combo weights") as caught:
        make_job(manifest.with_stages(**changes), "s4", "train", stage)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not manifest.store_path.exists()


@pytest.mark.parametrize(
    ("changes", "stage"), [({"generator": "magic"}, "maskige"), ({"encoder": "magic"}, "audio")]
)
def test_an_unknown_name_names_those_there_are(manifest: Manifest, changes, stage: str) -> None:
    with pytest.raises(ComboError, match=r"'magic'.*(felzenszwalb|mel-stats)"):
        make_job(manifest.with_stages(**changes), "s4", "train", stage)
    with pytest.raises(ComboError, match="no stage 'magic'; there are frames, audio, maskige"):
        make_job(manifest, "s4", "train", "magic")
    with pytest.raises(ComboError, match="no split 'magic'; it has train, val, test"):
        splits_of(manifest, "s4", ["magic"])


def test_settings_make_the_variant_and_need_no_data(manifest_file, tmp_path: Path) -> None:
    path = manifest_file(root=tmp_path / "nowhere")
    manifest = load_manifest(path)
    first = stage_settings(manifest, "s4", "train")
    path.write_text(path.read_text().replace("size: 64", "size: 96"))
    second = stage_settings(load_manifest(path), "s4", "train")
    assert first.keys() == second.keys() == set(STAGES)
    assert first["frames"] != second["frames"]
    assert first["maskige"] != second["maskige"]
    assert first["audio"] == second["audio"]


@pytest.mark.parametrize(
    ("damage", "readers"),
    [("frame", {"frames", "maskige"}), ("label", {"frames"}), ("sound", {"audio"})],
)
def test_what_is_wrong_with_a_file_is_recorded_by_the_stages_that_read_it(
    sample: Path, tmp_path: Path, manifest_file, damage: str, readers: set[str]
) -> None:
    root = shutil.copytree(sample, tmp_path / "own")
    manifest = load_manifest(manifest_file(root))
    clip = make_job(manifest, "ms3", "val", "frames").clips[1]
    broken = {"frame": clip.frames[3], "label": clip.labels[3], "sound": clip.sound}[damage]
    assert isinstance(broken, Path)
    broken.unlink()
    for stage in STAGES:
        job = make_job(manifest, "ms3", "val", stage)
        settle_plan(job, Options())
        summary = run_job(job, Options())
        assert summary.finished is not None
        assert set(summary.failed) == ({clip.name} if stage in readers else set())
        assert all(str(broken) in reason for reason in summary.failed.values())
        valid = job.split.read_array(job.variant, "valid")
        assert valid.tolist() == [1, int(stage not in readers)]


def test_a_label_out_of_range_and_a_row_that_leaves_the_root_fail_their_clips(
    sample: Path, tmp_path: Path, manifest_file
) -> None:
    root = shutil.copytree(sample, tmp_path / "own")
    manifest = load_manifest(manifest_file(root))
    clips = AVSS.clips(root, "val")
    label = clips[0].labels[2]
    assert label is not None
    values = read_label(label, "index", len(AVSS.classes(root))).copy()
    values[0, 0] = 200
    Image.fromarray(values).save(label)
    table = root / "AVSBench_semantic" / "metadata.csv"
    table.write_text(table.read_text().replace(clips[1].name, "../../elsewhere"))
    job = make_job(manifest, "avss", "val", "frames")
    settle_plan(job, Options())
    failed = run_job(job, Options()).failed
    assert "label value 200 is outside" in failed[clips[0].name]
    assert "leaves the data set's root" in failed["../../elsewhere"]
