"""`combo sample`: data to try everything with."""

from pathlib import Path
from typing import Annotated

import typer

from .. import durable
from ..errors import WrongUsage
from .options import Printing, command

app = typer.Typer()

MANIFEST = """\
# Written by `combo sample`: needs no weights, and is small enough for two CPU cores.
store: store
data_sets:
  s4: {layout: avsbench-s4, root: AVSBench_object/Single-source}
  ms3: {layout: avsbench-ms3, root: AVSBench_object/Multi-sources}
  avss: {layout: avsbench-avss, root: AVSBench_semantic}
stages:
  frames: {size: 96}
  audio: {encoder: mel-stats}
  maskige: {generator: felzenszwalb, at: stored}
"""

Counts = Annotated[str, typer.Option(help="Clips in train, val and test.")]


@command(app)
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write it; empty or a sample already.")],
    printing: Printing,
    s4: Counts = "24,6,8",
    ms3: Counts = "24,6,8",
    avss: Counts = "24,6,8",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other clips.")] = 0,
) -> None:
    """Make a small data set in all three AVSBench layouts, so that nothing needs a download.

    Example: combo sample data/sample
    """
    from ..manifest import FILE_NAME
    from ..sample import write_sample

    output, asked = printing.output, {"s4": s4, "ms3": ms3, "avss": avss}
    counts = {name: _counts(name, text) for name, text in asked.items()}
    with output.bar("sample data", sum(map(sum, counts.values()))) as bar:
        new = write_sample(folder, **counts, seed=seed, progress=lambda *_: bar.advance())
    manifest = folder / FILE_NAME
    if not manifest.exists():
        durable.write_bytes(manifest, MANIFEST.encode())
    if output.as_json:
        output.json({"folder": str(folder), "manifest": str(manifest), "new": new})
        return
    output.result(f"wrote {folder}" if new else f"{folder} holds this sample already")
    output.note(f"try it: combo preprocess all --manifest {manifest}")


def _counts(name: str, text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise WrongUsage(f"--{name} {text}: write clips in train, val and test, as in 24,6,8")
    train, val, test = map(int, parts)
    return train, val, test
