"""The Zarr store: whole shards, one writer each, and no damage that goes unseen."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from combo.pipeline import durable
from combo.pipeline.errors import ComboError
from combo.pipeline.identity import fingerprint
from combo.pipeline.jobs.verify import verify_plan
from combo.pipeline.store import (
    ArraySpec,
    Plan,
    SplitStore,
    StoreDamaged,
    Variant,
    array_digest,
    splits_in,
)

PLAN = Plan(
    layout="folders",
    clips=tuple(f"clip{i}" for i in range(7)),
    subsets=("",) * 7,
    frames_per_clip=2,
    classes=("background", "object"),
    clips_per_unit=3,
)
VARIANT = Variant(
    stage="frames",
    name="small-0123",
    fingerprint="0123",
    settings={"size": [4, 6]},
    weights={"net": "99"},
    arrays=(
        ArraySpec("frames", (2, 4, 6, 3), "uint8"),
        ArraySpec("labels", (2, 4, 6), "uint8", 255),
        ArraySpec("embedding", (2, 5), "float32"),
    ),
    attributes={"palette": [[0, 1, 2]]},
)


@pytest.fixture
def split(tmp_path: Path) -> SplitStore:
    split = SplitStore(tmp_path / "store", "mine", "train")
    split.write_plan(PLAN)
    split.create(VARIANT, PLAN)
    return split


def unit_arrays(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        spec.name: generator.integers(0, 256, (PLAN.clips_per_unit, *spec.shape)).astype(spec.dtype)
        for spec in VARIANT.all_arrays
    }


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_opening_a_store_touches_nothing(tmp_path: Path) -> None:
    split = SplitStore(tmp_path / "store", "mine", "train")
    assert split.read_plan() is None
    assert split.variants() == []
    assert splits_in(tmp_path / "store") == []
    assert not (tmp_path / "store").exists()


def test_what_was_written_comes_back(split: SplitStore) -> None:
    written = [unit_arrays(unit) for unit in range(PLAN.units)]
    for unit, arrays in enumerate(written):
        digests = split.write_unit(VARIANT, PLAN, unit, arrays)
        assert digests == {name: array_digest(array) for name, array in arrays.items()}
    again = SplitStore(split.store, "mine", "train")
    for unit, arrays in enumerate(written):
        found = again.read_unit(VARIANT, PLAN, unit)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)
    whole = np.concatenate([arrays["labels"] for arrays in written])
    assert np.array_equal(again.read_array(VARIANT, "labels"), whole)


def test_any_zarr_reader_opens_it(split: SplitStore) -> None:
    arrays = unit_arrays(0)
    split.write_unit(VARIANT, PLAN, 0, arrays)
    group = zarr.open_group(split.tensors / VARIANT.key, mode="r")
    assert group.attrs["combo"]["settings"] == {"size": [4, 6]}
    frames = group["frames"]
    assert frames.shape == (9, 2, 4, 6, 3)
    assert frames.chunks == (1, 2, 4, 6, 3)
    assert frames.shards == (3, 2, 4, 6, 3)
    assert np.array_equal(frames[:3], arrays["frames"])


@given(rows=st.lists(st.integers(0, 8), min_size=1, max_size=12))
@settings(max_examples=20)
def test_the_loaders_reader_sees_what_zarr_sees(
    rows: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    split = _written_once(tmp_path_factory)
    for name in ("frames", "labels", "embedding"):
        whole = np.asarray(zarr.open_array(split.arrays(VARIANT) / name, mode="r")[:])
        assert np.array_equal(split.reader(VARIANT, name).ask(rows).result(), whole[rows])


def _written_once(factory: pytest.TempPathFactory) -> SplitStore:
    split = SplitStore(factory.getbasetemp() / "read_by_two", "mine", "train")
    if split.read_plan() is None:
        split.create(VARIANT, PLAN)
        for unit in range(PLAN.units):
            split.write_unit(VARIANT, PLAN, unit, unit_arrays(unit))
        split.write_plan(PLAN)
    return split


def test_a_unit_owns_whole_files_that_no_other_unit_writes(split: SplitStore) -> None:
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    before = files(split.root)
    split.write_unit(VARIANT, PLAN, 1, unit_arrays(1))
    after = files(split.root)
    assert before.items() <= after.items()
    assert set(after) - set(before) == set(split.shards(VARIANT, 1))
    assert len(split.shards(VARIANT, 1)) == len(VARIANT.all_arrays)


def test_the_same_unit_gives_the_same_bytes_again(split: SplitStore) -> None:
    split.write_unit(VARIANT, PLAN, 2, unit_arrays(2))
    before = files(split.root)
    split.write_unit(VARIANT, PLAN, 2, unit_arrays(2))
    assert files(split.root) == before


def test_a_unit_that_is_all_fill_value_has_its_files_and_reads_back(split: SplitStore) -> None:
    arrays = {
        spec.name: np.full((3, *spec.shape), spec.fill, spec.dtype) for spec in VARIANT.all_arrays
    }
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    split.write_unit(VARIANT, PLAN, 0, arrays)
    found = split.read_unit(VARIANT, PLAN, 0)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert all(shard.exists() for shard in split.shards(VARIANT, 0))
    assert (found["labels"] == 255).all()


@pytest.mark.parametrize("name", ["frames", "valid"])
def test_arrays_of_another_shape_or_type_are_refused(split: SplitStore, name: str) -> None:
    arrays = unit_arrays(0)
    for wrong in (arrays[name][:2], arrays[name].astype(np.int32)):
        with pytest.raises(ValueError, match=f"frames/small-0123/{name}: "):
            split.write_unit(VARIANT, PLAN, 0, {**arrays, name: wrong})


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_a_flipped_bit_anywhere_in_the_data_is_noticed(split: SplitStore, place: float) -> None:
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    shard = split.shards(VARIANT, 0)[0]
    data = bytearray(shard.read_bytes())
    data[int(len(data) * place)] ^= 4
    shard.write_bytes(data)
    with pytest.raises(StoreDamaged, match="frames/small-0123/frames unit 0"):
        split.read_unit(VARIANT, PLAN, 0)
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(5))  # what is damaged can be written again
    assert np.array_equal(split.read_unit(VARIANT, PLAN, 0)["frames"], unit_arrays(5)["frames"])


def test_making_a_variant_again_changes_nothing(split: SplitStore) -> None:
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    before = files(split.root)
    SplitStore(split.store, "mine", "train").create(VARIANT, PLAN)
    assert files(split.root) == before


def test_a_variant_is_listed_once_all_its_arrays_are_there(split: SplitStore) -> None:
    assert split.variants() == split.variants("frames") == [VARIANT]
    assert split.variants("audio") == []
    head = split.tensors / VARIANT.key / "zarr.json"
    whole = head.read_bytes()
    durable.remove(head)  # as after a kill in `create`, which writes it last
    assert split.variants() == []
    split.create(VARIANT, PLAN)
    assert head.read_bytes() == whole


def test_variants_live_side_by_side(split: SplitStore) -> None:
    other = dataclasses.replace(VARIANT, name="other", fingerprint="45", settings={"size": [8, 8]})
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    split.create(other, PLAN)
    split.write_unit(other, PLAN, 0, unit_arrays(1))
    assert {v.name for v in split.variants("frames")} == {"small-0123", "other"}
    assert np.array_equal(split.read_unit(VARIANT, PLAN, 0)["frames"], unit_arrays(0)["frames"])


def test_nothing_is_left_beside_what_was_written(split: SplitStore) -> None:
    split.write_unit(VARIANT, PLAN, 0, unit_arrays(0))
    assert not list(split.root.rglob("*.partial"))


def test_the_plan_comes_back_and_damage_is_one_line(split: SplitStore) -> None:
    assert split.plan() == PLAN
    split.plan_path.write_text('{"layout": 1}')
    with pytest.raises(
        ComboError, match=r"plan\.json is damaged .* units that are done stay"
    ) as caught:
        split.plan()
    assert "\n" not in str(caught.value)


def test_a_folder_under_another_splits_name_is_refused(split: SplitStore) -> None:
    split.root.rename(split.root.with_name("test"))
    other = SplitStore(split.store, "mine", "test")
    with pytest.raises(ComboError, match=r"holds mine/train, .* and not mine/test; give") as caught:
        other.plan()
    assert not isinstance(caught.value, StoreDamaged)
    (finding,), mended = verify_plan(other, None)
    assert ("holds mine/train" in finding.problem, mended) == (True, [])
    text = json.loads(other.plan_path.read_bytes())
    durable.write_json(other.plan_path, {**text, "of": "mine/test"})
    assert other.plan() == PLAN
    del text["of"]  # an older combo's
    durable.write_json(other.plan_path, text)
    assert other.plan() == PLAN


def test_a_path_that_is_no_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ComboError, match=r"must be UTF-8, .* rename that folder"):
        SplitStore(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), "mine", "train")


def test_a_split_whose_plan_is_lost_is_found_when_it_is_asked_for(split: SplitStore) -> None:
    other = SplitStore(split.store, "mine", "test")
    other.write_plan(PLAN)
    (split.root / "records").mkdir()
    split.plan_path.unlink()
    assert [s.split for s in splits_in(split.store)] == ["test"]
    assert [s.split for s in splits_in(split.store, lost=True)] == ["test", split.split]
    assert splits_in(split.store, ["yours"]) == []


@given(clips=st.integers(1, 200), per_unit=st.integers(1, 50))
def test_units_share_out_the_clips_without_gap_or_overlap(clips: int, per_unit: int) -> None:
    plan = dataclasses.replace(PLAN, clips=("x",) * clips, clips_per_unit=per_unit)
    members = [list(plan.members(unit)) for unit in range(plan.units)]
    assert [i for unit in members for i in unit] == list(range(clips))
    assert all(len(unit) == per_unit for unit in members[:-1])
    assert 1 <= len(members[-1]) <= per_unit


@pytest.mark.parametrize(
    "change",
    [
        {"clips": ("clip0",), "subsets": ("",)},
        {"clips": PLAN.clips[::-1]},
        {"subsets": ("v2",) * 7},
        {"clips_per_unit": 4},
        {"frames_per_clip": 3},
        {"classes": ("background", "cat")},
        {"layout": "avsbench-s4"},
        {"seconds_per_frame": 0.5},
    ],
)
def test_a_plans_fingerprint_depends_on_all_of_it(change: dict) -> None:
    assert dataclasses.replace(PLAN, **change).fingerprint != PLAN.fingerprint


value = st.integers() | st.text(max_size=3) | st.lists(st.booleans(), max_size=2)
nested = st.dictionaries(st.text(max_size=3), value, min_size=2, max_size=4)


@given(value=st.dictionaries(st.text(max_size=3), value | nested, min_size=2, max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(value: dict) -> None:
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)
    assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


def test_a_digest_is_of_the_values_not_of_how_they_lie_in_memory() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert array_digest(array) == array_digest(np.asfortranarray(array))
    assert array_digest(array) == array_digest(np.repeat(array, 2, 1)[:, ::2])
    assert array_digest(array) != array_digest(array.T)
