"""plan -> run -> finalise, for any stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import ComboError
from ..layouts import Clip
from ..store import Plan, SplitStore, Variant
from . import records
from .local import Lost, run_units
from .records import Finished, UnitRecord
from .unit import Job, storing


@dataclass(frozen=True)
class Options:
    """How to go about a run."""

    part: tuple[int, int] = (1, 1)
    """(I, N): the I-th of N parts of the units, counted from 1."""
    workers: int = 1
    overwrite: bool = False
    retry_failed: bool = False


@dataclass
class Summary:
    """What a run of one stage over one split came to."""

    split: SplitStore
    variant: Variant
    units: int
    """Units of this part."""
    todo: int
    """Units that this run had to compute."""
    failed: dict[str, str] = field(default_factory=dict)
    """Clips of this part that failed, in this run or an earlier one: name -> reason."""
    lost: list[int] = field(default_factory=list)
    finished: Finished | None = None


def parse_part(text: str) -> tuple[int, int]:
    """`I/N`, counted from 1, as in `--part 3/8`."""
    left, _, right = text.partition("/")
    if left.isdigit() and right.isdigit() and 1 <= int(left) <= int(right):
        return int(left), int(right)
    raise ComboError(f"--part {text}: write I/N with 1 <= I <= N, such as --part 3/8")


def make_plan(
    split: SplitStore,
    layout: str,
    frames_per_clip: int,
    classes: Sequence[str],
    clips: Sequence[Clip],
    clips_per_unit: int,
) -> Plan:
    """The plan that these clips ask for."""
    if not clips:
        raise ComboError(f"{split} has no clips; see data_sets.{split.data_set} in the manifest")
    return Plan(
        layout=layout,
        clips=tuple(clip.name for clip in clips),
        subsets=tuple(clip.subset for clip in clips),
        frames_per_clip=frames_per_clip,
        classes=tuple(classes),
        clips_per_unit=clips_per_unit,
    )


def settle_plan(split: SplitStore, wanted: Plan, options: Options) -> Plan:
    """Write the plan, or hold it against the one there. Raises ComboError when they differ."""
    present = split.read_plan()
    if present is None:
        with storing(split):
            split.write_plan(wanted)
    elif present != wanted:
        if not (options.overwrite and options.part == (1, 1)):
            raise ComboError(
                f"{split} in {split.store} was planned for {_difference(present, wanted)}; "
                f"give another store, or --overwrite (without --part) to throw the old one away"
            )
        with storing(split):
            split.clear()
            split.write_plan(wanted)
    return wanted


def units_of_part(plan: Plan, part: tuple[int, int]) -> list[int]:
    """Every N-th unit, so that parts are equally long wherever the slow clips lie."""
    return list(range(part[0] - 1, plan.units, part[1]))


def units_to_do(job: Job, options: Options) -> list[int]:
    """The units of this part that a run would compute."""
    mine = units_of_part(job.plan, options.part)
    done = {r.unit: r for r in records.done_units(job.split, job.variant, job.plan)}
    if options.overwrite:
        return mine
    return [
        unit for unit in mine if unit not in done or (options.retry_failed and done[unit].failed)
    ]


def run_job(
    job: Job,
    options: Options,
    on_start: Callable[[int], None] = lambda _: None,
    on_unit: Callable[[UnitRecord], None] = lambda _: None,
) -> Summary:
    """Compute what is not done of this part of a split, and finalise when all of it is.

    on_start gets the number of units to do, on_unit each record as it is committed. Raises
    ComboError when nothing can go on (disk full, missing weights); what is committed stays.
    """
    split, variant, plan = job.split, job.variant, job.plan
    with storing(split):
        split.create(variant, plan)
    todo = units_to_do(job, options)
    mine = units_of_part(plan, options.part)
    summary = Summary(split, variant, len(mine), len(todo))
    on_start(len(todo))
    for result in run_units(job, todo, options.workers):
        if isinstance(result, Lost):
            summary.lost.append(result.unit)
        else:
            on_unit(result)
    for record in records.done_units(split, variant, plan):
        if record.unit in mine:
            summary.failed |= {clip.name: clip.reason for clip in record.failed}
    with storing(split):
        summary.finished = records.finalise(split, variant, plan)
    return summary


def _difference(present: Plan, wanted: Plan) -> str:
    if present.clips != wanted.clips:
        new = len(set(wanted.clips) - set(present.clips))
        gone = len(set(present.clips) - set(wanted.clips))
        return (
            f"{len(present.clips)} clips, the data set has {len(wanted.clips)} "
            f"({new} new, {gone} gone)"
        )
    for name in ("layout", "frames_per_clip", "clips_per_unit", "classes", "subsets"):
        old, now = getattr(present, name), getattr(wanted, name)
        if old != now:
            return f"{name} {old!r}, not {now!r}"
    return "something else"
