"""A data set's list of clips changes: what is done stays done, wherever its clips go."""

import asyncio
import shutil
import signal
import sys
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.sync import sync

from combo.pipeline.errors import ComboError
from combo.pipeline.jobs import moved
from combo.pipeline.jobs.claims import Claims
from combo.pipeline.jobs.run import Options, run_job, settle_plan, units_foreseen
from combo.pipeline.jobs.unit import Job

from .worlds import Reading, World, finished, whole

ALPHABET = "abcdefghijklmnop"


def test_new_clips_at_the_end_cost_only_themselves(world: World) -> None:
    assert world.run("abcdefgh") == list("abcdefgh")
    assert world.run("abcdefghij") == ["i", "j"]


def test_a_list_in_another_order_costs_nothing(world: World) -> None:
    world.run("abcdefgh")
    job = world.job("hgabcdef")
    (told, *_) = world.settle(job)
    assert "8 clips, the data set has 8: 0 new, 0 gone, in another order" in told
    assert job.split.finished(job.variant) is not None, "training can begin at once"
    whole(job)
    assert world.run("hgabcdef") == []


def test_units_of_the_same_clips_are_linked_and_not_written(world: World) -> None:
    world.run("abcdefgh")
    job = world.job("defabcghij")
    before = {unit: shard(job, unit).stat().st_ino for unit in range(3)}
    world.settle(job)
    after = {unit: shard(job, unit).stat().st_ino for unit in range(3)}
    assert (after[0], after[1]) == (before[1], before[0])
    assert after[2] not in before.values()


def shard(job: Job, unit: int) -> Path:
    return job.split.shards(job.variant, unit)[0]


def test_what_would_be_lost_is_named_and_asked_for(world: World) -> None:
    world.run("abcdefgh")
    before = bytes_of(world.home / "store")
    job = world.job("abcxefg")
    with pytest.raises(ComboError) as caught:
        settle_plan(job, Options(overwrite=True))
    said = str(caught.value)
    assert "8 clips, the data set has 7: 1 new, 2 gone" in said
    assert f"2 clips of {job.variant.key} that are gone from the list (first: d)" in said
    assert "--discard" in said
    assert "\n" not in said
    assert bytes_of(world.home / "store") == before
    assert world.run("abcxefg", discard=True) == ["x"]


def bytes_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "claims")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_work_that_nothing_describes_any_more_is_not_thrown_away(world: World) -> None:
    world.run("abc")
    job = world.job("cba")
    head = job.split.arrays(job.variant) / "zarr.json"
    text = head.read_text()
    head.unlink()
    with pytest.raises(ComboError, match=rf"all of {job.variant.key}, which nothing describes"):
        world.settle(job)
    head.write_text(text)
    assert world.run("cba") == []


def test_a_clip_whose_files_are_others_now_is_made_again(world: World) -> None:
    world.run("abcdef")
    (world.home / "sounds" / "b").write_text("new")
    with pytest.raises(ComboError, match=r"1 clip of .* that have other files now \(first: b\)"):
        world.settle(world.job("fabcde"))
    job = world.job("fabcde")
    (world.home / "sounds" / "c").unlink()
    with pytest.raises(ComboError, match=r"2 clips of .* that have other files now"):
        world.settle(job)
    assert world.run("fabcde", discard=True) == ["b"], "c is as it was again"


def test_clips_that_failed_are_no_work_to_lose(world: World) -> None:
    (world.home / "sounds").mkdir()
    (world.home / "sounds" / "b").write_text("broken")
    world.run("abcdef")
    assert world.run("acdef") == []
    assert world.run("defacb") == ["b"], "it is new again, and fails again"
    assert world.run("bdefac") == [], "moved with the others it stays as it is"
    job = world.job("bdefac")
    assert list(run_job(job, Options()).failed) == ["b"]


def test_a_list_that_changes_again_and_again_takes_everything_along(world: World) -> None:
    world.run("abcdefgh")
    world.settle(world.job("habcdefgxyz", per_unit=4))
    world.settle(world.job("zyxhgfedcba", per_unit=5))
    assert world.run("wzyxhgfedcba", per_unit=2) == ["w", "z", "y", "x"]


@settings(max_examples=10)
@given(
    before=st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=10, unique=True),
    after=st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=10, unique=True),
    units=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_any_list_becomes_any_other_and_only_new_clips_are_computed(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[str],
    after: list[str],
    units: tuple[int, int],
) -> None:
    world = World(tmp_path_factory.mktemp("lists"))
    world.run(before, units[0])
    new = [name for name in after if name not in before]
    dry = units_foreseen(world.job(after, units[1]), Options(discard=True))
    assert dry == sorted({after.index(name) // units[1] for name in new})
    assert world.run(after, units[1], discard=True) == new
    assert world.run(before, units[0], discard=True) == [n for n in before if n not in after]


def test_a_dry_run_after_a_changed_list_counts_what_would_be_computed(world: World) -> None:
    (world.home / "sounds").mkdir()
    (world.home / "sounds" / "b").write_text("broken")
    world.run("abcdefgh")
    before = bytes_of(world.home / "store")
    job = world.job("defabcghij")
    assert units_foreseen(job, Options()) == [2, 3]
    assert units_foreseen(job, Options(part=(2, 2))) == [3]
    assert units_foreseen(job, Options(retry_failed=True)) == [1, 2, 3]
    assert units_foreseen(job, Options(overwrite=True)) == [0, 1, 2, 3]
    with pytest.raises(ComboError, match=r"gone from the list .*--discard"):
        units_foreseen(world.job("abc"), Options())
    assert bytes_of(world.home / "store") == before
    assert world.run("defabcghij") == ["i", "j"]


def test_what_means_something_else_now_is_not_taken_over(world: World) -> None:
    world.run("abc")
    job = world.job("abc", seconds_per_frame=2.0)
    with pytest.raises(ComboError, match=r"seconds_per_frame 1.0, now 2.0.* were made otherwise"):
        world.settle(job)
    world.settle(job, discard=True)
    assert finished(job)
    assert isinstance(job.stage, Reading)
    assert job.stage.computed == ["a", "b", "c"]
    named = world.job("abc", seconds_per_frame=2.0, classes=("background", "cat"))
    world.settle(named)
    assert finished(named), "only the stage that reads labels has to know the classes"


def test_work_that_is_damaged_is_not_taken_over_as_good(world: World) -> None:
    world.run("abcdef")
    file = shard(world.job("abcdef"), 0)
    file.unlink()
    with pytest.raises(ComboError, match=r"clip a in unit 0 cannot be read back"):
        world.settle(world.job("fabcde"))
    assert world.job("abcdef").split.plan() == world.job("abcdef").plan
    assert world.run("fabcde", discard=True) == ["a", "b", "c"]


def test_a_kept_clip_whose_file_changes_before_its_unit_is_done_is_computed(world: World) -> None:
    world.run("abcd")
    job = world.job("abcdef")
    world.settle(job)
    (world.home / "sounds" / "d").write_text("new")
    assert finished(job)
    assert isinstance(job.stage, Reading)
    assert job.stage.computed == ["d", "e", "f"]
    whole(job)


def test_a_kept_clip_that_lies_under_the_bytes_of_another_is_computed(world: World) -> None:
    world.run("abcd")
    job = world.job("abcdef")
    world.settle(job)
    shutil.copyfile(shard(job, 0), shard(job, 1))
    assert world.run("abcdef") == ["d", "e", "f"]


def test_overwrite_makes_kept_clips_again_too(world: World) -> None:
    world.run("abcd")
    assert world.run("abcdef", overwrite=True) == list("abcdef")


def test_other_stages_keep_their_work_whatever_one_stage_is_asked_to_do(world: World) -> None:
    """`--overwrite` of one stage after a reordered list."""
    world.run("abcdef")
    job = world.job("abcdef")
    stage = Reading([], "maskiges")
    other = replace(job, stage=stage, variant=stage.variant())
    assert finished(other)
    assert world.run("fedcba", overwrite=True) == list("fedcba")
    again = replace(world.job("fedcba"), stage=stage, variant=stage.variant())
    assert again.split.finished(again.variant) is not None
    whole(again)
    assert stage.computed == list("abcdef")


@pytest.mark.own_process
def test_killed_at_any_step_nothing_is_lost_and_it_goes_on(tmp_path: Path) -> None:
    """Dead from its first, second, ... call to the file system on, until it survives."""
    _die_at_each_step(tmp_path)  # hooks like those here are never taken out of a process again


CALLS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Dead(BaseException):
    """What a killed process meets at every call: whatever it still tries changes nothing."""


async def _nothing_goes_on() -> None:
    """What zarr's own threads still try, for which a killed process has none, meets its end."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def _die_at_each_step(home: Path) -> None:
    before, after = "abcde", "cdaxbe"
    first, world = World(home / "first"), World(home / "killed")
    first.run(before, 2)
    left: float = float("inf")

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in CALLS and str(world.home / "store") in str(arguments):
            left -= 1
            if left <= 0:
                raise Dead

    sys.addaudithook(hook)
    for step in range(1, 400):
        left = float("inf")
        shutil.rmtree(world.home, ignore_errors=True)
        shutil.copytree(first.home, world.home)
        deaths = 0
        for calls in (step, 1 + step // 3):  # killed a second time as it goes on
            left = calls
            try:
                world.settle(world.job(after, 2))
            except Dead:
                deaths += 1
                sync(_nothing_goes_on())
        left = float("inf")
        if step % 2:
            assert world.run(after, 2) == ["x"], step
        else:  # the former list comes back, and what came between was never computed
            assert world.run(before, 2) == [], step
        if not deaths:
            break
    assert not deaths
    assert step > 60, f"only {step} steps"


@pytest.mark.parametrize("begun", [False, True])
def test_nobody_takes_a_split_over_while_somebody_works_on_it(
    world: World, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Also not a takeover that was killed when all was there but nothing was in its place."""
    world.run("abc")
    job = world.job("abc")
    if begun:
        monkeypatch.setattr(moved, "_exchange", die)
        with pytest.raises(Dead):
            world.settle(world.job("cba"))
        monkeypatch.undo()
    here, there = get_context("fork").Pipe()
    holder = get_context("fork").Process(target=hold, args=(job, 0, there))
    holder.start()
    try:
        assert here.recv()
        with pytest.raises(ComboError, match=rf"unit 0: process {holder.pid} on .* since 20"):
            world.settle(world.job("cba"))
    finally:
        holder.kill()
        holder.join()
    assert world.run("cba") == []


def die(*_: object) -> None:
    raise Dead


def hold(job: Job, unit: int, told: Connection) -> None:
    claims = Claims(job.split.records(job.variant))
    told.send(claims.take(unit))
    signal.pause()


# -- a plan that is lost -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, "{", '{"layout": 1}'])
def test_a_lost_plan_is_written_anew_where_the_list_is_the_same(
    world: World, damage: str | None
) -> None:
    world.run("abcdef")
    lose_plan(world, damage)
    assert world.run("abcdef") == []


@pytest.mark.parametrize("damage", [None, "{"])
def test_a_lost_plan_of_another_list_throws_nothing_away(world: World, damage: str | None) -> None:
    world.run("abcdef")
    lose_plan(world, damage)
    with pytest.raises(ComboError, match=r"has changed \(lost\).* all that was done by it"):
        world.settle(world.job("fabcde"))
    assert world.run("abcdef") == []


def lose_plan(world: World, damage: str | None) -> None:
    path = world.job("a").split.plan_path
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
