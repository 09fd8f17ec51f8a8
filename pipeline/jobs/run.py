"""plan -> run -> finalise, for any stage."""

import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import WrongUsage
from ..store import Finished, Plan, SplitStore, StoreDamaged, Variant
from . import kept, moved, records
from .claims import Claims
from .estimate import Estimate, check, estimate
from .inputs import notice
from .local import LocalRunner, Lost
from .parts import telling
from .records import UnitRecord
from .repair import rebuild_plan
from .stopping import Stop, Stopped
from .unit import Busy, Done, Job, Patience, storing


@dataclass(frozen=True)
class Options:
    """What a run is to do."""

    part: tuple[int, int] = (1, 1)
    """(I, N): the I-th of N parts of the units, counted from 1."""
    overwrite: bool = False
    retry_failed: bool = False
    force: bool = False
    """Go on although the disk looks too small."""
    discard: bool = False
    """Throw away what is done of clips that the data set does not have any more."""


class Runner(Protocol):
    """Something that computes units: processes of this machine, a cluster's workers."""

    def processes(self, job: Job, units: int) -> int:
        """How many compute at once, for estimates."""
        ...

    def run(
        self, job: Job, units: Sequence[int], again: bool, stop: Stop
    ) -> Iterator[Done | Lost | Busy]:
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
    if left.isdecimal() and right.isdecimal() and 1 <= int(left) <= int(right):
        return int(left), int(right)
    raise WrongUsage(f"--part {text}: write I/N with 1 <= I <= N, such as --part 3/8")


def settle_plan(job: Job, options: Options, told: Callable[[str], None] = lambda _: None) -> None:
    """Write a job's plan, or bring the split over to it: see `moved`.

    told: gets lines for people, about what is taken over, waited for, or looks otherwise.
    Raises ComboError when work would be lost and `options.discard` is not given, and when the files
    of clips have changed since they were worked on.
    """
    split, plan = job.split, job.plan
    if moved.begun(split) or _plan_there(split) != plan:
        with storing(split), _alone(split, told):
            moved.go_on(split)
            there = _plan_there(split)
            if there == plan:
                moved.give_up(split)
            elif there is not None or not rebuild_plan(split, plan):
                moved.move(split, there, plan, job.data, options.discard, told)
    if options.part == (1, 1):  # a thousand tasks need not look at all files
        told_of = notice(split, plan, job.variant, job.data)
        if told_of:
            told(told_of)


def _plan_there(split: SplitStore) -> Plan | None:
    """The plan of a split, or None where there is none, or a damaged one."""
    try:
        return split.read_plan()
    except StoreDamaged:
        return None


@contextmanager
def _alone(split: SplitStore, told: Callable[[str], None]) -> Generator[None]:
    """One process at a time replaces a split's plan."""
    claims, patience = Claims(split.root), Patience()
    try:
        while not claims.take(0):
            if patience.after(busy := Busy(0, claims.holder(0)), 1):
                told(f"{split}: waiting for its plan, which {busy.holder} is making")
        yield
        claims.release(0)
    finally:
        claims.close()


def units_of_part(plan: Plan, part: tuple[int, int]) -> list[int]:
    """Every N-th unit, so that parts are equally long wherever the slow clips lie."""
    return list(range(part[0] - 1, plan.units, part[1]))


def units_to_do(job: Job, options: Options) -> list[int]:
    """The units of this part that a run would compute. Opens the records of this part alone."""
    mine = units_of_part(job.plan, options.part)
    there = () if options.overwrite else mine
    done = records.done_units(job.split, job.variant, job.plan, there)
    return _not_in(mine, {record.unit: bool(record.failed) for record in done}, options)


def units_foreseen(job: Job, options: Options) -> list[int]:
    """As `units_to_do`, for a job whose plan is not settled: what its clips keep is not to do.

    Raises ComboError as `settle_plan`, where the list of clips has changed.
    """
    old = _plan_there(job.split)
    if old is None or old == job.plan:
        return units_to_do(job, options)
    done = moved.foreseen(job.split, old, job.plan, job.data, job.variant.key, options.discard)
    mine = units_of_part(job.plan, options.part)
    return _not_in(mine, {} if options.overwrite else done, options)


def _not_in(units: list[int], done: Mapping[int, bool], options: Options) -> list[int]:
    """Those that are to be done. done: unit -> whether with failed clips."""
    return [unit for unit in units if unit not in done or (options.retry_failed and done[unit])]


def run_job(
    job: Job,
    options: Options,
    runner: Runner | None = None,
    stop: Stop | None = None,
    *,
    units: Sequence[int] | None = None,
    on_estimate: Callable[[Estimate], None] = lambda _: None,
    on_unit: Callable[[UnitRecord], None] = lambda _: None,
    on_wait: Callable[[Busy], None] = lambda _: None,
) -> Summary:
    """Compute what is not done of this part of a planned job, and finalise when all of it is.

    units: these, instead of what is found not done.  runner: this process, when none is given.
    on_estimate gets what is needed (again after the first unit, when none had been measured),
    on_unit each record as it is committed, on_wait who is waited for, when that takes long.
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
        if options.overwrite:
            with storing(split):
                for unit in set(kept.units(split, variant)) & set(todo):
                    kept.forget(split, variant, unit)
        for result in runner.run(job, _turned(todo, options.part), again, stop):
            if isinstance(result, Busy):
                on_wait(result)
                continue
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
