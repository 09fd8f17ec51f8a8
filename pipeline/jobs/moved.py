"""A data set's list of clips has changed: what is done is taken over, and nothing is computed.

A split is assembled anew in its folder `next`, while the old one stays as it is: units of the same
clips are linked, others are written from the rows of old ones, and of units that have new clips too
the old ones are `kept`. When all of it is there, `next/whole` says so; then the plan goes first,
so that nothing counts, and one after the other the old folders move to `old`, the new ones to their
place, and the new plan comes last. Killed at any step, whoever comes next goes on from what lies
where: without `whole` the old split is valid, with it the new one is.

What would be lost (clips that are gone from the list, or whose files are others now) is named, and
only thrown away when that is asked for.
"""

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import numpy as np

from .. import durable, remedies
from ..clip_checks import clip_checks
from ..errors import ComboError, counted
from ..preprocess.stage import Outcome
from ..store import ArraySpec, Plan, SplitStore, Variant
from . import kept, records
from .claims import WHOLE, Claims, holders
from .inputs import DataSet, remember, same
from .records import ClipRecord, UnitRecord
from .repair import work_in
from .unit import gather

NEXT, OLD, READY = "next", "old", "whole"

CARRIED = ("clips", "subsets", "clips_per_unit", "frames_per_clip")
"""What may change in a plan without changing what a clip's arrays mean; for `classes` see
`_means_the_same`, for longer and shorter arrays `_with_room`."""

UNITS_AT_HAND = 4
"""Old units held in memory: most lists change so that two are needed at a time."""


@dataclass(frozen=True)
class Place:
    """Where a clip's work lies: the unit in the old split, and what was recorded."""

    unit: int
    failed: bool
    inputs: str


@dataclass
class Stays:
    """What is taken over of a variant, clip -> place, and what is lost, what befell -> clips."""

    variant: Variant
    places: dict[str, Place] = field(default_factory=dict[str, Place])
    lost: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def lose(self, name: str, why: str) -> None:
        if not self.places.pop(name).failed:  # a failed clip is no work
            self.lost.setdefault(why, []).append(name)


def begun(split: SplitStore) -> bool:
    """Whether somebody is taking a split over, or was killed while doing so."""
    return (split.root / NEXT).exists() or (split.root / OLD).exists()


def go_on(split: SplitStore) -> None:
    """Bring to an end what a killed process had begun. For one process at a time.

    Raises ComboError when somebody is at work on the split.
    """
    if (split.root / NEXT / READY).exists():
        with _nobody_at_work(split):
            _exchange(split)
    shutil.rmtree(split.root / OLD, ignore_errors=True)


def give_up(split: SplitStore) -> None:
    """Remove what was assembled of a list that nobody wants any more."""
    shutil.rmtree(split.root / NEXT, ignore_errors=True)


def move(
    split: SplitStore,
    old: Plan | None,
    new: Plan,
    data: DataSet,
    discard: bool,
    told: Callable[[str], None],
) -> None:
    """Take a split over to another plan. For one process at a time, after `go_on`.

    old: None where it is lost, and with it which clip is which.
    Raises ComboError when work would be lost and `discard` is not given, and when somebody is at
    work on the split.
    """
    with _nobody_at_work(split):
        before = "lost" if old is None else difference(old, new)
        told(f"{split}: its list of clips has changed ({before}); what is done is taken over")
        stays = [] if old is None else _what_stays(split, old, new, data)
        if not discard:
            _demand_nothing_lost(split, before, old, stays)
        target = SplitStore(split.store / split.data_set, split.split, NEXT, str(split))
        if target.read_plan() != new:
            give_up(split)
            target.write_plan(new)
        for each in stays:
            assert old is not None
            if any(not place.failed for place in each.places.values()):
                _Assembly(split, target, old, new, each).run(discard)
        target.tensors.mkdir(exist_ok=True)
        (target.root / "records").mkdir(exist_ok=True)
        remember(target, data)
        durable.write_bytes(target.root / READY, b"")
        _exchange(split)
        for each in stays:
            told(f"{split} {each.variant.key}: {counted(len(each.places), 'clip')} taken over")


def difference(present: Plan, wanted: Plan) -> str:
    """What a plan says otherwise than another, in words."""
    if present.clips != wanted.clips:
        new = len(set(wanted.clips) - set(present.clips))
        gone = len(set(present.clips) - set(wanted.clips))
        moved = "" if new or gone else ", in another order"
        return (
            f"{counted(len(present.clips), 'clip')}, the data set has {len(wanted.clips)}: "
            f"{new} new, {gone} gone{moved}"
        )
    for each in fields(Plan):
        was, now = getattr(present, each.name), getattr(wanted, each.name)
        if was != now:
            return f"{each.name} {was!r}, now {now!r}"
    return "something else"


def _exchange(split: SplitStore) -> None:
    """Put what is in `next` into its place. Whatever step it is killed at, it goes on from there.

    Each name is in `next` until it is in its place, and the plan is the last.
    """
    new, old = split.root / NEXT, split.root / OLD
    plan = split.plan_path.name
    if (new / plan).exists():
        durable.remove(split.plan_path)
        for name in (split.tensors.name, "records", "inputs.json"):
            if (new / name).exists():
                if (split.root / name).exists():
                    old.mkdir(exist_ok=True)
                    durable.move(split.root / name, old / name)
                durable.move(new / name, split.root / name)
        durable.move(new / plan, split.plan_path)
    split.forget()
    durable.remove(new / READY)
    give_up(split)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _nobody_at_work(split: SplitStore) -> Generator[None]:
    """Holds every claim of a split. Raises ComboError naming who has one."""
    with ExitStack() as stack:
        for folder in sorted((split.root / "records").glob("*/*/")):
            claims = Claims(folder)
            stack.callback(claims.close)
            if not claims.take(WHOLE):
                at_work = [f"unit {who.unit}: {who}" for who in holders(folder)]
                raise ComboError(
                    f"{split} in {split.store} is worked on ({'; '.join(at_work[:3]) or folder}), "
                    "and its list of clips has changed; let that end, or end it, and run the same "
                    "command again"
                )
        yield


@lru_cache(1)  # which the stages of a split ask for one after the other
def _foreseen(split: SplitStore, old: Plan, new: Plan, data: DataSet) -> list[Stays]:
    return _what_stays(split, old, new, data)


def foreseen(
    split: SplitStore, old: Plan, new: Plan, data: DataSet, key: str, discard: bool
) -> dict[int, bool]:
    """The units of a variant that `move` would leave done, and whether with failed clips.

    Reads the clips' files, and writes nothing. Raises ComboError as `move`.
    """
    stays = _foreseen(split, old, new, data)
    if not discard:
        _demand_nothing_lost(split, difference(old, new), old, stays)
    places = next((each.places for each in stays if each.variant.key == key), {})
    found: dict[int, bool] = {}
    for unit in range(new.units if any(not place.failed for place in places.values()) else 0):
        there = [places.get(new.clips[index]) for index in new.members(unit)]
        if all(there):
            found[unit] = any(place.failed for place in there if place)
    return found


# -- what stays ----------------------------------------------------------------------------------


def _what_stays(split: SplitStore, old: Plan, new: Plan, data: DataSet) -> list[Stays]:
    """What is done of clips that the new plan has too, and what is done of others."""
    found = {variant.key: Stays(variant) for variant in split.variants()}
    wanted = set(new.clips)
    for stays in found.values():
        stays.places = _places(split, stays.variant, old)
        fits = _means_the_same(stays.variant, old, new)
        for name in [name for name in stays.places if not fits or name not in wanted]:
            stays.lose(name, "are gone from the list" if fits else "were made otherwise")
    for index, name in enumerate(new.clips):
        recorded = {
            key: (stays.variant, place.inputs)
            for key, stays in found.items()
            if (place := stays.places.get(name)) and not place.failed
        }
        if recorded:
            for key, good in same(recorded, data.clips[index]).items():
                if not good:
                    found[key].lose(name, "have other files now")
    return list(found.values())


def _places(split: SplitStore, variant: Variant, plan: Plan) -> dict[str, Place]:
    found = {
        clip.name: Place(record.unit, clip.failed, clip.inputs)
        for record in records.done_units(split, variant, plan)
        for clip in record.clips
    }
    for unit in kept.units(split, variant):
        for clip in kept.read(split, variant, plan, unit):
            found.setdefault(clip.name, Place(unit, failed=False, inputs=clip.inputs))
    return found


def _means_the_same(variant: Variant, old: Plan, new: Plan) -> bool:
    """Whether a clip's arrays would be the same under both plans."""
    frames = variant.stage == "frames"  # the only stage that reads labels
    free = CARRIED if frames else (*CARRIED, "classes")
    return all(
        getattr(old, each.name) == getattr(new, each.name)
        for each in fields(Plan)
        if each.name not in free
    )


def _demand_nothing_lost(
    split: SplitStore, before: str, old: Plan | None, stays: Sequence[Stays]
) -> None:
    lost = [
        f"{counted(len(names), 'clip')} of {each.variant.key} that {why} (first: {names[0]})"
        for each in stays
        for why, names in each.lost.items()
    ]
    known = {each.variant.key for each in stays}
    repair = remedies.repair(split.data_set, split.split)
    lost += [
        f"all of {key}, which nothing describes any more (mend that: {repair})"
        for key in work_in(split)
        if key not in known
    ]
    if old is None:
        lost = ["all that was done by it"]
    if lost:
        raise ComboError(
            f"the list of clips of {split} in {split.store} has changed ({before}), and this would "
            f"throw away {', '.join(lost)}; put them back, give another store, or run the same "
            "command with --discard"
        )


# -- putting it together -------------------------------------------------------------------------


def _with_room(variant: Variant, old: Plan, new: Plan) -> Variant:
    """A variant whose clips have room for as many frames as another plan says."""
    length, count = old.frames_per_clip, new.frames_per_clip
    arrays = (
        replace(spec, shape=(count, *spec.shape[1:])) if spec.shape[:1] == (length,) else spec
        for spec in variant.arrays
    )
    return replace(variant, arrays=tuple(arrays))


def _fitted(array: np.ndarray, spec: ArraySpec) -> np.ndarray:
    """A clip's array with more or fewer frames; those that no clip has hold what influences
    nothing."""
    if array.shape == spec.shape:
        return array
    whole = np.full(spec.shape, spec.fill, spec.dtype)
    whole[: len(array)] = array[: len(whole)]
    return whole


class _Assembly:
    """Writes the units of one variant under the new plan, from what the old split holds."""

    def __init__(
        self, split: SplitStore, target: SplitStore, old: Plan, new: Plan, stays: Stays
    ) -> None:
        self._split, self._target, self._old, self._new = split, target, old, new
        self._variant_there = stays.variant
        self._variant, self._places = _with_room(stays.variant, old, new), stays.places
        self._outcomes = lru_cache(UNITS_AT_HAND)(self._read)
        self._record = lru_cache(UNITS_AT_HAND)(
            lambda unit: records.read_record(split, stays.variant, unit)
        )

    def _read(self, unit: int) -> dict[str, Outcome]:
        """The outcomes of an old unit, with as much room as clips have now."""
        there = kept.outcomes(self._split, self._variant_there, self._old, unit)
        specs = self._variant.arrays
        return {
            name: replace(each, arrays={s.name: _fitted(each.arrays[s.name], s) for s in specs})
            if each.arrays
            else each
            for name, each in there.items()
        }

    def run(self, discard: bool) -> None:
        """Raises ComboError for work that cannot be read back, unless it is to be discarded."""
        self._target.create(self._variant, self._new)
        for unit in range(self._new.units):
            names = [self._new.clips[index] for index in self._new.members(unit)]
            if not self._link(unit, names):
                self._write(unit, names, discard)
        records.finalise(self._target, self._variant, self._new)

    def _link(self, unit: int, names: Sequence[str]) -> bool:
        """Whether an old unit is the same one, whose files have got a second name now."""
        place = self._places.get(names[0])
        record = place and self._record(place.unit)
        if (
            record is None
            or self._variant != self._variant_there
            or self._old.clips_per_unit != self._new.clips_per_unit
            or [clip.name for clip in record.clips] != names
            or not self._places.keys() >= set(names)
            or not records.speaks_of(record, self._variant, self._old, record.unit)
        ):
            return False
        mine = replace(record, unit=unit, plan=self._new.fingerprint)
        if records.read_record(self._target, self._variant, unit) != mine:
            records.withdraw(self._target, self._variant, unit)
            shards = (each.shards(self._variant, number) for each, number in (
                (self._split, record.unit), (self._target, unit)
            ))  # fmt: skip
            for there, here in zip(*shards, strict=True):
                if there.exists():  # a shard of fill values may have no file
                    durable.link(there, here)
            records.commit(self._target, self._variant, mine)
        return True

    def _write(self, unit: int, names: Sequence[str], discard: bool) -> None:
        """Write what there is of a unit: its record where that is all, else what is kept of it."""
        if self._is_written(unit, names):
            return
        found: list[Outcome | None] = []
        for name in names:
            place = self._places.get(name)
            outcome = self._outcomes(place.unit).get(name) if place else None
            if place and outcome is None and not place.failed and not discard:
                raise ComboError(
                    f"{self._split} {self._variant.key}: clip {name} in unit {place.unit} cannot "
                    "be read back, so it cannot be taken over to the new list of clips; repair it "
                    "with the former list (combo verify --repair), or run the same command with "
                    "--discard"
                )
            found.append(outcome)
        whole = all(each is not None for each in found)
        good = [(n, each) for n, each in zip(names, found, strict=True) if each and each.arrays]
        records.withdraw(self._target, self._variant, unit)  # of one who was killed
        if not whole and not good:
            return
        filled = [each or Outcome(None) for each in found]
        arrays, clips = gather(self._variant, self._new, unit, filled)
        outputs = self._target.write_unit(self._variant, self._new, unit, arrays)
        if whole:
            checks = clip_checks(arrays, len(clips))
            record = self._recorded(unit, clips, outputs, checks)
            records.commit(self._target, self._variant, record)
        else:
            kept.write(self._target, self._variant, kept.of(unit, self._variant, self._new, good))

    def _is_written(self, unit: int, names: Sequence[str]) -> bool:
        """Whether one who was killed had written what there is of a unit."""
        record = records.read_record(self._target, self._variant, unit)
        there = kept.read(self._target, self._variant, self._new, unit)
        clips = record.clips if record else there
        wanted = {name: place.inputs for name in names if (place := self._places.get(name))}
        good = [name for name in wanted if not self._places[name].failed]
        expected = wanted if len(wanted) == len(names) else {name: wanted[name] for name in good}
        return bool(clips) and {clip.name: clip.inputs for clip in clips} == expected

    def _recorded(
        self,
        unit: int,
        clips: tuple[ClipRecord, ...],
        outputs: dict[str, str],
        checks: dict[str, str],
    ) -> UnitRecord:
        """A record that says who made the clips, and in what time: their shares of old units."""
        made = [self._record(self._places[clip.name].unit) for clip in clips]
        known = [each for each in made if each is not None]
        return UnitRecord(
            unit=unit,
            plan=self._new.fingerprint,
            fingerprint=self._variant.fingerprint,
            clips=clips,
            outputs=outputs,
            compute_seconds=round(sum(r.compute_seconds / len(r.clips) for r in known), 4),
            write_seconds=round(sum(r.write_seconds / len(r.clips) for r in known), 4),
            finished_at=max((r.finished_at for r in known), default=0.0),
            device=", ".join(sorted({r.device for r in known})) or "cpu",
            checks=checks,
        )
