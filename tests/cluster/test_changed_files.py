"""Files that look otherwise than at the last run, and roots that are others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs.inputs import DataSet
from combo.pipeline.layouts import Clip, Listing

from .worlds import Reading, World


def test_files_that_changed_in_place_are_noticed(world: World) -> None:
    world.run("abcdef")
    (world.home / "sounds" / "b").write_text("B")
    with pytest.raises(ComboError, match="files of 1 clip have changed since audio/reading") as c:
        world.run("abcdef")
    assert "first: b" in str(c.value)
    assert "combo verify --repair --data mine --split train --inputs" in str(c.value)
    (world.home / "sounds" / "b").write_text("b")
    assert world.run("abcdef") == [], "it has other times, and was read: it is the same"


def test_another_root_under_the_same_name_is_noticed(world: World, tmp_path: Path) -> None:
    world.run("abc")
    shutil.copytree(world.home / "sounds", tmp_path / "moved")
    job = world.job("abc")
    clips = Listing.of([Clip(name, sound=tmp_path / "moved" / name) for name in "abc"])
    elsewhere = replace(job, clips=clips, data=DataSet(tmp_path / "moved", clips))
    (told,) = world.settle(elsewhere)
    assert f"root was {world.home / 'sounds'}, now {tmp_path / 'moved'}" in told
    assert world.settle(elsewhere) == []
    (tmp_path / "moved" / "c").write_text("other")
    again = replace(elsewhere, data=DataSet(tmp_path / "moved", clips))
    with pytest.raises(ComboError, match="files of 1 clip have changed"):
        world.settle(again)


def test_a_store_that_never_saw_its_files_gets_them_with_the_next_run(world: World) -> None:
    world.run("abc")
    path = world.job("abc").split.root / "inputs.json"
    path.unlink()
    assert world.settle(world.job("abc")) == []
    assert set(json.loads(path.read_text())["clips"]) == set("abc")


def test_a_variant_that_is_not_asked_for_stops_nobody(world: World) -> None:
    world.run("abc")
    (world.home / "sounds" / "b").write_text("B")
    job = world.job("abc")
    stage = Reading([], "another")
    (told,) = world.settle(replace(job, stage=stage, variant=stage.variant()))
    assert f"files have changed since the store was made of them: 1 clip of {job.variant.key}" in (
        told
    )
