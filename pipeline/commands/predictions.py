"""`combo predict`: a trained network on one's own videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Output
from ..errors import ComboError
from .options import Device, Manifest, Printing, command

if TYPE_CHECKING:
    from ..predict.inputs import Film

app = typer.Typer()

OUT = Path("predictions")


@command(app, goes_on=True)
def predict(
    run: Annotated[
        Path,
        typer.Argument(help="Run folder, a checkpoint, or a published network by file or name."),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO|FOLDER...",
            help="Videos, folders of videos, patterns, or folders of frames with a sound file.",
        ),
    ],
    printing: Printing,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results; of several inputs one inside it for each."),
    ] = None,
    fps: Annotated[float, typer.Option(help="Predicted frames a second.")] = 1.0,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Data set whose stages a file outside of its run was trained with."
        ),
    ] = None,
    manifest: Manifest = None,
    device: Device = "auto",
    generator: Annotated[
        str | None,
        typer.Option(help="Maskige generator, for a run that was trained on imported Maskiges."),
    ] = None,
) -> None:
    """What sounds in a video: its pictures with masks, and the same in numbers.

    Example: combo predict runs/combo-r50-s4 holiday.mp4 --out holiday
    """
    from ..devices import keep_freed_memory, set_threads
    from ..layouts.folders import VIDEOS
    from ..predict.folder import PredictionFolder
    from ..predict.inputs import found, named, open_film
    from ..predict.predictor import Predictor

    if run.suffix.lower() in VIDEOS:
        raise typer.BadParameter(
            f"{run} is a video: first comes the network, then what it is to see"
        )
    output, failed = printing.output, list[str]()
    films: list[Film] = []
    paths = found(inputs)
    for path in paths:
        try:
            films.append(open_film(path, fps))
        except ComboError as error:
            _tell(output, failed, error, alone=len(paths) == 1)
    keep_freed_memory()
    set_threads()
    predictor = Predictor(run, device, generator, data, manifest)
    results: list[dict[str, object]] = []
    total = 3 * sum(len(film.clip.times) for film in films)
    with output.bar("predicting", total) as bar:
        for film in named(films):
            alone = len(paths) == 1
            root = (out or OUT / film.name) if alone else (out or OUT) / film.name

            def told(what: str, count: int, name: str = film.name) -> None:
                bar.advance(count, f"{name}: {what}")

            try:
                made = PredictionFolder(root, film, predictor).make(told)
            except ComboError as error:
                _tell(output, failed, error, alone)
                continue
            if made["without_sound"]:
                output.warn(
                    f"{film.name}: no sound around {made['without_sound']} of its "
                    f"{len(film.clip.times)} frames, of which nothing is predicted"
                )
            results.append({"out": str(root), **made})
    if output.as_json:
        output.json(results)
    else:
        for result in results:
            output.result(f"{result['out']}: overlay.mp4, contact_sheet.png, prediction.json")
    if failed:
        raise ComboError(f"{len(failed)} of {len(paths)} inputs failed")


def _tell(output: Output, failed: list[str], error: ComboError, alone: bool) -> None:
    """One bad input costs the others nothing. Raises the error where there is no other."""
    if alone:
        raise error
    failed.append(str(error))
    output.warn(f"combo: {error}")
