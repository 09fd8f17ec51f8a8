"""`combo score`: the ruler for masks that any program saved."""

from pathlib import Path
from typing import Annotated

import typer

from .. import durable, protocols
from ..errors import counted
from .options import Manifest, Printing, command

app = typer.Typer()


@command(app)
def score(
    masks: Annotated[
        Path, typer.Argument(help="Folder with masks: CLIP/FRAME.png at any depth, or CLIP.npy.")
    ],
    printing: Printing,
    data: Annotated[str, typer.Option("--data", "-d", help="Data set with the labels.")],
    split: Annotated[str, typer.Option("--split", "-s", help="Its split.")] = "test",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out frames that have no mask.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write each clip's numbers to this file.")
    ] = None,
    manifest: Manifest = None,
) -> None:
    """M_J and M_F of saved masks, of any project, in every protocol.

    Example: combo score ../AVSBench/avs_s4/pred_masks --data s4 --split test
    """
    from ..jobs.plan import planned, splits_of
    from ..manifest import load_manifest
    from ..scoring import named
    from ..scoring import score as score_masks

    output, opened = printing.output, load_manifest(manifest)
    opened.choose([data])
    splits_of(opened, data, [split])
    there = planned(opened, data, split)
    with output.bar(f"{data}/{split}", len(there.clips)) as bar:
        result = score_masks(there, masks, allow_missing, bar.advance)
    if csv is not None:
        lines = [(name, *scores) for name, scores in result.clips.items()]
        durable.write_bytes(csv, protocols.csv_of(("clip", "M_J", "M_F"), lines))
    if output.as_json:
        output.json({"masks": str(masks), "data_set": data, "split": split, **result.as_json()})
        return
    title = f"{masks} against {data}/{split}, {counted(len(result.clips), 'clip')}"
    output.table(protocols.HEADER, protocols.rows(result.protocols), title=title)
    if result.missing:
        output.warn(f"left out, no mask of {named(result.missing)}")
    if result.without_labels:
        output.warn(
            f"{counted(result.without_labels, 'clip')} left out: no frame of theirs has a label"
        )
    for name, reason in result.left_out.items():
        output.warn(f"left out: {name}: {reason}")
