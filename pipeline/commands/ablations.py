"""`combo ablate`: a table of runs, trained where they are missing, and measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import Bar, Output
from ..errors import counted
from .clusters import jobs_folder
from .options import (
    Begin,
    Device,
    Part,
    Printing,
    Requeue,
    SchedulerArg,
    command,
    one_variant_each,
    words,
)
from .runs import run_trainer

if TYPE_CHECKING:
    from ..ablation.runs import Run
    from ..ablation.table import Table
    from ..ruler.comparison import Row

app = typer.Typer()

Cells = Mapping[tuple[str, str], Sequence["Run"]]
"""The runs of a row and a preset."""

Results = Mapping[tuple[str, str], "Row"]


@command(app, goes_on=True)
def ablate(
    name: Annotated[
        str, typer.Argument(metavar="TABLE", help="table3 ... table7 of the paper, or a YAML file.")
    ],
    begin: Begin,
    printing: Printing,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell, of seeds 0, 1, ...")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/ablations"),
    split: Annotated[str, typer.Option("--split", "-s", help="Split to evaluate.")] = "test",
    device: Device = "auto",
    part: Part = "1/1",
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Train as a job array, a task for each run.")
    ] = False,
    scheduler_arg: SchedulerArg = None,
    requeue: Requeue = False,
) -> None:
    """An ablation table: trains what is missing, evaluates, prints what was published beside.

    Stopped at any moment, the same command goes on. --set holds for every run.

    Example: combo ablate table3 --seeds 3 --set precision=bf16
    """
    from ..ablation.runs import Begin as Beginning
    from ..ablation.runs import distinct, runs_of
    from ..ablation.table import read_table
    from ..jobs.run import parse_part

    if not slurm and scheduler_arg:
        raise typer.BadParameter("--scheduler-arg goes with --slurm")
    if slurm and (part != "1/1" or requeue):
        raise typer.BadParameter("--slurm makes the parts, and queues them again, by itself")
    output, table, share = printing.output, read_table(name), parse_part(part)
    cells = runs_of(table, seeds, begin.settings or (), out)
    runs = distinct(cells)
    missing = [run for run in runs if not run.done]
    with_these = Beginning(begin.open, one_variant_each(begin.variant), begin.store)
    manifest = begin.open()
    for run in runs:
        run.demand_same_data(manifest, with_these)
    if slurm and missing:
        told = replace(begin, manifest=manifest.file.absolute())
        which = str(Path(name).absolute()) if Path(name).is_file() else name
        where = ["--out", str(out.absolute()), "--split", split, "--device", device]
        task = [which, *words(told), "--seeds", str(seeds), *where]
        _submit(output, begin, task, len(runs), scheduler_arg)
        return
    first, parts = share
    mine = [run for run in runs[first - 1 :: parts] if run in missing]
    iterations = sum(run.settings.train.iterations for run in mine)
    with output.bar(name, iterations) as bar:
        for run in mine:
            run_trainer(output, run.trainer(with_these), requeue, of_all=bar)
        results = _measured(bar, cells, begin, split, device) if parts == 1 else {}
        bar.advance(0, note="", title=name)
    if parts > 1:
        done = sum(run.done for run in runs)
        output.answer({"runs": len(runs), "done": done}, f"{done} of {len(runs)} runs are trained")
        return
    _show(output, table, name, cells, results)


def _submit(
    output: Output, begin: Begin, task: Sequence[str], tasks: int, arguments: list[str] | None
) -> None:
    from ..jobs import scheduler as schedulers
    from ..jobs.job_array import JobArray

    manifest, batch = begin.open(), schedulers.named(None)
    cluster = manifest.cluster.with_arguments(arguments or ())
    batch.check_ready(cluster)
    array = JobArray(
        name="combo-ablate",
        folder=jobs_folder(manifest, "ablate"),
        parts=tasks,
        tasks=tasks,
        at_once=None,
        arguments=[*task, "--quiet"],
        finalise=task,
        cluster=cluster,
        environment=manifest.environment(),
        commands=("ablate", "ablate"),
    )
    numbers, closing = schedulers.submit(batch, array)
    several = f"array {', '.join(numbers)} of {counted(tasks, 'run')}"
    words = f"{several}, then job {closing}, which prints the table"
    told = {"arrays": numbers, "table": closing, "tasks": tasks, "folder": str(array.folder)}
    output.answer(told, f"{words}; scripts and logs: {array.folder}")


def _measured(bar: Bar, cells: Cells, begin: Begin, split: str, device: str) -> Results:
    """What each cell's best networks score on a split, with the right sound."""
    from ..ablation.runs import distinct
    from ..devices import choose_device, keep_freed_memory
    from ..ruler.candidates import Where, candidate
    from ..ruler.comparison import Row
    from ..train.evaluate import measure

    keep_freed_memory()
    on, where = choose_device(device), Where(split, store=begin.store)
    every = {run.folder: candidate(run.folder, where) for run in distinct(cells)}
    bar.add(sum(len(one.reader.labelled) for one in every.values()))
    scores: dict[Path, Any] = {}
    for folder, one in every.items():
        bar.advance(0, note="", title=f"{one.name}, {split}")
        found = measure(one.network(on), one.reader, on, on_clip=lambda *_: bar.advance())
        scores[folder] = (one, found)
    return {
        cell: Row("right", [scores[run.folder] for run in runs]) for cell, runs in cells.items()
    }


def _show(output: Output, table: "Table", name: str, cells: Cells, results: Results) -> None:
    """As the paper prints it, in percent, what was published beside it."""
    counted = any(row.parameters for row in table.rows.values())
    header = [table.first]
    for preset in table.presets:
        data = preset.rsplit("-", 1)[-1].upper()
        header += [f"{data} M_J", f"{data} M_F", "published"]
    header += ["#Params (M)", "published, with the sound encoder"] if counted else []
    lines: list[list[str]] = []
    told: list[dict[str, Any]] = []
    for row_name, row in table.rows.items():
        line, of_presets = [row_name], dict[str, Any]()
        for preset in table.presets:
            scored = results[row_name, preset]
            line += [each.percent(1) if each else "" for each in scored.protocol("avsbench")]
            line.append(" / ".join(f"{each:.1f}" for each in row.published.get(preset, ())))
            of_presets[preset] = {**scored.as_json(), "published": row.published.get(preset)}
        parameters = cells[row_name, table.presets[0]][0].parameters
        if counted:
            line += [f"{parameters / 1e6:.1f}", str(row.parameters or "")]
        lines.append(line)
        told.append(
            {"row": row_name, "set": row.set, "parameters": parameters, "results": of_presets}
        )
    if output.as_json:
        output.json({"table": name, "title": table.title, "rows": told})
        return
    output.table(header, lines, title=table.title)
