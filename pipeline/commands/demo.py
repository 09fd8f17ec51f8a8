"""`combo demo`: the whole road once, small enough for two CPU cores and a cup of tea."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import durable
from ..console import Output, duration
from ..errors import ComboError
from .options import Computers, Printing, Selection, StageName, command
from .preprocess import run_jobs
from .runs import run_trainer

if TYPE_CHECKING:
    from torch import Tensor

    from ..manifest import Manifest
    from ..train.evaluate import Evaluation, SoundCondition
    from ..train.loader import StoredBatch
    from ..train.report import Panel
    from ..train.run_folder import RunFolder

app = typer.Typer()

CLIPS = (100, 8, 24)
"""Clips in train, val and test."""

SUBSET = "ms3"
SHOWN = 4
"""Clips in the picture."""

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


@command(app)
def demo(
    printing: Printing,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """The whole road in a few minutes: sample, three stages, training, evaluation, a picture.

    Given again, it goes on where it stopped. Ends with a video of a test clip, painted.

    Example: combo demo --out demo
    """
    from ..devices import keep_freed_memory
    from ..jobs.run import Options
    from ..sample import write_sample
    from ..train.evaluate import as_json
    from ..train.report import contact_sheet
    from ..train.run_folder import RunFolder
    from ..train.start import resume, start

    output, folder = printing.output, out
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
    if not run_jobs(output, manifest, jobs, Options(), Computers(workers=2)):
        raise ComboError(f"a clip of the sample failed; remove {folder} and run the demo again")

    run = RunFolder(folder / "run")
    if run.last.exists():
        trainer = resume(run.root)
    else:
        trainer = start(manifest, f"combo-small-{SUBSET}", (), run.root)
    if trainer.iteration < trainer.settings.iterations:
        run_trainer(output, trainer)

    keep_freed_memory()
    panels: list[Panel] = []
    right = _evaluate(output, run, "right", panels)
    swapped = _evaluate(output, run, "swapped", [])
    contact_sheet(folder / "contact_sheet.png", panels)
    _overlay(manifest, run, folder / "overlay.mp4")
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
    output.result(f"{folder / 'contact_sheet.png'}: frames, Maskiges, truth and prediction")
    output.result(f"{folder / 'overlay.mp4'}: a test clip with its masks and its sound")
    output.result(f"{folder / 'demo.json'}: these numbers")
    output.note(f"took {duration(time.monotonic() - started)}")


def _overlay(manifest: "Manifest", run: "RunFolder", path: Path) -> None:
    """The first test clip, from its files, as `combo predict` would show it."""
    from ..jobs.plan import planned
    from ..predict.folder import predicted_overlay
    from ..predict.inputs import Film
    from ..predict.predictor import Predictor

    clip = planned(manifest, SUBSET, "test").clips[0]
    predicted_overlay(path, Film(clip.name, clip, fps=1.0), Predictor(run.root))


def _evaluate(
    output: Output, run: "RunFolder", sound: "SoundCondition", panels: "list[Panel]"
) -> "Evaluation":
    """Scores on the test split; the first clips are added to `panels`."""
    from ..devices import choose_device
    from ..train.evaluate import measure, open_run, open_split
    from ..train.report import panel

    reader = open_split(run, "test")
    device = choose_device("auto")

    with output.bar(f"test, {sound} sound", len(reader.labelled)) as bar:

        def on_clip(clip: "StoredBatch", scores: "Tensor") -> None:
            bar.advance()
            if len(panels) < SHOWN:
                panels.append(panel(clip.clips[0], clip, scores))

        return measure(open_run(run, device), reader, device, sound=sound, on_clip=on_clip)
