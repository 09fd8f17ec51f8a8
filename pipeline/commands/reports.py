"""`combo report` and `combo show`: pages and pictures of stores, runs, clips and data sets."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import remedies
from ..console import Output
from ..errors import ComboError, WrongUsage, counted
from .options import Device, Printing, command
from .options import Manifest as ManifestFile

if TYPE_CHECKING:
    from ..jobs.plan import PlannedSplit
    from ..manifest import Manifest
    from ..report.clips import Panel
    from ..report.of_run import RunLooks
    from ..report.of_store import StoreLooks
    from ..source import Source

app = typer.Typer()


@command(app)
def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN|STORE...", help="Runs, stores, packed files.")
    ],
    printing: Printing,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    split: Annotated[
        str, typer.Option("--split", "-s", help="Split that runs are evaluated on.")
    ] = "test",
    store: Annotated[
        Path | None, typer.Option(help="Where the runs' store lies now, if it has moved.")
    ] = None,
    device: Device = "auto",
    manifest: ManifestFile = None,
) -> None:
    """One page that opens from the disk: how far a store is, how a run went, what both look like.

    Example: combo report runs/combo-r50-s4 store --out report.html
    """
    from ..devices import choose_device, keep_freed_memory
    from ..report.of_run import look_at_run, run_work
    from ..report.of_store import look_at_store
    from ..report.page import write_report
    from ..report.sheet import demand_ours
    from ..source import sources_in

    keep_freed_memory()
    output, where = printing.output, choose_device(device)
    demand_ours(out)
    runs, stores = _runs_and_stores(paths)
    looks: list[RunLooks] = []
    stored: list[StoreLooks] = []
    work = sum(run_work(run, split, store) for run in runs)
    with output.bar("looking", work + sum(len(sources_in(path)) for path in stores)) as bar:
        for run in runs:
            bar.advance(0, title=f"{run}, {split}")
            looks.append(look_at_run(run, split, where, store, manifest, bar.advance))
        for path in stores:
            bar.advance(0, title=str(path))
            stored.append(look_at_store(path, manifest, bar.advance))
        bar.advance(0, title=str(out))
    write_report(out, looks, stored)
    problems = [problem for each in stored for problem in each.problems]
    for problem in problems:
        output.warn(problem)
    size = out.stat().st_size
    said = {"runs": list(map(str, runs)), "stores": list(map(str, stores))}
    words = f"{out}: {size / 1e6:.1f} MB; open it in a browser"
    output.answer({"file": str(out), "bytes": size, **said}, words)
    if problems:
        sys.exit(1)


def _runs_and_stores(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Which are which. Raises ComboError for what is neither."""
    from ..packed import is_packed
    from ..source import sources_in
    from ..train.run_folder import SETTINGS, run_of

    paths = [run_of(path) for path in paths]
    runs = [path for path in paths if (path / SETTINGS).exists()]
    stores = [path for path in paths if path not in runs]
    for path in stores:
        if not path.exists():
            raise WrongUsage(f"{path} is not there; give folders of runs, stores or packed files")
        if not is_packed(path) and not sources_in(path):
            raise ComboError(
                f"{path} is neither a run ({SETTINGS} is missing) nor a store with something in "
                f"it; make one with combo train, or combo preprocess all"
            )
    return runs, stores


@command(app)
def show(
    printing: Printing,
    where: Annotated[
        str | None,
        typer.Argument(metavar="STORE|DATA", help="A store, a packed file, or a data set's name."),
    ] = None,
    clip: Annotated[str | None, typer.Argument(help="The clip's name.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Data set; without a CLIP, a contact sheet of it."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", "-s", help="Split, where several have such a clip.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run whose prediction is shown, of a stored clip.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG to write; default combo-show-CLIP.png, or combo-show-DATA.png."),
    ] = None,
    manifest: ManifestFile = None,
) -> None:
    """One clip as a picture, or some clips of a data set before anything is computed of it.

    Of a clip: frames, Maskiges of every variant, labels, the spectrogram with the windows of sound,
    and a run's prediction. Of a data set: frames beside their labels.

    Example: combo show store clip-7 --run runs/combo-r50-s4
    """
    from ..manifest import load_manifest
    from ..report.sheet import write_sheet

    output = printing.output
    if clip is None:
        if run is not None:
            raise typer.BadParameter("--run goes with a CLIP")
        name = data or where
        if name is None or (data and where):
            raise typer.BadParameter("give STORE CLIP, DATA CLIP, or --data NAME alone")
        opened = load_manifest(manifest)
        if name not in opened.data_sets and Path(name).exists():
            raise typer.BadParameter(f"which clip? give combo show {name} CLIP")
        _contact_sheet(output, opened, name, split, out or _picture(name))
        return
    assert where is not None  # arguments come in order
    file = out or _picture(clip)
    panel = _panel(where, clip, data, split, run, manifest)
    write_sheet(file, [panel])
    said = {
        "file": str(file),
        "clip": clip,
        "rows": list(panel.rows),
        "classes": list(panel.classes.values()),
        "notes": [*panel.notes, *([panel.unheard] if panel.unheard else [])],
    }
    for note in said["notes"]:
        output.note(str(note))
    output.answer(said, f"{file}: {', '.join(panel.rows)}")


def _panel(
    where: str,
    clip: str,
    data: str | None,
    split: str | None,
    run: Path | None,
    manifest: Path | None,
) -> "Panel":
    """The clip as the store has it; of a data set's name, as its files are where the manifest's
    store has nothing of it."""
    from ..manifest import load_manifest
    from ..packed import is_packed
    from ..report.clips import StoredClips
    from ..report.files import files_of
    from ..source import sources_in

    path, opened = Path(where), None
    if path.exists() and (is_packed(path) or sources_in(path)):
        store, data_sets = path, [data] if data else None
    else:
        opened = load_manifest(manifest)
        if where not in opened.data_sets:
            raise ComboError(
                f"{where} is neither a store nor a data set of {opened.file}, which names "
                f"{', '.join(opened.data_sets)}"
            )
        store, data_sets, manifest = opened.store_path, [where], opened.file
    there = sources_in(store, data_sets) if store.exists() else []
    found = [s for s in there if split in (None, s.split) and clip in s.plan().clips]
    if len(found) > 1:
        raise ComboError(
            f"clip {clip} is in {', '.join(map(str, found))}; name one with --data and --split"
        )
    if found and found[0].variants("frames"):
        (source,) = found
        clips = StoredClips(source, files_of(source, manifest))
        if run is not None:
            return _predicted(run, source, clip, manifest)
        panel = clips.panel(source.plan().clips.index(clip))
        return dataclasses.replace(panel, title=f"{clip}   {source} in {store}")
    if opened is None:
        held = ", ".join(map(str, there)) or "nothing"
        raise ComboError(f"no clip {clip} in {store}, which holds {held}; see: {remedies.show()}")
    if run is not None:
        raise ComboError(
            f"{store} has nothing of clip {clip}, which a network needs; run: "
            f"{remedies.make(remedies.ALL, where)}"
        )
    return _raw(opened, where, clip, split)


def _predicted(run: Path, source: "Source", clip: str, manifest: Path | None) -> "Panel":
    from ..report.predicted import predicted_panel

    return predicted_panel(run, source, clip, manifest)


def _raw(manifest: "Manifest", data_set: str, clip: str, split: str | None) -> "Panel":
    """A clip as the data set's files are."""
    from ..report.raw import RawClips

    for there in _splits(manifest, data_set, split):
        if clip in there.clips.names:
            panel = RawClips(there).panel(there.clips[there.clips.names.index(clip)])
            title = f"{clip}   {there.where}, as its files are: nothing of it is in the store"
            return dataclasses.replace(panel, title=title)
    where = f"{data_set}/{split}" if split else f"data set {data_set!r}"
    raise ComboError(f"no clip {clip} in {where}; to see some of it: combo show --data {data_set}")


def _splits(manifest: "Manifest", data_set: str, split: str | None) -> "Sequence[PlannedSplit]":
    from ..jobs.plan import planned, splits_of

    manifest.choose([data_set])
    asked = [split] if split else ()
    return [planned(manifest, data_set, each) for each in splits_of(manifest, data_set, asked)]


def _contact_sheet(
    output: Output, manifest: "Manifest", data_set: str, split: str | None, file: Path
) -> None:
    from ..report.contact import some_of, write_contact_sheet
    from ..report.raw import RawClips
    from ..report.sheet import demand_ours

    demand_ours(file)
    splits = [RawClips(there) for there in _splits(manifest, data_set, split)]
    clips = sum(len(some_of(len(each.there.clips))) for each in splits)
    with output.bar(f"{data_set}", clips) as bar:
        wrong = write_contact_sheet(file, splits, bar.advance)
    for line in wrong:
        output.warn(line)
    said = {"file": str(file), "data_set": data_set, "clips": clips, "wrong": wrong}
    output.answer(
        said, f"{file}: {counted(clips, 'clip')} of {data_set}, frames beside their labels"
    )
    if wrong:
        sys.exit(1)


def _picture(name: str) -> Path:
    """The default file for a name that may hold anything."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:100]
    return Path(f"combo-show-{safe}.png")
