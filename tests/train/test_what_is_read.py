"""Training and evaluation take what the stages wrote, or say which file is not that."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from rewritten import rewrite_unit
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline import durable
from combo.pipeline.clip_checks import checks_in, parse_checks
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.pack import pack, verify_packed
from combo.pipeline.jobs.plan import make_job
from combo.pipeline.jobs.repair import work_in
from combo.pipeline.jobs.run import Options, run_job
from combo.pipeline.jobs.verify import Finding, verify_description, verify_plan, verify_variant
from combo.pipeline.manifest import Manifest
from combo.pipeline.source import Choice, Source, open_source
from combo.pipeline.store import STAGES, SplitStore, StoreDamaged
from combo.pipeline.train.evaluate import measure, open_split
from combo.pipeline.train.loader import ClipReader
from combo.pipeline.train.start import start

READ = ("frames/frames", "frames/labels", "frames/present", "frames/annotated", "frames/valid",
        "audio/embedding", "audio/valid", "maskige/label_map", "maskige/valid")  # fmt: skip


def train_split(manifest: Manifest) -> SplitStore:
    return SplitStore(manifest.store_path, "s4", "train")


def shard_of(split: SplitStore, array: str, unit: int) -> Path:
    """The file of an array, `stage/name`."""
    stage, name = array.split("/")
    (variant,) = split.variants(stage)
    return split.shards(variant, unit)[[spec.name for spec in variant.all_arrays].index(name)]


def opened(source: Source) -> ClipReader:
    return ClipReader(source, Choice(*(source.variants(stage)[0] for stage in STAGES)))


def read_all(source: Source) -> list[bytes]:
    """Everything that training and evaluation get of a split, twice, as in a second epoch."""
    reader = opened(source)
    found = [json.dumps(asdict(reader.plan)).encode(), json.dumps(reader.left_out).encode()]
    found += [str(reader.rows.tolist()).encode(), str(reader.labelled).encode()]
    for _ in range(2):
        batch = reader.read(range(len(reader)))
        names = ("frames", "labels", "label_map", "sound", "present", "annotated", "palette")
        found += [getattr(batch, name).numpy().tobytes() for name in names]
        found.append(" ".join(batch.clips).encode())
    return found


def refused(source: Source) -> str:
    """The one line that reading a split ends with."""
    with pytest.raises(ComboError) as caught:
        read_all(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def findings(split: SplitStore) -> list[Finding]:
    found, _ = verify_plan(split, None)
    for key in () if found else work_in(split):
        wrong, _ = verify_description(split, key, None, repair=False)
        variant = None if wrong else split.read_variant(key)
        units = () if variant is None else verify_variant(split, variant)
        found += [*wrong, *(each for each in units if isinstance(each, Finding))]
    return found


REPAIR = "run: combo verify --repair --data s4 --split train"


@pytest.mark.parametrize("array", READ)
def test_a_missing_file_is_never_read_as_fill_value(own: Manifest, array: str) -> None:
    split = train_split(own)
    shard = shard_of(split, array, 2)
    shard.unlink()
    said = refused(split)
    assert str(shard) in said
    assert f"clip {split.plan().clips[6]} " in said
    assert said.endswith(REPAIR)
    (found,) = findings(split)
    assert (found.unit, found.mend) == (2, REPAIR)


@pytest.mark.parametrize("array", ["frames/frames", "frames/labels", "audio/embedding"])
def test_the_bytes_of_another_unit_are_refused_wherever_they_come_from(
    own: Manifest, array: str
) -> None:
    split = train_split(own)
    one, two = (shard_of(split, array, unit) for unit in (0, 3))
    bytes_of_one = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(bytes_of_one)
    assert f"{one}: clip {split.plan().clips[0]} is not what was written; {REPAIR}" in refused(
        split
    )
    assert [found.unit for found in findings(split)] == [0, 3]
    two.write_bytes(one.read_bytes())
    one.write_bytes(bytes_of_one)
    other = SplitStore(own.store_path, "s4", "test")
    shutil.copy(shard_of(other, array, 0), one)
    assert f"{one}: clip {split.plan().clips[0]} is not" in refused(split)


@pytest.mark.parametrize("array", ["frames/frames", "audio/embedding"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:0],
        lambda data: data[:20],
        lambda data: data[:-50],
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    ],
    ids=["empty", "short", "cut", "flipped"],
)
def test_a_damaged_shard_is_one_line_with_file_clip_and_command(
    own: Manifest, array: str, harm: Callable[[bytes], bytes]
) -> None:
    split = train_split(own)
    shard = shard_of(split, array, 1)
    shard.write_bytes(harm(shard.read_bytes()))
    said = refused(split)
    assert f"{shard}: clip {split.plan().clips[3]} cannot be read" in said
    assert said.endswith(REPAIR)


def test_files_that_go_while_training_reads_are_an_error_in_the_next_epoch(own: Manifest) -> None:
    split = train_split(own)
    reader = opened(split)
    reader.read(range(16))
    shard = shard_of(split, "frames/labels", 4)
    shard.unlink()
    assert reader.read([0, 11]).clips
    with pytest.raises(StoreDamaged, match=f"clip {split.plan().clips[13]} is not what was"):
        reader.read([0, 13])


def test_training_and_evaluation_end_with_that_line(own: Manifest, tmp_path: Path) -> None:
    trainer = start(own, "combo-small-s4", ["iterations=1", "batch_size=16"], tmp_path / "run")
    shard_of(train_split(own), "frames/frames", 5).unlink()
    shard_of(SplitStore(own.store_path, "s4", "test"), "maskige/label_map", 0).unlink()
    with pytest.raises(StoreDamaged, match=r"is not what was written; run: combo verify --repair"):
        trainer.train()
    network, test = trainer.run.settings().build(), open_split(trainer.run, "test")
    with pytest.raises(StoreDamaged, match=r"is not what was written; run: combo verify --repair"):
        measure(network, test, torch.device("cpu"))


# -- descriptions ---------------------------------------------------------------------------------


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def swap_colours(head: dict) -> None:
    palette = head["attributes"]["combo"]["palette"]
    palette[1], palette[2] = palette[2], palette[1]


def test_another_palette_is_refused_and_found_and_mended(own: Manifest) -> None:
    split = train_split(own)
    (variant,) = split.variants("maskige")
    before = read_all(split)
    change_json(split.arrays(variant) / "zarr.json", swap_colours)
    command = "run: combo preprocess maskige --data s4 --split train"
    assert f"the description of {variant.key} of s4/train in {split.store} is not" in refused(split)
    assert refused(split).endswith(command)
    (found,) = findings(split)
    assert found.problem == "its description is not what it was finished with"
    with pytest.raises(ComboError, match="the description of maskige"):
        pack(own.store_path / "s4.h5", [(split, opened_choice(split))], "test")
    mended = CliRunner().invoke(app, ["verify", "--repair", "--manifest", str(own.file)])
    assert mended.exit_code == 0, mended.output
    assert read_all(split) == before


def opened_choice(split: SplitStore) -> Choice:
    return Choice(*(split.variants(stage)[0] for stage in STAGES))


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_type", "int8"), ("shape", [18, 5, 64, 32]), ("shape", [21, 5, 64, 64])],
)
def test_another_type_or_shape_of_an_array_is_found(own: Manifest, key: str, value: object) -> None:
    split = train_split(own)
    (variant,) = split.variants("maskige")
    description = split.arrays(variant) / "label_map" / "zarr.json"
    change_json(description, lambda head: head.update({key: value}))
    assert findings_or_line(split)
    if value != [21, 5, 64, 64]:  # more clips than the plan has are nobody's
        assert str(description) in refused(split)


def findings_or_line(split: SplitStore) -> bool:
    try:
        return bool(findings(split))
    except ComboError as error:
        return "\n" not in str(error)


def test_a_variant_that_nothing_describes_any_more_is_found(own: Manifest) -> None:
    split = train_split(own)
    (variant,) = split.variants("audio")
    head = split.arrays(variant) / "zarr.json"
    head.unlink()
    (found,) = findings(split)
    assert (found.where, found.mend) == (
        f"s4/train/{variant.key}",
        REPAIR,
    )
    assert str(head) in found.problem


# -- records --------------------------------------------------------------------------------------


def test_a_record_that_speaks_of_another_unit_is_found_and_its_unit_not_done(
    own: Manifest,
) -> None:
    split = train_split(own)
    (variant,) = split.variants("audio")
    one, two = (records.record_path(split, variant, unit) for unit in (1, 4))
    of_one = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(of_one)
    assert [(found.unit, found.problem) for found in findings(split)] == [
        (1, "its record speaks of unit 4"),
        (4, "its record speaks of unit 1"),
    ]
    job = make_job(own, "s4", "train", "audio")
    assert run_job(job, Options()).computed == 2
    assert findings(split) == []


def test_a_record_named_for_failures_that_it_has_not_is_found(own: Manifest) -> None:
    split = train_split(own)
    (variant,) = split.variants("audio")
    path = records.record_path(split, variant, 1)
    path.rename(records.record_path(split, variant, 1, with_failures=True))
    (found,) = findings(split)
    assert (found.unit, found.problem) == (1, "the name of its record is wrong about failed clips")


def test_a_stale_manifest_of_a_variant_is_found_and_not_packed(
    own: Manifest, tmp_path: Path
) -> None:
    split = train_split(own)
    (variant,) = split.variants("audio")
    old = split.finished_path(variant).read_bytes()
    arrays = split.read_unit(variant, split.plan(), 0)
    arrays["embedding"][0] += 1
    rewrite_unit(split, variant, 0, arrays)
    good = read_all(split)
    split.finished_path(variant).write_bytes(old)
    (found,) = findings(split)
    assert found.problem == "its finished.json is not what its records say"
    assert f"clip {split.plan().clips[0]} is not what was written" in refused(split)
    with pytest.raises(ComboError, match=r"finished.json of audio/.* so nothing was packed; run:"):
        pack(tmp_path / "s4.h5", [(split, opened_choice(split))], "test")
    mended = CliRunner().invoke(app, ["verify", "--repair", "--manifest", str(own.file)])
    assert mended.exit_code == 0, mended.output
    assert read_all(split) == good


# -- stores of an older combo ---------------------------------------------------------------------


def age(split: SplitStore) -> None:
    """Make a split what an older combo left: no checks, and no files of fill value alone."""
    plan = split.plan()
    for variant in split.variants():
        for unit in range(plan.units):
            record = records.read_record(split, variant, unit)
            assert record is not None
            records.commit(split, variant, replace(record, checks={}))
            arrays = split.read_unit(variant, plan, unit)
            for spec in variant.all_arrays:
                if (arrays[spec.name] == spec.fill).all():
                    split.shard(variant, spec, unit).unlink()
        durable.remove(split.finished_path(variant))
        finished = records.finalise(split, variant, plan)
        assert finished is not None
        assert (finished.description, finished.checks) == ("", {})


def test_an_old_store_is_read_told_and_given_checks(own: Manifest) -> None:
    split = train_split(own)
    (frames,) = split.variants("frames")
    arrays = split.read_unit(frames, split.plan(), 0)
    arrays["labels"][:], arrays["annotated"][:] = 255, 0
    rewrite_unit(split, frames, 0, arrays)
    new, outputs = read_all(split), opened(split).outputs
    age(split)
    assert not shard_of(split, "frames/labels", 0).exists()
    assert read_all(split) == new
    assert opened(split).unchecked == [variant.key for variant in opened_choice(split).variants]
    assert findings(split) == []

    shard = shard_of(split, "frames/labels", 1)
    kept = shard.read_bytes()
    shard.unlink()
    assert refused(split) == f"{shard} is not there; {REPAIR}"
    shard.write_bytes(kept)

    command = ["verify", "--repair", "--data", "s4", "--split", "train", "--json"]
    done = CliRunner().invoke(app, [*command, "--manifest", str(own.file)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["repaired"] == []
    assert (read_all(split), opened(split).outputs) == (new, outputs)
    assert opened(split).unchecked == []
    assert findings(split) == []
    shutil.copy(shard, shard_of(split, "frames/labels", 2))
    assert "is not what was written" in refused(split)


def test_a_damaged_old_unit_gets_no_checks(own: Manifest) -> None:
    split = train_split(own)
    (audio,) = split.variants("audio")
    age(split)
    shard_of(split, "audio/embedding", 1).unlink()
    command = ["verify", "--repair", "--data", "s4", "--split", "train", "--json"]
    nobody = own.file.with_name("other.yaml")  # makes no variant of this store
    nobody.write_text(own.file.read_text().replace("mel-stats", "vggish"))
    done = CliRunner().invoke(app, [*command, "--manifest", str(nobody)])
    assert [found["unit"] for found in json.loads(done.stdout)["findings"]] == [1]
    record = records.read_record(split, audio, 1)
    assert record is not None
    assert record.checks == {}


# -- packed files ---------------------------------------------------------------------------------


def test_two_clips_swapped_with_their_checks_in_a_packed_file_are_refused(
    finished: Manifest, tmp_path: Path
) -> None:
    split = train_split(finished)
    file = tmp_path / "s4.h5"
    pack(file, [(split, opened_choice(split))], "test")
    assert read_all(open_source(file, "s4", "train")) == read_all(split)
    (variant,) = split.variants("frames")
    with h5py.File(file, "r+") as packed:
        for name in ("frames", "frames.crc32c"):
            array = packed[f"s4/train/{variant.key}/{name}"]
            one, two = array[2], array[3]
            array[2], array[3] = two, one
    said = refused(open_source(file, "s4", "train"))
    assert f"{file} is damaged" in said
    assert "other checks than were packed" in said
    assert "combo pack STORE" in said
    assert [each for each in verify_packed(file) if isinstance(each, Finding)]


# -- checks ---------------------------------------------------------------------------------------


def test_a_clips_check_is_the_checksum_that_ends_its_chunk(own: Manifest) -> None:
    split = train_split(own)
    plan, per_unit = split.plan(), split.plan().clips_per_unit
    for variant in split.variants():
        finished = split.finished(variant)
        assert finished is not None
        for spec in variant.all_arrays:
            checks = parse_checks(finished.checks[spec.name], len(plan.clips))
            in_files = [
                checks_in(split.shard(variant, spec, unit), per_unit) for unit in range(plan.units)
            ]
            assert np.array_equal(np.concatenate(in_files)[: len(plan.clips)], checks)


def test_a_damaged_check_is_one_line(own: Manifest) -> None:
    split = train_split(own)
    (variant,) = split.variants("frames")
    finished = split.finished(variant)
    assert finished is not None
    for text in (finished.checks["labels"][8:], "xy" + finished.checks["labels"][2:], ""):
        broken = replace(finished, checks={**finished.checks, "labels": text})
        durable.write_json(split.finished_path(variant), asdict(broken))
        assert f"{split.finished_path(variant)} is damaged (labels: " in refused(split)
        assert [found.problem for found in findings(split)] == [
            "its finished.json is not what its records say"
        ]
