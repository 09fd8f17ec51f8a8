"""Batches from a finished store: what is in them, in which order, and when there are none."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import rewrite_unit

from combo.model.maskige import colour, reference_palette
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.plan import make_job, stage_settings
from combo.pipeline.jobs.run import Options, run_job
from combo.pipeline.layouts import S4
from combo.pipeline.manifest import Manifest, load_manifest
from combo.pipeline.media.labels import LABEL_IGNORED
from combo.pipeline.media.pictures import fit_frame, read_frames
from combo.pipeline.source import choose_variants
from combo.pipeline.store import SplitStore
from combo.pipeline.train import cache
from combo.pipeline.train.cache import batches, bytes_of, chosen
from combo.pipeline.train.loader import StoredBatch, shuffled


def same(left: StoredBatch, right: StoredBatch) -> bool:
    tensors = ("frames", "label_map", "labels", "sound", "present", "annotated")
    return left.clips == right.clips and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in tensors
    )


def test_a_batch_holds_what_the_stages_stored(finished: Manifest, open_split) -> None:
    reader = open_split(finished)
    clips = [7, 0, 13]
    batch = reader.read(clips).to(torch.device("cpu"))
    assert batch.frames.shape == batch.maskige.shape == (3, 5, 3, 64, 64)
    assert batch.frames.dtype == batch.maskige.dtype == batch.labels.dtype == torch.uint8
    assert batch.labels.shape == (3, 5, 64, 64)
    assert batch.sound.shape == (3, 5, 128)
    assert batch.clips == tuple(reader.plan.clips[i] for i in clips)

    def stored(stage: str, name: str) -> torch.Tensor:
        return torch.from_numpy(reader.split.read_array(getattr(reader.choice, stage), name)[clips])

    assert torch.equal(batch.frames, stored("frames", "frames").movedim(-1, -3))
    assert torch.equal(batch.labels, stored("frames", "labels"))
    assert torch.equal(batch.sound, stored("audio", "embedding"))
    assert torch.equal(batch.sound, reader.sound(clips))
    palette = reference_palette()
    assert torch.equal(batch.maskige, colour(stored("maskige", "label_map"), palette))


def test_frames_are_those_of_the_data_set(finished: Manifest, sample: Path, open_split) -> None:
    batch = open_split(finished).read([4])
    clip = S4.clips(sample, "train")[4]
    assert batch.clips == (clip.name,)
    frames = [fit_frame(frame, (64, 64), "squash") for frame in read_frames(clip.frames)]
    assert np.array_equal(batch.frames[0].movedim(1, -1).numpy(), np.stack(frames))
    assert batch.annotated.tolist() == [[True, False, False, False, False]]
    assert (batch.labels[0, 1:] == LABEL_IGNORED).all()
    assert set(batch.labels[0, 0].unique().tolist()) == {0, 1}


def test_shorter_clips_stand_beside_longer_ones(finished: Manifest, open_split) -> None:
    batch = open_split(finished, "avss").read([0, 1, 2])
    assert batch.frames.shape[:2] == (3, 10)
    assert batch.present.sum(1).tolist() == [5, 5, 10]
    assert batch.annotated.sum(1).tolist() == [1, 5, 10]
    assert not batch.frames[~batch.present].any()
    assert (batch.labels[~batch.present] == LABEL_IGNORED).all()


@pytest.mark.parametrize("ahead", [0, 1, 4, 99])
def test_reading_ahead_changes_neither_order_nor_content(
    finished: Manifest, open_split, ahead: int
) -> None:
    reader = open_split(finished)
    order = list(shuffled(len(reader), 3, 1, 0, 7))
    batches = list(reader.batches(order, ahead))
    assert len(batches) == 7
    assert all(same(batch, reader.read(clips)) for batch, clips in zip(batches, order, strict=True))


def test_batches_that_are_kept_do_not_change_when_more_are_read(
    finished: Manifest, open_split
) -> None:
    reader = open_split(finished)
    kept = reader.read([0, 1])
    before = replace(kept, frames=kept.frames.clone(), label_map=kept.label_map.clone())
    for batch in reader.batches(shuffled(len(reader), 2, 0, 0, 20)):
        assert batch.frames.data_ptr() != kept.frames.data_ptr()
    assert same(kept, before)


def test_what_is_on_the_device_is_what_was_stored(finished: Manifest, open_split) -> None:
    stored = open_split(finished).read([1, 2])
    batch = stored.to(torch.device("cpu"))
    for name in ("frames", "labels", "sound", "present", "annotated"):
        assert torch.equal(getattr(batch, name), getattr(stored, name))
    assert torch.equal(batch.maskige, colour(stored.label_map, stored.palette))
    assert batch.clips == stored.clips


def test_parts_of_a_batch_are_its_clips_in_order(finished: Manifest, open_split) -> None:
    reader = open_split(finished)
    cpu = torch.device("cpu")
    batch = reader.read([4, 1, 2, 7]).to(cpu)
    for part, clips in ((batch.part(0, 2), [4, 1]), (batch.part(2, 4), [2, 7])):
        whole = reader.read(clips).to(cpu)
        assert part.clips == whole.clips
        for name in ("frames", "maskige", "labels", "sound", "present", "annotated"):
            assert torch.equal(getattr(part, name), getattr(whole, name))


orders = st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 3))


@given(numbers=orders, count=st.integers(0, 40))
def test_every_clip_comes_once_in_every_epoch(numbers: tuple[int, int, int], count: int) -> None:
    clips, batch, seed = numbers
    drawn = [i for each in shuffled(clips, batch, seed, 0, count) for i in each]
    assert len(drawn) == count * batch
    for epoch in range(0, len(drawn) - clips + 1, clips):
        assert sorted(drawn[epoch : epoch + clips]) == list(range(clips))


@given(numbers=orders, stop=st.integers(0, 20), more=st.integers(0, 20))
def test_a_run_that_stopped_goes_on_with_the_same_batches(
    numbers: tuple[int, int, int], stop: int, more: int
) -> None:
    whole = list(shuffled(*numbers, 0, stop + more))
    assert whole[:stop] == list(shuffled(*numbers, 0, stop))
    assert whole[stop:] == list(shuffled(*numbers, stop, stop + more))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = shuffled(50, 50, 0, 0, 2)
    (other,) = shuffled(50, 50, 1, 0, 1)
    assert first != second
    assert first != other
    assert Counter(first) == Counter(second) == Counter(other)


def test_the_noise_of_an_evaluation_has_the_sounds_statistics(
    finished: Manifest, open_split
) -> None:
    reader = open_split(finished, "avss")
    batch = reader.read(range(len(reader)))
    heard = batch.sound[batch.present].double()
    assert len(heard) == 20  # frames that no clip has are left aside
    mean, deviation = reader.sound_statistics()
    assert torch.allclose(mean.double(), heard.mean(0), atol=1e-5)
    assert torch.allclose(deviation.double(), heard.std(0, correction=0), atol=1e-4)


@pytest.mark.parametrize("stage", ["frames", "audio", "maskige"])
def test_a_clip_that_failed_in_any_stage_is_left_out_by_name(
    own: Manifest, sample: Path, tmp_path: Path, open_split, stage: str
) -> None:
    root = tmp_path / "media"
    shutil.copytree(sample / "AVSBench_object/Single-source", root)
    text = own.file.read_text().replace(f"{sample}/AVSBench_object/Single-source", str(root))
    own.file.write_text(text)
    manifest = load_manifest(own.file)
    clip = make_job(manifest, "s4", "train", stage).clips[6]
    broken = clip.sound if stage == "audio" else clip.frames[0]
    assert isinstance(broken, Path)
    broken.write_bytes(b"")
    job = make_job(manifest, "s4", "train", stage)
    assert list(run_job(job, Options(overwrite=True)).failed) == [clip.name]

    reader = open_split(manifest)
    assert len(reader) == 15
    assert list(reader.left_out) == [clip.name]
    assert str(broken) in reader.left_out[clip.name]
    names = {name for batch in reader.batches([[i] for i in range(15)]) for name in batch.clips}
    assert names == set(reader.plan.clips) - {clip.name}


def test_a_split_of_which_no_clip_is_left_says_where_to_look(own: Manifest, open_split) -> None:
    split = SplitStore(own.store_path, "s4", "val")
    for stage, failed in (("frames", 0), ("audio", 1)):
        (variant,) = split.variants(stage)
        arrays = split.read_unit(variant, split.plan(), 0)
        arrays["valid"][failed] = 0
        rewrite_unit(split, variant, 0, arrays)
    with pytest.raises(ComboError, match=r"no clip of s4/val .* combo status"):
        open_split(own, "s4", "val")


def test_an_unfinished_stage_is_refused(own: Manifest, open_split) -> None:
    split = SplitStore(own.store_path, "s4", "train")
    (variant,) = split.variants("audio")
    records.withdraw(split, variant, 1)
    command = "combo preprocess audio --data s4 --split train"
    with pytest.raises(ComboError, match=rf"audio/mel-stats.* is not finished; run: {command}"):
        open_split(own)


def test_a_stage_finished_for_another_list_of_clips_is_refused(own: Manifest, open_split) -> None:
    split = SplitStore(own.store_path, "s4", "val")
    plan = split.plan()
    split.write_plan(replace(plan, clips=("another", *plan.clips[1:])))
    with pytest.raises(ComboError, match="is not finished"):
        open_split(own, "s4", "val")


def test_variants_are_found_by_their_settings(finished: Manifest) -> None:
    split = SplitStore(finished.store_path, "s4", "train")
    wanted = stage_settings(finished, "s4", "train")
    choice = choose_variants(split, wanted)
    assert [choice.audio, choice.frames, choice.maskige] == split.variants()
    other = finished.with_stages(encoder="vggish")
    with pytest.raises(
        ComboError, match=r"no audio .*there: mel-stats-avsbench.*combo preprocess audio --data s4"
    ):
        choose_variants(split, stage_settings(other, "s4", "train"))


def test_of_several_variants_one_must_be_named(own: Manifest) -> None:
    split = SplitStore(own.store_path, "s4", "val")
    wanted = stage_settings(own, "s4", "val")
    (audio,) = split.variants("audio")
    twin = replace(audio, name="mel-stats-twin", fingerprint="0" * 64, weights={"net": "11"})
    split.create(twin, split.plan())
    with pytest.raises(ComboError, match=r"several variants of audio.*--variant audio=NAME"):
        choose_variants(split, wanted)
    assert choose_variants(split, wanted, {"audio": twin.name}).audio == twin
    weights = {"frames": {}, "maskige": {}, "audio": {"net": "11"}}
    assert choose_variants(split, wanted, None, weights).audio == twin
    with pytest.raises(ComboError, match="no audio"):
        choose_variants(split, wanted, {"audio": "other"})


@given(clips=st.lists(st.integers(0, 15), min_size=1, max_size=9))
@settings(max_examples=15)
def test_clips_may_be_asked_for_in_any_order_and_twice(prepared: Path, clips: list[int]) -> None:
    manifest = load_manifest(prepared)
    split = SplitStore(manifest.store_path, "s4", "train")
    (variant,) = split.variants("frames")
    stored = split.read_array(variant, "frames")
    assert np.array_equal(split.reader(variant, "frames").ask(clips).result(), stored[clips])


@pytest.mark.parametrize("data_set", ["s4", "avss"])
def test_clips_kept_in_memory_give_the_batches_that_are_read(
    finished: Manifest, open_split, data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "AT_ONCE", 2)
    reader = open_split(finished, data_set)
    order = list(shuffled(len(reader), 3, 0, 0, 2 * len(reader)))
    cpu = torch.device("cpu")
    kept = list(batches(reader, order, "host", cpu))
    for ours, read in zip(kept, batches(reader, order, "none", cpu), strict=True):
        assert same(ours, read)
        assert ours.frames.stride() == read.frames.stride()
        assert torch.equal(ours.held(), read.held())
        assert torch.equal(ours.to(cpu).maskige, read.to(cpu).maskige)


def test_a_store_may_be_named_by_a_path_that_goes_up(
    finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    up = Path(os.path.relpath(finished.store_path, tmp_path))
    assert up.parts[0] == ".."
    split = SplitStore(up, "s4", "train")
    (variant,) = split.variants("frames")
    assert split.reader(variant, "frames").ask([0]).result().shape[0] == 1


def test_a_split_is_kept_where_it_is_asked_for(finished: Manifest, open_split) -> None:
    reader = open_split(finished)
    whole = reader.read(range(len(reader)))
    taken = sum(each.numel() for each in (whole.frames, whole.labels, whole.label_map))
    assert bytes_of(reader) == taken
    assert chosen("auto", reader, torch.device("cpu")) == "none"
    assert chosen("host", reader, torch.device("cuda")) == "host"
