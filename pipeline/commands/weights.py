"""`combo weights list | fetch | add | verify | convert`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import completion
from .options import Manifest, Printing, Store, command

app = typer.Typer(
    help="Published weights: what there is, where it comes from, whether it is whole.",
    no_args_is_help=True,
)

Name = Annotated[
    str, typer.Argument(help="Name of the catalogue.", autocompletion=completion.weights)
]


@command(app, "list")
def show(printing: Printing, manifest: Manifest = None) -> None:
    """The catalogue: names, sources, licences, and which are on this machine.

    Example: combo weights list
    """
    from .. import weights
    from ..manifest import load_manifest

    output = printing.output
    output.records(
        [
            {
                **dataclasses.asdict(held.weights),
                "source": held.weights.source,
                "sha256": held.weights.digest_start,
                "path": str(held.path),
                "there": held.there,
            }
            for held in weights.held(load_manifest(manifest).weight_paths())
        ],
        {
            "name": "name",
            "there": lambda row: "yes" if row["there"] else "",
            "what": "about",
            "published at": "source",
            "MB": lambda row: row["size"] // 10**6 if row["size"] else "",
            "SHA-256": lambda row: (row["sha256"] or "")[:8],
            "licence": "licence",
        },
    )
    if not output.as_json:
        output.note(f"weights folder: {weights.weights_folder()}")


@command(app, "fetch", goes_on=True)
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Names of the catalogue.", autocompletion=completion.weights),
    ],
    printing: Printing,
) -> None:
    """Download published weights; a download that was cut off goes on where it stopped.

    Example: combo weights fetch vggish sam-vit-h
    """
    from .. import weights

    output = printing.output
    paths: dict[str, str] = {}
    for name in names:
        weights.entry(name)  # a wrong name ends it before any is fetched
    for name in names:
        size = weights.entry(name).size or 0
        with output.bar(f"fetching {name}", size >> 20) as bar:
            at = 0

            def tell(there: int, whole: int | None) -> None:
                nonlocal at
                mebibytes = there >> 20
                bar.advance(mebibytes - at, f"of {whole >> 20} MiB" if whole else "MiB")
                at = mebibytes

            paths[name] = str(weights.fetch(name, tell))
        if not output.as_json:
            output.result(f"{name}: {paths[name]}")
    if output.as_json:
        output.json(paths)


@command(app, "add")
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The file, which is copied.")],
    printing: Printing,
) -> None:
    """Put a weights file you have into the weights folder, after checking that it is the one.

    Example: combo weights add vggish vggish-10086976.pth
    """
    from .. import weights

    path = weights.add(name, file)
    printing.output.answer({name: str(path)}, f"{name}: {path}")


@command(app, "verify")
def verify(
    printing: Printing,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of the catalogue; all that are there.", autocompletion=completion.weights
        ),
    ] = None,
    manifest: Manifest = None,
) -> None:
    """Compare weights with their published digests.

    Example: combo weights verify
    """
    from .. import weights
    from ..manifest import load_manifest

    opened = load_manifest(manifest)
    expected = {name: w.sha256 for name, w in opened.weights.items() if w.sha256}
    verdicts = weights.verify(names or [], opened.weight_paths(), expected)
    printing.output.records(
        [{**dataclasses.asdict(v), "path": str(v.path)} for v in verdicts],
        {
            "name": "name",
            "state": "state",
            "file": "path",
            "SHA-256 or reason": lambda row: row["reason"] or row["sha256"],
        },
    )
    if any(v.state in ("wrong", "missing") for v in verdicts):
        sys.exit(1)


@command(app, "convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A published COMBO checkpoint (.pth).")],
    printing: Printing,
    target: Annotated[Path | None, typer.Argument(help="File to write; must not be there.")] = None,
    to: Annotated[Path | None, typer.Option(help="Run folder to make instead of a file.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of the run: combo-r50-ms3, say; default: its S4 or AVSS.")
    ] = None,
    store: Store = None,
    manifest: Manifest = None,
) -> None:
    """A published COMBO checkpoint under this project's parameter names, as a file or a run.

    A run is evaluated, predicts, and is begun with (`initialisation`) like one that was trained.

    Example: combo weights convert avs_s4_r50.pth --to runs/published-s4
    """
    from .. import weights

    if (target is None) == (to is None):
        raise typer.BadParameter("give a file to write, or --to RUN")
    if to is not None:
        from ..manifest import load_manifest
        from ..train.published import make_run

        opened = load_manifest(manifest).with_store(store)
        run, settings = make_run(source, to, opened, preset)
        value = {"run": str(run.root), "preset": settings.train.preset}
        printing.output.answer(value, f"{run.root}: {settings.train.preset}")
        return
    if target is None:
        return
    network, vggish = weights.convert(source, target)
    printing.output.answer(
        {"file": str(target), "network": network, "vggish": vggish},
        f"{target}: {network} tensors of the network, {vggish} of VGGish",
    )
