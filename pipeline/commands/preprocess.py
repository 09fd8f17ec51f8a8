"""`combo preprocess`, and how jobs are run and told of."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Bar, Output, duration
from ..errors import counted
from .options import (
    Computers,
    DaskComputers,
    Printing,
    Requeue,
    Selection,
    StageName,
    Work,
    command,
    same_command,
)

if TYPE_CHECKING:
    from ..jobs.estimate import Estimate
    from ..jobs.outlook import Share
    from ..jobs.records import UnitRecord
    from ..jobs.run import Options, Runner, Summary
    from ..jobs.stopping import Stop
    from ..jobs.unit import Job
    from ..manifest import Manifest

app = typer.Typer()

SHOWN = 20
"""Failed clips named in a summary before "and N more"."""


@command(app, goes_on=True)
def preprocess(
    stage: Annotated[StageName, typer.Argument(help="Which stage, or all.")],
    selection: Selection,
    work: Work,
    computers: DaskComputers,
    printing: Printing,
    requeue: Requeue = False,
) -> None:
    """Make frames, sound embeddings and Maskiges and put them into the store.

    Killed at any moment, it goes on where it stopped when the same command is given again.

    Example: combo preprocess all --data s4 --workers 4
    """
    from ..jobs import scheduler
    from ..jobs.stopping import Stopped, listening

    manifest, output = selection.open(), printing.output
    jobs = selection.jobs(manifest, stage)
    if work.dry_run:
        _tell_missing_weights(output, selection, manifest, stage)
    with listening() as stop:
        try:
            good = run_jobs(output, manifest, jobs, work.options, computers, stop, work.dry_run)
        except Stopped:
            if requeue and (here := scheduler.here()):
                here.requeue(stop.warned, lambda said: output.warn(f"combo: {said}"))
            raise
    if not good:
        sys.exit(1)


def run_jobs(
    output: Output,
    manifest: "Manifest",
    found: "Iterable[Job]",
    options: "Options",
    computers: Computers,
    stop: "Stop | None" = None,
    dry_run: bool = False,
) -> bool:
    """Run jobs and print what came of it; False when a clip or a unit failed."""
    from ..jobs.run import settle_plan
    from ..jobs.stopping import Stopped

    jobs = list(found)
    if dry_run:
        _foretell(output, jobs, options, computers)
        return True
    summaries: list[Summary] = []
    started = time.monotonic()
    with computers.runner(output, manifest) as runner:
        for number, job in enumerate(jobs):
            settle_plan(job, options, output.warn)
            first = str(job.split) not in map(str, (other.split for other in jobs[:number]))
            if first and (unread := job.clips.named_unread()):
                output.warn(f"{job.split}: not read: {unread}")
        shares = [_share(job, options, runner) for job in jobs]
        total = sum(share.clips for share in shares)
        try:
            with output.bar("preprocessing", total, lambda: _left(shares)) as bar:
                summaries += (
                    _run(output, bar, share, shares, options, runner, stop) for share in shares
                )
                bar.advance(0, title="preprocessing")
        except (Stopped, KeyboardInterrupt):
            _tell_what_is_done(output, shares)
            raise
    _report(output, summaries, time.monotonic() - started)
    return not any(s.failed or s.lost for s in summaries)


def _share(job: "Job", options: "Options", runner: "Runner | Computers") -> "Share":
    from ..jobs.estimate import estimate
    from ..jobs.outlook import Share
    from ..jobs.run import units_to_do

    todo = units_to_do(job, options)
    needed = estimate(job, len(todo), runner.processes(job, len(todo)))
    return Share(job, todo, needed.seconds)


def _left(shares: "Sequence[Share]") -> str:
    """The time left, in words."""
    from ..jobs.outlook import seconds_left

    seconds, unknown = seconds_left(shares)
    if seconds is None:
        return "time left known after a unit"
    return f"{'over ' if unknown else ''}{duration(seconds)} left"


def _tell_what_is_done(output: Output, shares: "Sequence[Share]") -> None:
    """What a command that is stopped has come to."""
    for share in shares:
        if share.began is not None and share.units:
            failed = f", {counted(share.failed, 'clip')} failed" if share.failed else ""
            units = counted(len(share.units), "unit")
            output.warn(f"{share.name}: {share.done} of {units} done{failed}")
    waiting = [share.name for share in shares if share.began is None and share.units]
    if waiting:
        output.warn(f"not begun: {', '.join(waiting)}")


def _tell_missing_weights(
    output: Output, selection: Selection, manifest: "Manifest", stage: str
) -> None:
    """One line for all that these stages and the data sets' presets lack. Raises ComboError when a
    stage does; the presets' are a note."""
    from ..errors import ComboError
    from ..train.starting_points import backbone_weights
    from ..weights import all_missing, missing

    paths, data_sets = manifest.weight_paths(), manifest.choose(selection.data or ())
    of_stages = missing(selection.weights(manifest, stage), paths)
    presets = backbone_weights(data_sets)
    if not (of_presets := missing(presets, paths)) and not of_stages:
        return
    told = all_missing([*of_stages, *of_presets])
    if of_stages:
        raise ComboError(told)
    which = ", ".join(name for each in of_presets for name in presets[each.weights.name])
    output.note(f"to train {which}: {told}")


def needs(estimate: "Estimate") -> str:
    """An estimate in words."""
    from ..jobs.estimate import size_text

    free = f"{size_text(estimate.free)} free"
    if estimate.seconds is None:
        return f"at most {size_text(estimate.bytes)} ({free}); time not known before one is done"
    return f"about {duration(estimate.seconds)} and {size_text(estimate.bytes)} ({free})"


def _foretell(
    output: Output, jobs: "Sequence[Job]", options: "Options", computers: Computers
) -> None:
    """What would be done: of each job, and of all of them."""
    from ..jobs.estimate import Estimate, estimate
    from ..jobs.run import units_foreseen

    foretold: list[tuple[Job, Estimate]] = []
    for job in jobs:
        todo = len(units_foreseen(job, options))
        foretold.append((job, estimate(job, todo, computers.processes(job, todo))))
    needed = [each for _, each in foretold]
    known = [each.seconds for each in needed if each.seconds is not None]
    unknown = [f"{job.split} {job.variant.stage}" for job, each in foretold
               if each.seconds is None and each.units]  # fmt: skip
    size = sum(each.bytes for each in needed)
    whole = Estimate(
        sum(each.units for each in needed),
        size,
        min((each.free for each in needed), default=0),
        sum(known) if known or not unknown else None,
    )
    if output.as_json:
        told = [
            {
                "data_set": job.split.data_set,
                "split": job.split.split,
                "stage": job.variant.stage,
                "variant": job.variant.name,
                **asdict(each),
            }
            for job, each in foretold
        ]
        output.json({"jobs": told, "all": asdict(whole), "time_not_known_of": unknown})
        return
    for job, each in foretold:
        output.result(
            f"{job.split} {job.variant.stage}: {counted(each.units, 'unit')} of "
            f"{counted(job.plan.clips_per_unit, 'clip')} to do "
            f"({counted(len(job.plan.clips), 'clip')}, {job.variant.key}); {needs(each)}"
        )
    more = f"; and what is not known yet of {', '.join(unknown)}" if unknown and known else ""
    output.result(f"in all: {counted(whole.units, 'unit')} to do; {needs(whole)}{more}")


def _run(
    output: Output,
    bar: Bar,
    share: "Share",
    shares: "Sequence[Share]",
    options: "Options",
    runner: "Runner",
    stop: "Stop | None",
) -> "Summary":
    """Run one of the command's jobs; the bar counts the clips of all of them."""
    from ..jobs.run import run_job

    def done(record: "UnitRecord") -> None:
        share.unit(len(record.failed))
        failed = sum(each.failed for each in shares)
        bar.advance(len(record.clips), f"{failed} failed" if failed else "")

    share.begin()
    bar.advance(0, title=share.name)
    return run_job(
        share.job,
        options,
        runner,
        stop,
        units=share.units,
        on_estimate=lambda e: output.note(
            f"{share.name}: {counted(e.units, 'unit')} to do, {needs(e)}"
        ),
        on_unit=done,
        on_wait=lambda busy: output.warn(
            f"{share.name}: waiting for unit {busy.unit}, which {busy.holder or 'another process'} "
            "has; if that does not move, end it"
        ),
    )


def _report(output: Output, summaries: "Sequence[Summary]", seconds: float) -> None:
    if output.as_json:
        output.json(
            [
                {
                    **as_json(s),
                    "units_computed": s.computed,
                    "units_lost": s.lost,
                    "annotated": _annotated(s),
                }
                for s in summaries
            ]
        )
        return
    for s in summaries:
        failed = f", {counted(len(s.failed), 'clip')} failed" if s.failed else ""
        state = "finished" if s.finished else "not finished: other parts are still to do"
        if s.finished and len(s.failed) == s.finished.clips:
            state = "NOT usable: all its clips failed"
        if s.lost:
            state = f"NOT finished: units {s.lost} killed their process every time they were tried"
        if annotated := _annotated(s):
            state += "; {:,} of {:,} frames annotated".format(*annotated)
        units = f"{s.computed} of {counted(s.units, 'unit')}"
        output.result(f"{s.split} {s.variant.key}: {units} computed{failed}; {state}")
    _tell_failed(output, summaries)
    output.took(seconds)


def _tell_failed(output: Output, summaries: "Sequence[Summary]") -> None:
    """Each clip that failed, once, with all its reasons."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for s in summaries:
        for name, reason in s.failed.items():
            of_clip = reasons.setdefault((str(s.split), name), {})
            of_clip.setdefault(reason, []).append(s.variant.stage)
    for (split, name), of_clip in list(reasons.items())[:SHOWN]:
        said = "; ".join(f"{', '.join(stages)}: {why}" for why, stages in of_clip.items())
        output.warn(f"  failed: {split} {name}: {said}")
    if len(reasons) > SHOWN:
        output.warn(f"  and {len(reasons) - SHOWN} more; see combo status --json")
    if reasons:
        output.warn(f"mend these files, then run: {same_command('--retry-failed')}")


def _annotated(summary: "Summary") -> tuple[int, int] | None:
    """Frames with labels, and frames, of a split whose frames are all there."""
    from ..source import annotated_frames

    if summary.variant.stage != "frames" or summary.finished is None:
        return None
    return annotated_frames(summary.split, summary.variant)


def as_json(summary: "Summary") -> dict[str, object]:
    """What every command tells of a stage that it worked on."""
    return {
        "data_set": summary.split.data_set,
        "split": summary.split.split,
        "stage": summary.variant.stage,
        "variant": summary.variant.name,
        "units": summary.units,
        "failed": summary.failed,
        "finished": summary.finished is not None,
    }
