"""How far a store is: read from its records alone, while others write or after they died."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..packed import PackedSplit, is_packed, splits_in_packed
from ..store import SplitStore, Variant, splits_in
from . import records
from .records import UnitRecord

RECENT = 50
"""Units whose times the rate is measured over."""


@dataclass(frozen=True)
class Progress:
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
    """Over the last units, all writers together; None before there are two."""
    seconds_left: float | None
    finished: bool
    failures: dict[str, str]
    """Clip name -> reason."""


def progress(
    store: Path, data_sets: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> list[Progress]:
    """The state of every variant in a store or a packed file, by data set, split and stage."""
    if is_packed(store):
        return [
            _packed(split, variant)
            for split in splits_in_packed(store, data_sets)
            if not splits or split.split in splits
            for variant in split.variants()
        ]
    return [
        _progress(split, variant)
        for split in splits_in(store, data_sets)
        if not splits or split.split in splits
        for variant in split.variants()
    ]


def _packed(split: PackedSplit, variant: Variant) -> Progress:
    """What is packed is finished."""
    plan, failures = split.plan(), dict(split.finished(variant)["failed"])
    return Progress(
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
    )


def _progress(split: SplitStore, variant: Variant) -> Progress:
    plan = split.plan()
    done = list(records.done_units(split, variant, plan))
    clips = sum(len(record.clips) for record in done)
    failures = {clip.name: clip.reason for record in done for clip in record.failed}
    rate = _rate(done)
    to_do = len(plan.clips) - clips
    return Progress(
        data_set=split.data_set,
        split=split.split,
        stage=variant.stage,
        variant=variant.name,
        clips=len(plan.clips),
        done=clips - len(failures),
        failed=len(failures),
        to_do=to_do,
        units=plan.units,
        units_done=len(done),
        clips_per_second=rate,
        seconds_left=round(to_do / rate, 1) if rate and to_do else None,
        finished=records.read_finished(split, variant) is not None and to_do == 0,
        failures=failures,
    )


def _rate(done: Sequence[UnitRecord]) -> float | None:
    """Clips a second from the first to the last of the newest units' completion times."""
    newest = sorted(done, key=lambda record: record.finished_at)[-RECENT:]
    if len(newest) < 2:
        return None
    seconds = newest[-1].finished_at - newest[0].finished_at
    if seconds <= 0:
        return None
    return round(sum(len(record.clips) for record in newest[1:]) / seconds, 3)
