"""A store packed into one file: the same batches and runs from it, and nothing broken goes in."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from rewritten import rewrite_unit
from typer.testing import CliRunner

from combo.cli import app
from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import records
from combo.pipeline.jobs.pack import pack, verify_packed
from combo.pipeline.jobs.verify import Finding
from combo.pipeline.manifest import Manifest
from combo.pipeline.packed import PackedSplit, read_index
from combo.pipeline.source import Choice, open_source
from combo.pipeline.store import SplitStore, StoreDamaged
from combo.pipeline.train.loader import ClipReader, StoredBatch, shuffled
from combo.pipeline.train.start import resume, start

from .conftest import OF_PACE

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=3",
    "batch_size=2", "evaluate_every=3", "log_every=1", "warmup=0", "augment=colour-flip",
    "device=cpu",
)  # fmt: skip


def choice_of(split: SplitStore | PackedSplit) -> Choice:
    return Choice(*(split.variants(stage)[0] for stage in ("frames", "audio", "maskige")))


def packed(manifest: Manifest, target: Path, *splits: tuple[str, str], **options: bool) -> Path:
    stores = [SplitStore(manifest.store_path, *each) for each in splits or [("s4", "train")]]
    assert pack(target, [(each, choice_of(each)) for each in stores], "test", **options)
    return target


def reader_of(path: Path, data_set: str = "s4", split: str = "train") -> ClipReader:
    source = PackedSplit(path, data_set, split)
    return ClipReader(source, choice_of(source))


def same(left: StoredBatch, right: StoredBatch) -> bool:
    names = ("frames", "label_map", "labels", "sound", "present", "annotated", "palette")
    return left.clips == right.clips and all(
        torch.equal(getattr(left, name), getattr(right, name)) for name in names
    )


def findings(path: Path) -> list[Finding]:
    return [each for each in verify_packed(path) if isinstance(each, Finding)]


@pytest.mark.parametrize("where", [("s4", "train"), ("avss", "train")])
def test_batches_from_a_packed_file_are_those_from_the_store(
    finished: Manifest, tmp_path: Path, open_split, where: tuple[str, str]
) -> None:
    ours = reader_of(packed(finished, tmp_path / "store.h5", where), *where)
    theirs = open_split(finished, *where)
    assert (len(ours), ours.outputs, ours.left_out) == (len(theirs), theirs.outputs, {})
    order = list(shuffled(len(ours), 3, 0, 0, 9))
    pairs = zip(ours.batches(order), theirs.batches(order), strict=True)
    assert all(same(left, right) for left, right in pairs)
    assert torch.equal(ours.sound([1, 0]), theirs.sound([1, 0]))


def test_clips_that_failed_are_left_out_with_their_reasons(own: Manifest, tmp_path: Path) -> None:
    split = SplitStore(own.store_path, "s4", "val")
    (variant,) = split.variants("audio")
    (record,) = records.done_units(split, variant, split.plan())
    arrays = split.read_unit(variant, split.plan(), 0)
    arrays["valid"][1] = 0
    failed = replace(record.clips[1], failed=True, reason="no sound")
    clips = (record.clips[0], failed)
    rewrite_unit(split, variant, 0, arrays, clips=clips)

    reader = reader_of(packed(own, tmp_path / "store.h5", ("s4", "val")), split="val")
    assert reader.left_out == {failed.name: "no sound"}
    assert reader.read([0]).clips == (clips[0].name,)


def test_a_run_on_a_packed_file_has_the_losses_of_one_on_the_store(
    prepared: Path, finished: Manifest, tmp_path: Path
) -> None:
    file = packed(finished, tmp_path / "s4.h5", ("s4", "train"), ("s4", "val"), ("s4", "test"))
    sets = [word for each in TINY for word in ("--set", each)]
    for name, store in (("one", ()), ("two", ("--store", str(file)))):
        command = ("train", "--preset", "combo-small-s4", "--manifest", str(prepared))
        combo(*command, "--out", str(tmp_path / name), *sets, *store)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for left, right in zip(*logs, strict=True):
        assert {k: v for k, v in left.items() if k not in OF_PACE} == {
            k: v for k, v in right.items() if k not in OF_PACE
        }
    one, two = (
        combo("evaluate", str(tmp_path / "one"), "--split", "test", "--json", *store)
        for store in ((), ("--store", str(file)))
    )
    assert json.loads(one) == json.loads(two)


def combo(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.exception, done.output)
    return done.stdout


def test_a_run_goes_on_from_a_packed_copy_and_refuses_one_that_differs(
    own: Manifest, tmp_path: Path
) -> None:
    start(own, "combo-small-s4", [*TINY, "iterations=2"], tmp_path / "run").train()
    file = packed(own, tmp_path / "s4.h5", ("s4", "train"), ("s4", "val"))
    assert resume(tmp_path / "run", file).iteration == 2

    split = SplitStore(own.store_path, "s4", "val")
    (variant,) = split.variants("audio")
    arrays = split.read_unit(variant, split.plan(), 0)
    arrays["embedding"] += 1
    rewrite_unit(split, variant, 0, arrays)
    packed(own, file, ("s4", "train"), ("s4", "val"), overwrite=True)
    with pytest.raises(ComboError, match="has changed since"):
        resume(tmp_path / "run", file)


def test_an_unfinished_split_is_not_packed(own: Manifest, tmp_path: Path) -> None:
    split = SplitStore(own.store_path, "s4", "train")
    records.withdraw(split, split.variants("audio")[0], 1)
    with pytest.raises(ComboError, match="run: combo preprocess audio --data s4 --split train"):
        packed(own, tmp_path / "store.h5")
    assert list(tmp_path.glob("*.h5*")) == []


def test_a_damaged_unit_is_not_packed_and_named(own: Manifest, tmp_path: Path) -> None:
    split = SplitStore(own.store_path, "s4", "train")
    (variant,) = split.variants("frames")
    arrays = split.read_unit(variant, split.plan(), 2)
    arrays["frames"][0, 0, 0, 0] ^= 1
    split.write_unit(variant, split.plan(), 2, arrays)  # a whole shard, but not what was recorded
    message = r"unit 2 is damaged \(frames is not what .* combo verify --repair --data s4"
    with pytest.raises(ComboError, match=message):
        packed(own, tmp_path / "store.h5")
    split.shards(variant, 2)[0].write_bytes(b"no shard")
    with pytest.raises(ComboError, match="unit 2 is damaged"):
        packed(own, tmp_path / "store.h5")
    assert list(tmp_path.glob("*.h5*")) == []
    assert list(tmp_path.glob(".*partial")) == []


def test_a_kill_while_packing_leaves_no_file_and_the_next_run_cleans_up(
    prepared: Path, finished: Manifest, tmp_path: Path
) -> None:
    target = tmp_path / "store.h5"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from combo.pipeline.commands.stores import _choose\n"
        "from combo.pipeline.manifest import load_manifest\n"
        "from combo.pipeline.store import STAGES, splits_in\n"
        "from combo.pipeline.jobs.pack import pack\n"
        "store, target, manifest = map(Path, sys.argv[1:])\n"
        "split = next(s for s in splits_in(store) if (s.data_set, s.split) == ('s4', 'train'))\n"
        "choice = _choose(load_manifest(manifest), split, {}, STAGES)\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack(target, [(split, choice)], 'test', on_unit=kill)\n"
    )
    where = [str(finished.store_path), str(target), str(prepared)]
    killed = subprocess.run([sys.executable, "-c", code, *where], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(tmp_path.glob(".store.h5.*.partial"))) == 1
    packed(finished, target)
    assert [path.name for path in tmp_path.iterdir() if "store" in path.name] == ["store.h5"]


def test_a_file_in_the_way_is_only_replaced_when_asked(finished: Manifest, tmp_path: Path) -> None:
    target = packed(finished, tmp_path / "store.h5")
    before = (target.stat().st_ino, target.stat().st_mtime_ns)
    split = SplitStore(finished.store_path, "s4", "train")
    assert not pack(target, [(split, choice_of(split))], "test")
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == before
    with pytest.raises(ComboError, match="holds something else; give --overwrite"):
        packed(finished, target, ("s4", "val"))
    packed(finished, target, ("s4", "val"), overwrite=True)
    assert [entry.split for entry in read_index(target).splits] == ["val"]
    target.write_text("mine")
    with pytest.raises(ComboError, match="holds something else"):
        packed(finished, target)
    with pytest.raises(ComboError, match="is a folder; name a file"):
        packed(finished, tmp_path)


def pack_val(prepared: Path, store: Path, target: Path, before: str = "") -> tuple[int, str]:
    """`combo pack` of s4/val as a process; its exit code and what it said."""
    words = ["pack", store, "--to", target, "--data", "s4", "--split", "val"]
    code = f"import sys\n{before}\nfrom combo.cli import main\nmain()"
    command = [sys.executable, "-c", code, *words, "--manifest", prepared, "--quiet"]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_disk_that_is_too_small_is_noticed_before(
    prepared: Path, finished: Manifest, small_disk: Path
) -> None:
    (small_disk / "other").write_bytes(bytes(2_000_000))
    code, said = pack_val(prepared, finished.store_path, small_disk / "s4.h5")
    assert code == 1
    assert "GB are free there; free space, give another --to" in said
    assert [path.name for path in small_disk.iterdir()] == ["other"]


FILL = """
def fill(event, arguments):
    if event == "open" and waits and waits[0] in str(arguments[0]):
        waits.pop(0)
        if waits:
            return
        with open({disk!r} + "/other", "wb", buffering=0) as other:
            try:
                while other.write(bytes(4096)):
                    pass
            except OSError:
                pass
waits = {opened!r}
sys.addaudithook(fill)
"""


def test_a_disk_that_fills_up_before_room_was_reserved_is_one_line(
    prepared: Path, finished: Manifest, small_disk: Path
) -> None:
    before = FILL.format(disk=str(small_disk), opened=[".partial"])
    code, said = pack_val(prepared, finished.store_path, small_disk / "s4.h5", before)
    assert code == 1, said
    mend = "the disk is full; free space there and run the same command again, or give another --to"
    assert mend in " ".join(said.split())
    assert "Traceback" not in said
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_a_disk_that_fills_up_afterwards_does_no_harm(
    prepared: Path, finished: Manifest, small_disk: Path
) -> None:
    # The first record that is read while the file is written.
    before = FILL.format(disk=str(small_disk), opened=[".partial", "/records/"])
    code, said = pack_val(prepared, finished.store_path, small_disk / "s4.h5", before)
    assert code == 0, said
    assert sorted(path.name for path in small_disk.iterdir()) == ["other", "s4.h5"]
    assert findings(small_disk / "s4.h5") == []


def test_a_file_larger_than_allowed_is_one_line(
    prepared: Path, finished: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    # Without bytecode: a larger file of it would be cut, and later imports fail at it.
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))\n"
        "sys.dont_write_bytecode = True"
    )
    code, said = pack_val(prepared, finished.store_path, tmp_path / "small" / "s4.h5", limit)
    assert code == 1, said
    mend = "raise the limit (ulimit -f) and run the same command again, or give another --to"
    assert mend in " ".join(said.split())
    assert "Traceback" not in said
    assert list((tmp_path / "small").iterdir()) == []


def test_status_and_doctor_take_a_packed_file(
    prepared: Path, finished: Manifest, tmp_path: Path
) -> None:
    target = packed(finished, tmp_path / "store.h5", ("s4", "val"))
    manifest = tmp_path / "packed.yaml"
    manifest.write_text(prepared.read_text().replace("store: store", f"store: {target}"))
    states = json.loads(combo("status", "--manifest", str(manifest), "--json"))
    assert {(s["split"], s["stage"], s["done"], s["to_do"], s["finished"]) for s in states} == {
        ("val", stage, 2, 0, True) for stage in ("frames", "audio", "maskige")
    }

    def examined() -> dict[str, dict[str, object]]:
        done = CliRunner().invoke(app, ["doctor", "--manifest", str(manifest), "--json"])
        return {found["what"]: found for found in json.loads(done.stdout)}

    found = examined()
    assert (found["store"]["good"], found["s4/val"]["good"]) == (True, True)
    assert found["store"]["state"] == f"{target}, a packed file"
    assert found["s4/train"]["mend"] == f"combo pack STORE --to {target} --overwrite"
    target.unlink()
    assert examined()["store"]["mend"] == f"combo pack STORE --to {target}"


@pytest.mark.parametrize("array", ["frames/{frames}/frames", "maskige/{maskige}/label_map"])
def test_a_flipped_byte_is_an_error_when_read_and_found_by_verify(
    finished: Manifest, tmp_path: Path, array: str
) -> None:
    file = packed(finished, tmp_path / "store.h5", ("s4", "val"))
    assert findings(file) == []
    split = PackedSplit(file, "s4", "val")
    stage = array.split("/")[0]
    (variant,) = split.variants(stage)
    rows = split.reader(variant, array.split("/")[2])
    size = int(np.prod(rows.spec.shape))  # bytes a clip: both are uint8
    with file.open("r+b") as opened:
        opened.seek(rows.offset + size + size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 4]))
    reader = reader_of(file, split="val")
    assert reader.read([0]).clips
    with pytest.raises(StoreDamaged, match=r"store\.h5 is damaged .*clip 1.* combo pack STORE"):
        list(reader.batches([[0], [1]]))
    (found,) = findings(file)
    assert found.where.startswith(f"s4/val/{stage}/")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_file_that_was_cut_short_or_is_none_is_one_line(
    finished: Manifest, tmp_path: Path, keep: float
) -> None:
    file = packed(finished, tmp_path / "store.h5", ("s4", "val"))
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(StoreDamaged, match="copy it here once more") as caught:
        open_source(file, "s4", "val")
    assert "\n" not in str(caught.value)


def test_what_is_no_packed_file_says_so(finished: Manifest, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(3)
    with pytest.raises(ComboError, match="none that combo pack has written"):
        open_source(tmp_path / "other.h5", "s4", "val")
    with pytest.raises(
        ComboError, match=r"missing.h5 is not there; --store says where it lies now"
    ):
        open_source(tmp_path / "missing.h5", "s4", "val")
    file = packed(finished, tmp_path / "store.h5", ("s4", "val"))
    with pytest.raises(ComboError, match="holds no s4/train, only s4/val"):
        open_source(file, "s4", "train")
    with h5py.File(file, "r+") as damaged:
        damaged["index"][5] ^= 1
    with pytest.raises(StoreDamaged, match="index: other bytes"):
        open_source(file, "s4", "val")


def test_whatever_reads_hdf5_reads_a_packed_file(
    finished: Manifest, tmp_path: Path, open_split
) -> None:
    file = packed(finished, tmp_path / "store.h5")
    reader = open_split(finished)
    split, clips = reader.split, len(reader.plan.clips)
    with h5py.File(file) as opened:
        (entry,) = json.loads(bytes(opened["index"][:]))["splits"]
        assert entry["plan"]["clips"] == list(reader.plan.clips)
        for variant in split.variants():
            for spec in variant.all_arrays:
                found = opened[f"s4/train/{variant.key}/{spec.name}"]
                assert (found.chunks, found.dtype) == (None, np.dtype(spec.dtype))
                assert np.array_equal(found[:], split.read_array(variant, spec.name)[:clips])
    again = packed(finished, tmp_path / "again.h5")
    assert again.read_bytes() == file.read_bytes()


def test_a_forked_process_reads_too(finished: Manifest, tmp_path: Path) -> None:
    split = PackedSplit(packed(finished, tmp_path / "store.h5"), "s4", "train")
    frames, rows = split.reader(split.variants("frames")[0], "frames"), np.array([2, 5])
    wanted = frames.ask(rows).result()  # threads are running now
    child = os.fork()
    if child == 0:
        good = np.array_equal(frames.ask(rows).result(timeout=300), wanted)
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_commands_that_write_refuse_a_packed_file_and_verify_and_pack_take_it(
    prepared: Path, finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, manifest = tmp_path / "store.h5", ("--manifest", str(prepared))
    command = ["pack", str(finished.store_path), "--to", str(target), "--split", "val", "--json"]
    value = json.loads(combo(*command, *manifest))
    assert (value["new"], [s["clips"] for s in value["splits"]]) == (True, [2])
    assert json.loads(combo(*command, *manifest))["new"] is False
    assert json.loads(combo("verify", str(target), "--json"))["findings"] == []

    monkeypatch.chdir(tmp_path)
    text = prepared.read_text().replace("store: store", "store: store.h5")
    (tmp_path / "packed.yaml").write_text(text)
    for arguments, says in (
        (["preprocess", "frames", "--data", "s4"], "is a packed file, which is only read"),
        (["verify", "--repair"], "is a packed file, which is only read"),
        (["pack", "store.h5", "--to", "again.h5"], "is a packed file, which is only read"),
    ):
        failed = CliRunner().invoke(app, [*arguments, "--manifest", "packed.yaml"])
        assert isinstance(failed.exception, ComboError), failed.output
        assert says in str(failed.exception)
