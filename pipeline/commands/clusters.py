"""`combo submit` and `combo finalise`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ComboError, WrongUsage, counted
from . import completion
from .options import (
    BeginRun,
    Computers,
    Discard,
    Force,
    Overwrite,
    Printing,
    RetryFailed,
    SchedulerArg,
    Selection,
    StageName,
    command,
    one_variant_each,
    words,
)
from .preprocess import as_json, needs

if TYPE_CHECKING:
    from ..console import Output
    from ..jobs.run import Options
    from ..manifest import Manifest

app = typer.Typer()
submitting = typer.Typer(
    help="Preprocess or train on a cluster; submit again to go on.", no_args_is_help=True
)
app.add_typer(submitting, name="submit")

Stage = Annotated[StageName, typer.Argument(help="Which stage, or all.")]


@dataclass(frozen=True)
class Handing:
    """How a job is handed in."""

    scheduler: Annotated[str | None, typer.Option(help="The cluster's; default: slurm.")] = None
    slurm: Annotated[bool, typer.Option("--slurm", hidden=True)] = False
    """Until 0.1 it had to be given."""
    scheduler_arg: SchedulerArg = None
    print_only: Annotated[
        bool, typer.Option("--print", help="Print the job scripts; submit and write nothing.")
    ] = False


@dataclass(frozen=True)
class Again:
    """What an array does with what is there."""

    overwrite: Overwrite = False
    retry_failed: RetryFailed = False
    force: Force = False
    discard: Discard = False


def _of_stage(stage: StageName) -> None:
    """Makes the command that submits a stage."""

    def submit_stage(
        tasks: Annotated[int, typer.Option(min=1, help="Tasks of the job array.")],
        selection: Selection,
        computers: Computers,
        handing: Handing,
        again: Again,
        printing: Printing,
        at_once: Annotated[
            int | None, typer.Option(min=1, help="Most tasks that run at the same time.")
        ] = None,
    ) -> None:
        _submit(stage, tasks, at_once, selection, computers, handing, again, printing.output)

    what = "All stages" if stage == StageName.all else f"The {stage.value} stage"
    submit_stage.__doc__ = f"""{what} as a job array on a cluster; submit again to go on.

    The scripts and logs are in the store's folder `jobs`. A dependent job closes the split.

    Example: combo submit {stage.value} --tasks 64 --scheduler-arg=--gres=gpu:1
    """
    command(submitting, stage.value)(submit_stage)


for _stage in StageName:
    _of_stage(_stage)


def _submit(
    stage: StageName,
    tasks: int,
    at_once: int | None,
    selection: Selection,
    computers: Computers,
    handing: Handing,
    again: Again,
    output: "Output",
) -> None:
    from ..jobs import scheduler as schedulers
    from ..jobs.job_array import JobArray
    from ..jobs.run import Options

    batch, print_only, force = schedulers.named(handing.scheduler), handing.print_only, again.force
    manifest = selection.open()
    cluster = manifest.cluster.with_arguments(handing.scheduler_arg or ())
    if not print_only:
        batch.check_ready(cluster)
    options = Options((1, 1), again.overwrite, again.retry_failed, force, again.discard)
    at_work = tasks * (computers.workers or 1)
    most = _plan(output, manifest, selection, stage, options, at_work, print_only)
    if not most:
        nothing = {"array": None, "arrays": [], "finalise": None, "tasks": 0, "folder": None}
        output.answer(nothing, "nothing to do: every unit is done; see combo status")
        return
    if tasks > most:
        output.note(f"{counted(most, 'task')} instead of {tasks}: there are no more units")
    which = [stage.value, *words(_resolved(selection, manifest))]
    extra = [*words(computers), *(["--force"] if force else []), "--quiet"]
    array = JobArray(
        name=f"combo-{stage}",
        folder=jobs_folder(manifest, stage, print_only),
        parts=min(tasks, most),
        tasks=min(tasks, most),
        at_once=at_once,
        arguments=[*which, *extra],
        finalise=which,
        cluster=cluster,
        environment=manifest.environment(),
    )
    if print_only:
        try:
            largest = batch.largest_array()
        except ComboError as error:  # a script may be looked at where the scheduler is out of reach
            output.warn(f"how long an array may be is not known here: {error}")
            largest = None
        scripts = [batch.script(each) for each in array.divided(largest)]
        output.result("\n".join([*scripts, batch.closing_script(array)]))
        return
    numbers, closing = schedulers.submit(batch, array)
    if output.as_json:
        told = {"array": numbers[0], "arrays": numbers, "finalise": closing, "tasks": array.tasks}
        output.json({**told, "folder": str(array.folder)})
        return
    arrays = f"array{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
    output.result(f"job {arrays} of {counted(array.tasks, 'task')}, then job {closing} to finalise")
    output.result(f"scripts and logs: {array.folder}")
    output.note(batch.advice(numbers))


@command(submitting)
def train(
    preset: Annotated[
        str,
        typer.Option(
            help="combo-{r50,pvt,small}-{s4,ms3,avss}.", autocompletion=completion.presets
        ),
    ],
    handing: Handing,
    begin: BeginRun,
    printing: Printing,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs on each node, and as many processes.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each node; default: one a GPU.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/PRESET, numbered when taken.")
    ] = None,
) -> None:
    """A training run as a job on a cluster, on one node or several; submit again to go on.

    Script and log are in the run's folder `jobs`. Told to stop, or near its time limit, the job
    saves and queues itself again.

    Example: combo submit train --preset combo-r50-s4 --slurm --gpus 4 --nodes 2
    """
    from .. import durable
    from ..jobs import scheduler as schedulers
    from ..jobs.training import TrainingJob
    from ..train.presets import ON_RESUME, amend, resolve
    from ..train.run_folder import RunFolder
    from ..train.start import OF_THE_DATA, demand_same_data, free_folder

    batch, manifest, output = schedulers.named(handing.scheduler), begin.open(), printing.output
    cluster = manifest.cluster.with_arguments(handing.scheduler_arg or ())
    run = (out or free_folder(Path("runs") / preset)).absolute()
    folder, changes, going_on = RunFolder(run), begin.changes, list[str]()
    if goes_on := folder.last.exists():  # as the script asks
        settings = folder.settings()
        own = [each for each in changes if each.partition("=")[0] not in OF_THE_DATA]
        settings = amend(settings, own)
        if preset != settings.train.preset:
            raise WrongUsage(
                f"--preset {preset}: {run} is a run of {settings.train.preset}; give that one, "
                f"or another folder with --out"
            )
        if begin.encoder or begin.generator or begin.variant or begin.manifest:
            demand_same_data(folder, manifest, one_variant_each(begin.variant))
        going_on = [each for each in changes if each.partition("=")[0] in ON_RESUME]
    else:
        folder.demand_free()
        settings = resolve(preset, changes)
    settings.train.demand_shared_by(nodes * (processes or gpus or 1))
    if not handing.print_only:
        batch.check_ready(cluster, arrays=False)
    store = begin.store and begin.store.absolute()
    where = replace(begin, manifest=manifest.file.absolute(), store=store)
    job = TrainingJob(
        run=run,
        folder=run / "jobs",
        nodes=nodes,
        processes=processes or gpus or 1,
        gpus=gpus,
        arguments=["--preset", preset, *words(where)],
        going_on=words(BeginRun(settings=going_on or None, store=store)),
        cluster=cluster,
        environment=manifest.environment(),
    )
    script = batch.training_script(job)
    if handing.print_only:
        output.result(script)
        return
    path = job.folder / "train.sh"
    with durable.writing(run, "submit again", "give another folder with --out"):
        durable.write_bytes(path, script.encode())
    number = batch.submit(path)
    told = {"job": number, "run": str(run), "folder": str(job.folder)}
    does = "goes on with" if goes_on else "trains"
    output.answer(told, f"job {number} {does} {run}; script and log: {job.folder}")
    output.note(batch.advice([number]))


@command(app)
def finalise(stage: Stage, selection: Selection, printing: Printing) -> None:
    """Close splits whose units are all done, or say what is missing.

    The last part of a job array does this itself; here it can be asked for.

    Example: combo finalise maskige --data avss
    """
    from ..jobs.run import close

    output = printing.output
    summaries = [close(job) for job in selection.jobs(selection.open(), stage)]
    if output.as_json:
        output.json([{**as_json(s), "units_missing": s.todo} for s in summaries])
    else:
        for s in summaries:
            failed = f", {counted(len(s.failed), 'clip')} failed" if s.failed else ""
            state = (
                f"finished{failed}"
                if s.finished
                else f"{s.todo} of {counted(s.units, 'unit')} missing; submit again, or run: combo "
                f"preprocess {s.variant.stage} --data {s.split.data_set} --split {s.split.split}"
            )
            output.result(f"{s.split} {s.variant.key}: {state}")
    if not all(s.finished for s in summaries):
        sys.exit(1)


def _plan(
    output: "Output",
    manifest: "Manifest",
    selection: Selection,
    stage: StageName,
    options: "Options",
    at_work: int,
    print_only: bool,
) -> int:
    """Plan everything here, once, so that tasks write their units alone; the most units of a job.

    at_work: processes that compute at once.  Raises ComboError: a disk that is too small.
    """
    from ..jobs import kept, records
    from ..jobs.estimate import check, estimate
    from ..jobs.run import settle_plan, units_foreseen, units_to_do
    from ..jobs.unit import storing

    most = planned = 0
    for job in selection.jobs(manifest, stage):
        if not print_only:
            settle_plan(job, options, output.warn)
            with storing(job.split):
                job.split.create(job.variant, job.plan)
        units = (units_foreseen if print_only else units_to_do)(job, options)
        there = records.listing(job.split, job.variant)
        todo, new = len(units), sum(unit not in there for unit in units)
        needed = estimate(job, todo, at_work, new)
        if todo and not options.force:
            check(job, needed, planned)
        planned += needed.bytes if needed.measured else 0
        if (options.retry_failed or options.overwrite) and not print_only:
            # Here and once: tasks that are queued again must not begin with them each time.
            with storing(job.split):
                begun = set(kept.units(job.split, job.variant)) if options.overwrite else set()
                for unit in set(units) & (set(there) | begun):
                    records.withdraw(job.split, job.variant, unit)
        output.note(
            f"{job.split} {job.variant.stage}: {counted(todo, 'unit')} to do, {needs(needed)}"
        )
        most = max(most, todo and job.plan.units)
    return most


def _resolved(selection: Selection, manifest: "Manifest") -> Selection:
    """The selection as a task must be told it, wherever it runs."""
    data = manifest.choose(selection.data or ())
    return replace(selection, manifest=manifest.file.absolute(), data=data)


def jobs_folder(manifest: "Manifest", stage: str, print_only: bool = False) -> Path:
    """A new folder for scripts and logs. Raises ComboError where the store cannot be written."""
    from ..store import new_jobs_folder

    store = manifest.store_path.absolute()
    if print_only:
        return store / "jobs" / f"{stage}-NUMBER"
    try:
        return new_jobs_folder(store, stage)
    except OSError as error:
        raise ComboError(f"cannot write {store}: {error.strerror}; give another store") from None
