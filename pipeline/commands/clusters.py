"""`combo submit` and `combo finalise`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..console import Output
from ..errors import ComboError
from ..jobs import records
from ..jobs import scheduler as schedulers
from ..jobs.estimate import check, estimate
from ..jobs.job_array import JobArray
from ..jobs.plan import jobs
from ..jobs.run import Options, close, settle_plan, storing, units_to_do
from ..manifest import Manifest, load_manifest
from ..store import new_jobs_folder
from .stages import needs, stages_of


def submit(
    output: Output,
    manifest_file: Path | None,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    *,
    encoder: str | None,
    generator: str | None,
    tasks: int,
    at_once: int | None,
    workers: int | None,
    arguments: Sequence[str],
    scheduler: str | None,
    retry_failed: bool,
    force: bool,
    print_only: bool,
) -> None:
    """`combo submit`: everything is planned here, once, so that tasks write their units alone."""
    manifest = load_manifest(manifest_file).with_stages(encoder, generator)
    cluster = manifest.cluster.with_arguments(arguments)
    batch = schedulers.named(scheduler)
    if not print_only:
        batch.check_ready(cluster)
    options = Options(retry_failed=retry_failed, force=force)
    most = planned = 0
    for job in jobs(manifest, stages_of(stage), manifest.choose(data), splits):
        if not print_only:
            settle_plan(job.split, job.plan, options)
            with storing(job.split):
                job.split.create(job.variant, job.plan)
        units = units_to_do(job, options)
        there = records.listing(job.split, job.variant)
        todo, new = len(units), sum(unit not in there for unit in units)
        needed = estimate(job, todo, tasks * (workers or 1), new)
        if todo and not force:
            check(job, needed, planned)
        planned += needed.bytes if needed.measured else 0
        if retry_failed and not print_only:
            # Here and once: tasks that are queued again must not begin with them each time.
            with storing(job.split):
                for unit in set(units) & set(there):
                    records.withdraw(job.split, job.variant, unit)
        output.note(f"{job.split} {job.variant.stage}: {todo} units to do, {needs(needed)}")
        most = max(most, todo and job.plan.units)
    if not most:
        if output.as_json:
            nothing = {"array": None, "arrays": [], "finalise": None, "tasks": 0, "folder": None}
            output.json(nothing)
        else:
            output.result("nothing to do: every unit is done; see combo status")
        return
    if tasks > most:
        output.note(f"{most} tasks instead of {tasks}: there are no more units")
    which = [stage, *_which(manifest, data, splits, encoder, generator)]
    extra = [
        *(["--workers", str(workers)] if workers else []),
        *(["--force"] if force else []),
        "--quiet",
    ]
    array = JobArray(
        name=f"combo-{stage}",
        folder=_folder(manifest, stage, print_only),
        parts=min(tasks, most),
        tasks=min(tasks, most),
        at_once=at_once,
        arguments=[*which, *extra],
        finalise=which,
        cluster=cluster,
        environment=manifest.environment(),
    )
    if print_only:
        scripts = [batch.script(each) for each in array.divided(batch.largest_array())]
        output.result("\n".join([*scripts, batch.closing_script(array)]))
        return
    numbers, closing = schedulers.submit(batch, array)
    if output.as_json:
        output.json(
            {
                "array": numbers[0],
                "arrays": numbers,
                "finalise": closing,
                "tasks": array.tasks,
                "folder": str(array.folder),
            }
        )
        return
    arrays = f"array{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
    output.result(f"job {arrays} of {array.tasks} tasks, then job {closing} to finalise")
    output.result(f"scripts and logs: {array.folder}")
    output.note(batch.advice(numbers))


def finalise(
    output: Output,
    manifest_file: Path | None,
    stage: str,
    data: Sequence[str],
    splits: Sequence[str],
    encoder: str | None,
    generator: str | None,
) -> None:
    """`combo finalise`; exits with 1 when units are missing."""
    manifest = load_manifest(manifest_file).with_stages(encoder, generator)
    asked = jobs(manifest, stages_of(stage), manifest.choose(data), splits)
    summaries = [close(job) for job in asked]
    if output.as_json:
        output.json(
            [
                {
                    "data_set": s.split.data_set,
                    "split": s.split.split,
                    "stage": s.variant.stage,
                    "variant": s.variant.name,
                    "units": s.units,
                    "units_missing": s.todo,
                    "failed": s.failed,
                    "finished": s.finished is not None,
                }
                for s in summaries
            ]
        )
    else:
        for s in summaries:
            failed = f", {len(s.failed)} clips failed" if s.failed else ""
            state = (
                f"finished{failed}"
                if s.finished
                else f"{s.todo} of {s.units} units are missing; submit again, or run: combo "
                f"preprocess {s.variant.stage} --data {s.split.data_set} --split {s.split.split}"
            )
            output.result(f"{s.split} {s.variant.key}: {state}")
    if not all(s.finished for s in summaries):
        sys.exit(1)


def _which(
    manifest: Manifest,
    data: Sequence[str],
    splits: Sequence[str],
    encoder: str | None,
    generator: str | None,
) -> list[str]:
    """The options that tell a task what this command was told."""
    named = {"--encoder": encoder, "--generator": generator}
    return [
        "--manifest",
        str(manifest.file.absolute()),
        *(word for name in manifest.choose(data) for word in ("--data", name)),
        *(word for name in splits for word in ("--split", name)),
        *(word for key, value in named.items() if value for word in (key, value)),
    ]


def _folder(manifest: Manifest, stage: str, print_only: bool) -> Path:
    store = manifest.store_path.absolute()
    if print_only:
        return store / "jobs" / f"{stage}-NUMBER"
    try:
        return new_jobs_folder(store, stage)
    except OSError as error:
        raise ComboError(f"cannot write {store}: {error.strerror}; give another store") from None
