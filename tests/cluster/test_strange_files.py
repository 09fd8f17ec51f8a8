"""What stands in the place of a store's file and is none: found and named, and never waited for."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.records import record_path
from combo.pipeline.jobs.verify import Finding, verify_variant
from combo.pipeline.store import StoreDamaged

from .worlds import World


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def ended(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def plant(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    elif kind == "link":
        path.symlink_to(path.name)
    elif kind == "nested":
        path.write_text("[" * 100_000)
    else:
        path.mkdir()


@pytest.mark.parametrize("number", ["0", "-1", "NaN", "1e400", f"1{5000 * '0'}"])
def test_a_plan_with_an_odd_number_is_written_anew(world: World, number: str) -> None:
    world.run("abcdef")
    split = world.job("abcdef").split
    text = split.plan_path.read_text()
    split.plan_path.write_text(text.replace('"clips_per_unit": 3', f'"clips_per_unit": {number}'))
    with pytest.raises(StoreDamaged, match=r"plan.json is damaged"):
        split.read_plan()
    assert world.run("abcdef") == []


KINDS = ("pipe", "socket", "link", "nested", "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_made_anew_or_named(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world.run("abcdef")
    job = world.job("abcdef")
    split, variant = job.split, job.variant
    shard = split.shards(variant, 0)[0]
    head = split.arrays(variant) / "zarr.json"
    places = {
        split.plan_path: [],
        split.finished_path(variant): [],
        record_path(split, variant, 0): ["a", "b", "c"],
    }
    for path, computed in places.items():
        plant(path, kind, monkeypatch)
        if kind == "folder":
            with pytest.raises(ComboError, match=rf"{path}: a folder is in the way; move it els"):
                world.run("abcdef")
            path.rmdir()
        assert world.run("abcdef") == computed
    described = head.read_bytes()
    plant(head, kind, monkeypatch)
    with pytest.raises(StoreDamaged, match=r"zarr.json is damaged; run: combo verify --repair"):
        split.read_variant(variant.key)
    head.rmdir() if kind == "folder" else head.unlink()
    head.write_bytes(described)
    plant(shard, kind, monkeypatch)
    found = [each for each in verify_variant(split, variant) if isinstance(each, Finding)]
    assert [each.unit for each in found] == [0]
    finished = split.finished(variant)
    with pytest.raises(StoreDamaged, match=r"text/c/0/0: clip a .*; run: combo verify --repair"):
        split.reader(variant, "text", finished).ask([0]).result()
