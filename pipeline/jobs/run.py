"""plan -> run -> finalise, for any stage."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from ..errors import ComboError
from ..store import Finished, Plan, SplitStore, Variant
from . import records
from .estimate import Estimate, check, estimate
from .local import LocalRunner, Lost
from .parts import telling
from .records import UnitRecord
from .stopping import Stop, Stopped
from .unit import Done, Job, storing


@dataclass(frozen=True)
class Options:
    """What a run is to do."""

    part: tuple[int, int] = (1, 1)
    """(I, N): the I-th of N parts of the units, counted from 1."""
    overwrite: bool = False
    retry_failed: bool = False
    force: bool = False
    """Go on although the disk looks too small."""


class Runner(Protocol):
    """Something that computes units: processes of this machine, a cluster's workers."""

    def processes(self, job: Job, units: int) -> int:
        """How many compute at once, for estimates."""
        ...

    def run(self, job: Job, units: Sequence[int], again: bool, stop: Stop) -> Iterator[Done | Lost]:
        """Compute and commit units; see `LocalRunner.run`."""
        ...


@dataclass
class Summary:
    """What a run of one stage over one split came to."""

    split: SplitStore
    variant: Variant
    units: int
    """Units of this part."""
    todo: int
    """Units that this run found not done."""
    computed: int = 0
    """Units that it computed itself; others may have done the rest meanwhile."""
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
    """The units of this part that a run would compute. Opens the records of this part alone."""
    mine = units_of_part(job.plan, options.part)
    if options.overwrite:
        return mine
    done = {r.unit: r for r in records.done_units(job.split, job.variant, job.plan, mine)}
    return [
        unit for unit in mine if unit not in done or (options.retry_failed and done[unit].failed)
    ]


def run_job(
    job: Job,
    options: Options,
    runner: Runner | None = None,
    stop: Stop | None = None,
    *,
    units: Sequence[int] | None = None,
    on_estimate: Callable[[Estimate], None] = lambda _: None,
    on_unit: Callable[[UnitRecord], None] = lambda _: None,
) -> Summary:
    """Compute what is not done of this part of a planned job, and finalise when all of it is.

    units: these, instead of what is found not done.  runner: this process, when none is given.
    on_estimate gets what is needed (again after the first unit, when none had been measured),
    on_unit each record as it is committed.
    Raises ComboError when nothing can go on (disk full or too small, missing weights), and Stopped
    when `stop` is asked before the end; what is committed stays.
    """
    split, variant, plan = job.split, job.variant, job.plan
    runner, stop = runner or LocalRunner(workers=1), stop or Stop()
    with storing(split):
        split.create(variant, plan)
    mine = units_of_part(plan, options.part)
    todo = list(units_to_do(job, options) if units is None else units)
    summary = Summary(split, variant, len(mine), len(todo))

    there = records.listing(split, variant)
    new = sum(unit not in there for unit in todo)  # the others replace files that are there

    def look_ahead(left: int) -> bool:
        needed = estimate(job, left, runner.processes(job, left), min(left, new))
        on_estimate(needed)
        if not options.force:
            check(job, needed)
        return needed.measured

    left = len(todo)
    with telling(split, variant, options.part, len(mine), len(mine) - left) as teller:
        measured = not todo or look_ahead(left)
        again = options.overwrite or options.retry_failed
        for result in runner.run(job, _turned(todo, options.part), again, stop):
            left -= 1
            if isinstance(result, Lost):
                summary.lost.append(result.unit)
                continue
            summary.computed += result.computed
            teller.unit(len(result.record.clips) if result.computed else 0)
            on_unit(result.record)
            if left and not measured:
                measured = look_ahead(left)
        if left and stop.asked:
            raise Stopped
    return _closed(summary, job, mine)


def _turned(units: list[int], part: tuple[int, int]) -> list[int]:
    """The units of a part, begun anywhere: one that kills its process each time must not keep a
    part that is queued again from all that come after it."""
    first = random.randrange(len(units)) if part[1] > 1 and units else 0
    return units[first:] + units[:first]


def close(job: Job) -> Summary:
    """Finalise a job whose units are all done; `todo` counts those that are not."""
    missing = units_to_do(job, Options())
    summary = Summary(job.split, job.variant, job.plan.units, len(missing))
    return _closed(summary, job, range(job.plan.units))


def _closed(summary: Summary, job: Job, mine: Sequence[int]) -> Summary:
    split, variant, plan = job.split, job.variant, job.plan
    there = records.listing(split, variant)
    failed = [unit for unit in mine if there.get(unit)]
    for record in records.done_units(split, variant, plan, failed):
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
    for each in fields(Plan):
        old, now = getattr(present, each.name), getattr(wanted, each.name)
        if old != now:
            return f"{each.name} {old!r}, not {now!r}"
    return "something else"
