"""What a run's folder promises: one process at a time, nothing half written, one line for each
thing that is odd, and after a full disk the same bits."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from permissions import modes_count
from system_limits import file_limit
from typer.testing import CliRunner

from combo import Combo
from combo.cli import app
from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import checkpoint
from combo.pipeline.train.evaluate import open_run, open_split
from combo.pipeline.train.journal import Journal
from combo.pipeline.train.pace import Step
from combo.pipeline.train.run_folder import RunFolder, checkpoint_of
from combo.pipeline.train.start import resume
from combo.pipeline.train.trainer import Trainer

from .conftest import OF_PACE, finished_run, small_run

TINY = (
    "width=32", "heads=2", "fusion_heads=2", "pixel_layers=1", "pixel_ffn=16", "decoder_layers=1",
    "decoder_ffn=16", "audio_hidden=16", "query_count=4", "mask_points=64", "iterations=3",
    "batch_size=2", "evaluate_every=2", "log_every=1", "threads=1", "device=cpu",
)  # fmt: skip
CPU = torch.device("cpu")


def tiny(manifest: Manifest, folder: Path, *changes: str) -> Trainer:
    return small_run(manifest, folder, *TINY, *changes)


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An undisturbed run; not to be changed."""
    return finished_run(prepared, tmp_path_factory, TINY)


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may damage."""
    return RunFolder(Path(shutil.copytree(trained.root, tmp_path / "run")))


def log(run: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_PACE} for line in lines]


def same(run: RunFolder, other: RunFolder) -> bool:
    """Whether two runs told the same and ended with the same bits."""
    one, two = (checkpoint.load(each.last) for each in (run, other))
    assert one.network.keys() == two.network.keys()
    bits = all(torch.equal(one.network[name], two.network[name]) for name in one.network)
    return bits and one.iteration == two.iteration and log(run) == log(other)


def at(iteration: int, do: Callable[[], object]) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if step.iteration == iteration:
            do()

    return on_step


def said(error: pytest.ExceptionInfo[ComboError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("again", ["resume", "start"])
def test_a_run_killed_in_its_first_checkpoint_begins_again(
    trained: RunFolder, finished: Manifest, tmp_path: Path, again: str
) -> None:
    folder = tmp_path / "run"
    tiny(finished, folder)
    half = folder / ".last.pt.elsewhere.1.00ff00ff.partial"
    half.write_bytes(b"PK")
    torch.manual_seed(99)
    trainer = resume(folder) if again == "resume" else tiny(finished, folder)
    trainer.train()
    assert same(RunFolder(folder), trained)
    assert not half.exists()


def test_the_folder_of_something_else_is_not_written_into(
    finished: Manifest, tmp_path: Path
) -> None:
    tiny(finished, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ComboError, match="is not empty"):
        tiny(finished, tmp_path / "run")


def test_a_run_is_trained_by_one_process_at_a_time(
    trained: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    folder, late = tmp_path / "run", list[Trainer]()

    def second() -> None:
        with torch.random.fork_rng():  # which another process has of its own
            late.append(resume(folder))
        with pytest.raises(ComboError, match=r"is being trained by another process \(\S+ \d+\)"):
            late[0].train()

    tiny(finished, folder).train(at(2, second))
    assert same(RunFolder(folder), trained)
    with pytest.raises(ComboError, match=r"another process has trained .* combo train --resume"):
        late[0].train()
    assert same(RunFolder(folder), trained)
    resume(folder).train()


ODD = [
    (name, text)
    for name in ("settings.json", "data.json")
    for text in ("", "{", "[1]", "5", "{}", '{"train": 1, "network": 2}', '{"data_set": "s4"}',
                 "[" * 100_000, "\0")
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ODD, ids=lambda value: value[:12])
def test_odd_settings_and_data_are_one_line(run: RunFolder, name: str, text: str) -> None:
    (run.root / name).write_text(text)
    with pytest.raises(ComboError, match=rf"{name} is damaged") as caught:
        resume(run.root)
    said(caught)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"iterations": "many"}},
        {"network": {"width": [1]}},
        {"train": {"preset": None}},
    ],
    ids=str,
)
def test_settings_of_another_kind_are_one_line(
    trained: RunFolder, run: RunFolder, change: dict[str, dict[str, object]]
) -> None:
    file = run.root / "settings.json"
    value = json.loads(file.read_text())
    for part, new in change.items():
        value[part] |= new
    file.write_text(json.dumps(value))
    with pytest.raises(ComboError, match=r"settings.json is damaged") as caught:
        resume(run.root)
    said(caught)
    value = json.loads((trained.root / "settings.json").read_text())
    value["train"]["later"] = 1
    file.write_text(json.dumps(value))
    with pytest.raises(ComboError, match=r"a setting 'later', which this combo does not know"):
        resume(run.root)


def test_odd_checkpoints_are_one_line_that_names_one_that_is_whole(run: RunFolder) -> None:
    good = vars(checkpoint.load(run.last))
    short = {name: value[:1] for name, value in good["network"].items() if value.ndim}
    odd = [
        {}, [1], 5, None, {**good, "network": []}, {**good, "network": {}},
        {**good, "network": {**good["network"], **short}},
        {**good, "iteration": "2"}, {**good, "optimiser": {}}, {**good, "averaged": 0},
        {**good, "strange": 1}, {**good, "best": None},
    ]  # fmt: skip
    for value in odd:
        torch.save(value, run.last)
        with pytest.raises(ComboError, match=r"previous\.pt \(iteration \d\) can take") as caught:
            resume(run.root)
        said(caught)
    for best in (run.best, run.best.with_suffix(".safetensors"), run.metrics):
        best.unlink()  # so that nothing was evaluated
    torch.save({**good, "network": {}}, run.last)
    with pytest.raises(ComboError, match=r"last\.pt does not fit .*settings.json"):
        open_run(run, CPU)


def test_no_other_network_is_taken_for_the_best_one(run: RunFolder) -> None:
    best = open_run(run, CPU).state_dict()
    last = checkpoint.load(run.last).network
    assert not all(torch.equal(last[name], value) for name, value in best.items())
    run.best.unlink()
    beside = open_run(run, CPU).state_dict()
    assert all(torch.equal(beside[name], value) for name, value in best.items())
    run.best.with_suffix(".safetensors").unlink()
    with pytest.raises(ComboError, match=r"best\.pt is gone, .* such as .*last\.pt$"):
        open_run(run, CPU)
    _, named = checkpoint_of(run.last)
    assert named == run.last


def test_a_file_of_another_run_is_told_from_the_runs_own(
    run: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    other = tiny(finished, tmp_path / "other").run  # of the very same shapes and data
    for name in ("settings.json", "data.json"):
        own = (run.root / name).read_bytes()
        shutil.copy(other.root / name, run.root / name)
        with pytest.raises(ComboError, match=r"settings.json and .*data.json are of different"):
            resume(run.root)
        (run.root / name).write_bytes(own)
    for own, theirs in ((other.last, run.last), (other.best, run.best)):
        shutil.copy(theirs, own)
    with pytest.raises(
        ComboError, match=r"other/last.pt is of another run .* combo train"
    ) as caught:
        resume(other.root)
    said(caught)
    with pytest.raises(ComboError, match=r"other/best.pt is of another run than .*data.json"):
        open_run(other, CPU)
    torch.save({**vars(checkpoint.load(run.last)), "run": "another"}, run.last)
    with pytest.raises(ComboError, match=r"last.pt is of another run .*previous\.pt \(iteration"):
        resume(run.root)


def test_the_best_network_alone_is_taken_in_its_folder_as_elsewhere(
    run: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    alone = run.root / "best.safetensors"
    state = checkpoint.network_of(run.best)
    for name, value in checkpoint.network_of(alone).items():
        assert torch.equal(value, state[name])
    words = ("--split", "val", "--json")
    told = [json.loads(combo("evaluate", file, *words)[1]) for file in (run.best, alone)]
    assert told[0]["M_J"] == told[1]["M_J"]
    assert Combo.from_run(alone).settings == Combo.from_run(run.root).settings

    whole = alone.read_bytes()
    for damaged in (whole[:100], whole[:-1], b"", b"\xff" * 20):
        alone.write_bytes(damaged)
        with pytest.raises(ComboError, match=r"the same network is in .*/best\.pt") as caught:
            checkpoint.network_of(alone)
        assert "cp " not in said(caught)
    run.best.unlink()
    with pytest.raises(ComboError, match="give a checkpoint of the run"):
        checkpoint.network_of(alone)
    other = tiny(finished, tmp_path / "other").run
    (other.root / alone.name).write_bytes(whole)
    with pytest.raises(ComboError, match=r"best\.safetensors is of another run"):
        checkpoint.network_of(other.root / alone.name)


def test_a_run_goes_on_under_another_name_and_so_does_one_of_an_older_combo(run: RunFolder) -> None:
    moved = run.root.rename(run.root.with_name("moved"))
    assert resume(moved).iteration == 3
    state = vars(checkpoint.load(moved / "last.pt"))
    del state["run"]
    torch.save(state, moved / "last.pt")
    assert resume(moved).iteration == 3
    for name in ("settings.json", "data.json"):
        nameless = json.loads((moved / name).read_text())
        del nameless["run"]
        (moved / name).write_text(json.dumps(nameless))
    resume(moved, changes=["iterations=4"]).train()
    assert checkpoint.load(moved / "last.pt").iteration == 4


def test_data_of_another_run_of_an_older_combo_is_one_line(
    run: RunFolder, finished: Manifest, tmp_path: Path
) -> None:
    other = tiny(finished, tmp_path / "other", "data=avss").run
    for name, of in (("settings.json", run), ("data.json", other)):
        nameless = json.loads((of.root / name).read_text())
        del nameless["run"]
        (run.root / name).write_text(json.dumps(nameless))
    with pytest.raises(
        ComboError, match=r"settings.json and .*data.json are of different"
    ) as caught:
        resume(run.root)
    said(caught)


@pytest.mark.parametrize(
    "tail",
    [b'{"iteration": 3, "ki', b"\xff\xfe\n", b"5\n", b"[]\n", b'{"iteration": "x"}\n', b"\n\n"],
)
def test_a_broken_last_line_of_the_log_is_dropped(
    run: RunFolder, trained: RunFolder, tail: bytes
) -> None:
    with run.metrics.open("ab") as file:
        file.write(tail)
    Journal(run, 3, 3)
    assert log(run) == log(trained)
    run.metrics.write_bytes(run.metrics.read_bytes().removesuffix(b"\n"))
    Journal(run, 1, 1).write(2, "train", {"total": float("nan"), "clips": ["a"]})
    assert [line["iteration"] for line in log(run)] == [1, 2]
    assert log(run)[1]["total"] is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "5", "{}", "[]", '{"format": 1}', '{"format": 1, "version": 1, "splits": [5]}'],
)
def test_an_odd_index_of_a_packed_file_is_one_line(
    run: RunFolder, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "odd.h5"
    with h5py.File(file, "w") as opened:
        opened.create_dataset("index", data=np.frombuffer(text.encode(), np.uint8))
        opened.attrs["index_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ComboError, match=r"odd\.h5 is damaged \(index: .*combo pack") as caught:
        resume(run.root, file)
    said(caught)


@pytest.mark.parametrize("what", ["log", "checkpoint"])
def test_a_limit_of_a_files_size_is_one_line_and_the_run_goes_on_bit_for_bit(
    trained: RunFolder, finished: Manifest, tmp_path: Path, what: str
) -> None:
    run = RunFolder(tmp_path / "run")
    trainer = tiny(finished, run.root)
    with file_limit() as limit:

        def stop() -> None:
            limit(run.metrics.stat().st_size + 20 if what == "log" else 100_000)

        with pytest.raises(ComboError) as caught:
            trainer.train(at(1, stop))
    assert "a file may not grow that large" in said(caught)
    assert f"go on with: combo train --resume {run.root}" in said(caught)
    resume(run.root).train()
    assert same(run, trained)


@pytest.mark.parametrize("option", ["--csv", "--predictions"])
def test_a_limit_of_what_an_evaluation_writes_is_one_line(
    trained: RunFolder, tmp_path: Path, option: str
) -> None:
    with file_limit() as limit:
        limit(20)
        code, _, error = combo("evaluate", trained.root, "--split", "val", option, tmp_path / "x")
    assert code == 1
    assert f"cannot write {tmp_path / 'x'}: a file may not grow that large; raise" in error


def test_a_full_disk_under_tensorboard_is_one_line_and_the_run_goes_on_bit_for_bit(
    trained: RunFolder, finished: Manifest, small_disk: Path, tmp_path: Path, capfd
) -> None:
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.tensorboard.symlink_to(small_disk)

    def fill() -> None:
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "filler").write_bytes(bytes(3 << 20))
        (events,) = small_disk.glob("events*")
        os.truncate(events, 4090)  # a page is there; what comes now needs another one

    with pytest.raises(ComboError, match=r"the disk is full; .* combo train --resume"):
        tiny(finished, run.root).train(at(1, fill))
    assert capfd.readouterr().err == ""
    (small_disk / "filler").unlink()
    resume(run.root).train()
    assert same(run, trained)
    assert len(list(small_disk.iterdir())) == 2


def test_a_store_behind_dots_is_trained_on(
    finished: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = finished.store_path
    dotted = finished.model_copy(update={"store": f"{store.parent}/x/../{store.name}"})
    assert ".." not in dotted.store_path.parts
    tiny(dotted, tmp_path / "run", "iterations=1").train()
    monkeypatch.chdir(store / "s4")
    for relative in (Path(".."), Path("../../store")):
        assert ".." not in finished.with_store(relative).store_path.parts
        assert resume(tmp_path / "run", relative).iteration == 1
        assert len(open_split(RunFolder(tmp_path / "run"), "val", relative).read([0]).clips) == 1


# -- what may not be read or written ---------------------------------------------------------------


def combo(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output, and errors, which are one line each."""
    with modes_count():
        done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, ComboError):
        assert "\n" not in str(done.exception)
        return 1, done.stdout, str(done.exception)
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, done.stdout, done.stderr


@contextmanager
def mode(path: Path, bits: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(bits)
    try:
        yield
    finally:
        path.chmod(before)


def test_a_store_that_may_not_be_read_is_one_line(
    own: Manifest, run: RunFolder, tmp_path: Path
) -> None:
    where = ("--manifest", own.file)
    for closed in (own.store_path, own.store_path / "s4", own.store_path / "s4" / "train"):
        with mode(closed, 0):
            for words in (
                ("status", *where),
                ("verify", *where),
                ("preprocess", "frames", "--data", "s4", *where),
                ("train", "--preset", "combo-small-s4", "--out", tmp_path / "new", *where),
                ("evaluate", run.root, "--split", "train", "--store", own.store_path),
            ):
                code, _, error = combo(*words)
                assert code == 1, words
                assert "ermission" in error, words
                assert str(closed) in error, words
    with mode(own.store_path / "s4" / "val" / "tensors.zarr", 0):
        code, shown, error = combo("status", *where)
    assert code == 1
    assert "s4/val: " in error
    assert "tensors.zarr" in error
    assert re.findall(r"^(\S+): \d+ clip", shown, re.MULTILINE) == [
        "s4/train",
        "s4/test",
        "avss/train",
    ]
    assert shown.count("  finished") == 9  # three stages of each


def test_a_store_that_may_not_be_written_is_one_line(own: Manifest) -> None:
    split = own.store_path / "s4" / "val"
    for folder in (split, *(f for f in split.rglob("*") if f.is_dir())):
        folder.chmod(0o500)
    words = ("preprocess", "frames", "--data", "s4", "--split", "val", "--manifest", own.file)
    code, _, error = combo(*words, "--overwrite")
    assert code == 1
    assert f"cannot write {split}: no permission to write" in error


def test_a_run_that_may_not_be_read_or_written_is_one_line(run: RunFolder) -> None:
    for closed, bits in (
        (run.root, 0),
        (run.root / "settings.json", 0),
        (run.root / "data.json", 0),
    ):
        with mode(closed, bits):
            for words in (("evaluate", run.root), ("train", "--resume", run.root)):
                code, _, error = combo(*words)
                assert (code, "ermission denied" in error) == (1, True), (closed, words)
    with mode(run.last, 0):
        code, _, error = combo("train", "--resume", run.root)
    assert (code, error) == (1, f"{run.last} cannot be read (Permission denied)")
    with mode(run.root, 0o500), mode(run.root / "lock", 0o400):
        code, _, error = combo("train", "--resume", run.root)
    assert code == 1
    assert f"cannot write {run.root}: no permission to write" in error


def test_a_damaged_plan_hides_its_own_split_alone(own: Manifest) -> None:
    plan = own.store_path / "s4" / "val" / "plan.json"
    plan.write_text("{")
    code, shown, error = combo("status", "--manifest", own.file, "--json")
    assert code == 1
    assert f"{plan} is damaged" in error
    assert len(error.splitlines()) == 1
    states = json.loads(shown)
    assert {(state["data_set"], state["split"]) for state in states if state["variant"]} == {
        ("s4", "train"), ("s4", "test"), ("avss", "train"),
    }  # fmt: skip
