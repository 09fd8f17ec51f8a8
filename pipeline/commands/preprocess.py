"""`combo preprocess`, and how jobs are run and told of."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Output, duration
from .options import (
    Computers,
    DaskComputers,
    Printing,
    Requeue,
    Selection,
    StageName,
    Work,
    command,
)

if TYPE_CHECKING:
    from ..jobs.estimate import Estimate
    from ..jobs.run import Options, Runner, Summary
    from ..jobs.stopping import Stop
    from ..jobs.unit import Job
    from ..manifest import Manifest

app = typer.Typer()

SHOWN = 20
"""Failed clips named in a summary before "and N more"."""


@command(app)
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
            if work.overwrite:
                output.warn("combo: to go on, leave out --overwrite, which begins from the start")
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

    if dry_run:
        for job in found:
            _foretell(output, job, options, computers)
        return True
    summaries: list[Summary] = []
    named: set[str] = set()
    started = time.monotonic()
    with computers.runner(output, manifest) as runner:
        for job in found:
            settle_plan(job, options, output.warn)
            if str(job.split) not in named and (unread := job.clips.named_unread()):
                output.warn(f"{job.split}: not read: {unread}")
            named.add(str(job.split))
            summaries.append(_run(output, job, options, runner, stop))
    _report(output, summaries, time.monotonic() - started)
    return not any(s.failed or s.lost for s in summaries)


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


def _foretell(output: Output, job: "Job", options: "Options", computers: Computers) -> None:
    from ..jobs.estimate import estimate
    from ..jobs.run import units_foreseen

    todo = len(units_foreseen(job, options))
    output.result(
        f"{job.split} {job.variant.stage}: {todo} units of {job.plan.clips_per_unit} clips to do "
        f"({len(job.plan.clips)} clips, {job.variant.key}); "
        f"{needs(estimate(job, todo, computers.processes(job, todo)))}"
    )


def _run(
    output: Output, job: "Job", options: "Options", runner: "Runner", stop: "Stop | None"
) -> "Summary":
    from ..jobs.run import run_job, units_to_do

    title = f"{job.split} {job.variant.stage}"
    todo = units_to_do(job, options)
    with output.bar(title, sum(len(job.plan.members(unit)) for unit in todo)) as bar:
        return run_job(
            job,
            options,
            runner,
            stop,
            units=todo,
            on_estimate=lambda e: output.note(f"{title}: {e.units} units to do, {needs(e)}"),
            on_unit=lambda record: bar.advance(
                len(record.clips), f"{len(record.failed)} failed" if record.failed else ""
            ),
            on_wait=lambda busy: output.warn(
                f"{title}: waiting for unit {busy.unit}, which {busy.holder or 'another process'} "
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
        failed = f", {len(s.failed)} clips failed" if s.failed else ""
        state = "finished" if s.finished else "not finished: other parts are still to do"
        if s.lost:
            state = f"NOT finished: units {s.lost} killed their process every time they were tried"
        if annotated := _annotated(s):
            state += "; {:,} of {:,} frames annotated".format(*annotated)
        output.result(
            f"{s.split} {s.variant.key}: {s.computed} of {s.units} units computed{failed}; {state}"
        )
        names = list(s.failed.items())
        for name, reason in names[:SHOWN]:
            output.warn(f"  failed: {name}: {reason}")
        if len(names) > SHOWN:
            output.warn(f"  and {len(names) - SHOWN} more; see combo status --json")
    if any(s.failed for s in summaries):
        output.warn("mend these files, then run the same command with --retry-failed")
    output.note(f"took {duration(seconds)}")


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
