"""How far a store is: read from names of records and signs of life, while others write or after
they died."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ComboError, reason_of
from ..layouts.folders import SPLITS
from ..manifest import Manifest
from ..packed import PackedSplit, is_packed, splits_in_packed
from ..source import Source, annotated_frames, usable
from ..store import STAGES, SplitStore, Variant, splits_in
from . import records
from .claims import Holder, holders
from .parts import Part, read_parts
from .plan import splits_of


@dataclass(frozen=True)
class StageStatus:
    """One stage of one split."""

    data_set: str
    split: str
    stage: str
    variant: str
    clips: int
    done: int
    failed: int
    to_do: int
    units: int
    units_done: int
    clips_per_second: float | None
    """Of all parts that run, together; of those that ran, when none does; None when nothing is
    known."""
    seconds_left: float | None
    """At that speed; None when nothing is running or left."""
    finished: bool
    failures: dict[str, str]
    """Clip name -> reason."""
    annotated: tuple[int, int] | None
    """Of the stage `frames`: frames with labels, and frames, so far."""
    parts: tuple[Part, ...]
    """Who works, or worked, on it."""
    held: tuple[Holder, ...] = ()
    """Units that somebody has in hand, and since when."""

    @property
    def key(self) -> str:
        return f"{self.stage}/{self.variant}" if self.variant else self.stage

    @property
    def state(self) -> str:
        """`not begun`, `open`, `running`, `finished`, or `all failed` where no clip is good."""
        if not self.variant:
            return "not begun"
        if self.finished:
            return "finished" if self.done else "all failed"
        return "running" if any(part.state == "running" for part in self.parts) else "open"


def stage_statuses(
    store: Path,
    data_sets: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> list[StageStatus]:
    """The state of every variant in a store or a packed file, by data set, split and stage.

    on_problem: gets a line for each split that cannot be read, which is left out; without it the
    first such is raised.
    """
    if is_packed(store):
        return [
            _packed(split, variant)
            for split in splits_in_packed(store, data_sets)
            if not splits or split.split in splits
            for variant in split.variants()
        ]
    found: list[StageStatus] = []
    for split in splits_in(store, data_sets):
        if splits and split.split not in splits:
            continue
        try:
            found += [_stage_status(split, variant) for variant in split.variants()]
        except (ComboError, OSError) as error:
            if on_problem is None:
                raise
            other = isinstance(error, OSError)
            said = f"{error.filename}: cannot be read: {reason_of(error)}" if other else str(error)
            on_problem(f"{split}: {said}")
    return found


def not_begun(
    manifest: Manifest,
    there: Sequence[StageStatus],
    data_sets: Sequence[str] = (),
    splits: Sequence[str] = (),
) -> list[StageStatus]:
    """The stages that nothing is done of: of splits of the store, and of the other splits of the
    manifest's data sets that are in it, or asked for. Their clips are 0 where nothing is planned.
    """
    store = manifest.store_path
    if is_packed(store):
        return []
    asked = dict.fromkeys([*data_sets, *(each.data_set for each in there)])
    clips: dict[tuple[str, str], int | None] = {}
    for split in splits_in(store, list(asked)):
        try:
            split.variants()
            clips[split.data_set, split.split] = len(split.plan().clips)
        except (ComboError, OSError):
            clips[split.data_set, split.split] = None  # of which `stage_statuses` tells
    for name in asked.keys() & manifest.data_sets.keys():
        with contextlib.suppress(ComboError):  # what is wrong with its folder, `combo doctor` says
            clips = {(name, split): 0 for split in splits_of(manifest, name)} | clips
    begun = {(each.data_set, each.split, each.stage) for each in there}
    return [
        _nothing(*split, stage, count)
        for split, count in clips.items()
        if count is not None and (not splits or split[1] in splits)
        for stage in STAGES
        if (*split, stage) not in begun
    ]


def in_order(states: Sequence[StageStatus], data_sets: Iterable[str]) -> list[StageStatus]:
    """By data set as these are, then train, val, test, then by stage."""
    order = {name: place for place, name in enumerate(data_sets)}
    first = {name: place for place, name in enumerate(SPLITS)}
    return sorted(
        states,
        key=lambda each: (
            order.get(each.data_set, len(order)),
            first.get(each.split, len(first)),
            each.split,
            STAGES.index(each.stage),
            each.variant,
        ),
    )


def _nothing(data_set: str, split: str, stage: str, clips: int) -> StageStatus:
    return StageStatus(
        data_set=data_set,
        split=split,
        stage=stage,
        variant="",
        clips=clips,
        done=0,
        failed=0,
        to_do=clips,
        units=0,
        units_done=0,
        clips_per_second=None,
        seconds_left=None,
        finished=False,
        failures={},
        annotated=None,
        parts=(),
    )


def _packed(split: PackedSplit, variant: Variant) -> StageStatus:
    """What is packed is finished."""
    plan, failures = split.plan(), dict(split.finished(variant).failed)
    return StageStatus(
        data_set=split.data_set,
        split=split.split,
        stage=variant.stage,
        variant=variant.name,
        clips=len(plan.clips),
        done=len(plan.clips) - len(failures),
        failed=len(failures),
        to_do=0,
        units=plan.units,
        units_done=plan.units,
        clips_per_second=None,
        seconds_left=None,
        finished=True,
        failures=failures,
        annotated=_annotated(split, variant),
        parts=(),
    )


def _stage_status(split: SplitStore, variant: Variant) -> StageStatus:
    plan = split.plan()
    there = {
        unit: bad for unit, bad in records.listing(split, variant).items() if unit < plan.units
    }
    clips = sum(len(plan.members(unit)) for unit in there)
    bad = sorted(unit for unit, with_failures in there.items() if with_failures)
    failures = {
        clip.name: clip.reason
        for record in records.done_units(split, variant, plan, bad)
        for clip in record.failed
    }
    parts = read_parts(split, variant)
    running = [part for part in parts if part.state == "running"]
    rates = [part.clips_per_second or 0.0 for part in running or parts]
    rate = round(sum(rates), 3) or None
    to_do = len(plan.clips) - clips
    return StageStatus(
        data_set=split.data_set,
        split=split.split,
        stage=variant.stage,
        variant=variant.name,
        clips=len(plan.clips),
        done=clips - len(failures),
        failed=len(failures),
        to_do=to_do,
        units=plan.units,
        units_done=len(there),
        clips_per_second=rate,
        seconds_left=round(to_do / rate, 1) if rate and to_do and running else None,
        finished=to_do == 0 and usable(split, variant) is not None,
        failures=failures,
        annotated=_annotated(split, variant),
        parts=tuple(parts),
        held=tuple(holders(split.records(variant))),
    )


def _annotated(split: Source, variant: Variant) -> tuple[int, int] | None:
    if variant.stage != "frames":
        return None
    try:
        return annotated_frames(split, variant)
    except Exception:
        return None  # what is damaged, `combo verify` says
