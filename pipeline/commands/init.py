"""`combo init`: a manifest from what lies in a folder."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import durable
from ..console import Output
from ..errors import ComboError, counted
from .options import Printing, command

if TYPE_CHECKING:
    from ..understood import FoundData

app = typer.Typer()

SHOWN = 5
"""Clips with a problem that are named before "and N more"."""


@command(app)
def init(
    folder: Annotated[Path, typer.Argument(help="Your clips, or AVSBench.")],
    printing: Printing,
    manifest: Annotated[
        Path, typer.Option("--manifest", "-m", help="File to write; one that is there stays.")
    ] = Path("data_manifest.yaml"),
) -> None:
    """Write a commented manifest for the clips in a folder, and show what was understood of them.

    Example: combo init my_clips
    """
    from ..manifest import load_manifest
    from ..understood import manifest_of, understand

    output, found = printing.output, understand(folder)
    if not output.as_json:
        for each in found:
            _show(output, each)
    if manifest.exists():
        raise ComboError(
            f"{manifest} is there already and stays as it is; give another file: "
            f"combo init {folder} --manifest OTHER.yaml"
        )
    text = manifest_of(found, folder, manifest.parent)
    with durable.writing(manifest.parent, "run the same command again", "give another --manifest"):
        durable.write_bytes(manifest, text.encode())
    load_manifest(manifest)  # what is written is read
    told = [{**asdict(each), "root": str(each.root)} for each in found]
    output.answer(
        {"manifest": str(manifest), "data_sets": told},
        f"{manifest}: {', '.join(each.name for each in found)}; change in it what is not so",
    )
    _advise(output, found, manifest)


def _show(output: Output, found: "FoundData") -> None:
    output.table(
        ("split", "clips", "frames", "a clip", "labelled", "with sound"),
        [
            (
                split.split,
                split.clips,
                split.frames,
                "{} to {}".format(*split.lengths)
                if len({*split.lengths}) > 1
                else split.lengths[0],
                split.labelled,
                split.with_sound,
            )
            for split in found.splits
        ],
        title=f"{found.name}: layout {found.layout}, {counted(len(found.classes), 'class')}",
    )
    for split in found.splits:
        for name, problem in list(split.problems.items())[:SHOWN]:
            output.warn(f"  cannot be read: {name}: {problem}")
        if (more := len(split.problems) - SHOWN) > 0:
            output.warn(f"  and {more} more of {split.split}")
        if split.unread:
            output.warn(f"  {split.split}: not read: {split.unread}")


def _advise(output: Output, found: "list[FoundData]", manifest: Path) -> None:
    """The commands that come next."""
    where = "" if manifest == Path("data_manifest.yaml") else f" --manifest {manifest}"
    if any(each.frames for each in found):
        output.note(f"next: combo preprocess all{where}")
    for each in found:
        if not each.frames:
            output.note(
                f"{each.name}: no clip of it can be read; a clip is a video, or a folder with its "
                "frames or one video straight in it (docs/data.md)"
            )
            continue
        preset = "combo-small-ms3" if each.own else f"combo-r50-{each.name}"
        data = f" --data {each.name}" if each.own else ""
        if not each.labelled:
            output.note(
                f"{each.name}: no frame has a label, so there is nothing to train on (docs/data.md "
                "says where labels go); a network that is trained sees them all the same: "
                f"combo predict RUN {each.root}"
            )
        elif any(split.split == "train" for split in each.splits):
            output.note(f"then: combo train --preset {preset}{data}{where}")
        else:
            output.note(f"{each.name}: to train, divide its clips with `split` in {manifest}")
