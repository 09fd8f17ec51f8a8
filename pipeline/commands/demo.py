"""`combo demo`: the whole road once, small enough for two CPU cores and a cup of tea."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .. import durable
from ..console import Output, duration
from ..errors import ComboError
from .options import Computers, Printing, Selection, StageName, command
from .preprocess import run_jobs
from .runs import run_trainer

app = typer.Typer()

CLIPS = (100, 8, 24)
"""Clips in train, val and test."""

CHANGES: tuple[str, ...] = ()
"""Of the preset's settings."""

SUBSET = "ms3"
SHOWN = 2
"""Of the best clips, and of the worst, in the picture."""

MANIFEST = """\
# Written by `combo demo`. Try: combo train --preset combo-small-ms3 --manifest THIS_FILE
store: store
data_sets:
  ms3: {layout: avsbench-ms3, root: sample/AVSBench_object/Multi-sources}
stages:
  frames: {size: 96}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""


@command(app, goes_on=True)
def demo(
    printing: Printing,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """The whole road in a few minutes: sample, three stages, training, evaluation, a report.

    Given again, it goes on where it stopped.

    Example: combo demo --out demo
    """
    from ..devices import choose_device, keep_freed_memory
    from ..jobs.plan import planned
    from ..jobs.run import Options
    from ..predict.folder import predicted_overlay
    from ..predict.inputs import Film
    from ..predict.predictor import Predictor
    from ..report.of_run import look_at_run, run_work
    from ..report.of_store import look_at_store
    from ..report.page import write_report
    from ..report.sheet import write_sheet
    from ..sample import write_sample
    from ..train.evaluate import as_json
    from ..train.run_folder import RunFolder
    from ..train.start import resume, start

    output, folder = printing.output, out
    part = Output(output.quiet, output.as_json, part=True)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    manifest_file = folder / "data_manifest.yaml"
    if manifest_file.exists() and manifest_file.read_text() != MANIFEST:
        raise ComboError(f"{manifest_file} is not the demo's; give another folder with --out")
    durable.write_bytes(manifest_file, MANIFEST.encode())
    selection = Selection([SUBSET], manifest=manifest_file)
    manifest = selection.open()

    none = (0, 0, 0)
    with output.bar("sample data", sum(CLIPS)) as bar:
        write_sample(
            folder / "sample", none, CLIPS, none, progress=lambda _done, _total: bar.advance()
        )
    jobs = selection.jobs(manifest, StageName.all)
    if not run_jobs(part, manifest, jobs, Options(), Computers(workers=2)):
        raise ComboError(f"a clip of the sample failed; remove {folder} and run the demo again")

    run = RunFolder(folder / "run")
    if run.last.exists():
        trainer = resume(run.root)
    else:
        trainer = start(manifest, f"combo-small-{SUBSET}", CHANGES, run.root)
    if trainer.iteration < trainer.settings.iterations:
        run_trainer(part, trainer)

    keep_freed_memory()
    with output.bar("test, right and wrong sounds", run_work(run.root, "test")) as bar:
        looks = look_at_run(run.root, "test", choose_device("auto"), on_clip=bar.advance)
    right, swapped = looks.evaluations["right"], looks.evaluations["swapped"]
    write_sheet(folder / "contact_sheet.png", [*looks.best[:SHOWN], *looks.worst[:SHOWN]])
    clip = planned(manifest, SUBSET, "test").clips[0]
    film = Film(clip.name, clip, fps=1.0)
    predicted_overlay(folder / "overlay.mp4", film, Predictor(run.root))
    write_report(folder / "report.html", [looks], [look_at_store(manifest.store_path)])
    result = {
        "subset": {
            "name": SUBSET,
            "M_J": round(right.m_j, 4),
            "M_F": round(right.m_f, 4),
            "M_J_swapped_sound": round(swapped.m_j, 4),
            "M_F_swapped_sound": round(swapped.m_f, 4),
        },
        "right": as_json(right),
        "swapped": as_json(swapped),
        "seconds": round(time.monotonic() - started, 1),
    }
    durable.write_json(folder / "demo.json", result)
    if output.as_json:
        output.json(result)
        return
    output.table(
        ("sound", "M_J", "M_F"),
        (
            (name, f"{100 * each.m_j:.1f}", f"{100 * each.m_f:.1f}")
            for name, each in (("right", right), ("swapped between clips", swapped))
        ),
        title=f"{SUBSET} test split, {len(right.clips)} clips",
    )
    output.result(f"{folder / 'report.html'}: all of it on one page, to open in a browser")
    output.result(f"{folder / 'contact_sheet.png'}: frames, Maskiges, truth and prediction")
    output.result(f"{folder / 'overlay.mp4'}: a test clip with its masks and its sound")
    output.result(f"{folder / 'demo.json'}: these numbers")
    output.note(f"took {duration(time.monotonic() - started)}")
