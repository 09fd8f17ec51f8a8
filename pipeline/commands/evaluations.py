"""`combo evaluate`: the ruler for networks, of runs and of published checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import durable, protocols
from ..console import Output
from ..errors import counted
from .options import Device, Manifest, Printing, Store, Variants, command, one_variant_each
from .runs import tell_unchecked

if TYPE_CHECKING:
    from torch import Tensor

    from ..ruler.candidates import Candidate
    from ..ruler.comparison import Row
    from ..train.evaluate import Evaluation
    from ..train.loader import StoredBatch

app = typer.Typer()


@command(app)
def evaluate(
    printing: Printing,
    networks: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN|CHECKPOINT...", help="Runs, or files with a network."),
    ] = None,
    split: Annotated[str, typer.Option("--split", "-s", help="Split to evaluate.")] = "test",
    sound: Annotated[
        str, typer.Option(help="right, or wrong on purpose; several: right,silent. See --explain.")
    ] = "right",
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Data set of the manifest; default: the run's."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of a file whose network several presets have.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write each clip's, category's and class's numbers here.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Save the masks in this folder, for combo score.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each protocol, sound and column means.")
    ] = False,
    store: Store = None,
    variant: Variants = None,
    device: Device = "auto",
    manifest: Manifest = None,
) -> None:
    """M_J and M_F of networks, in every protocol, side by side.

    A run is its best network; RUN/last.pt is another, and a published checkpoint a third. Runs that
    differ in the seed alone are one row, with mean and deviation.

    Example: combo evaluate runs/combo-r50-s4 --split test --sound right,silent
    """
    from ..train import sounds as every_sound

    names = every_sound.parse(sound)
    if explain:
        _explain(printing.output)
        if not networks:
            return
    if not networks:
        raise typer.BadParameter("give a run's folder or a checkpoint, or --explain")
    if predictions is not None and len(networks) * len(names) > 1:
        raise typer.BadParameter("--predictions takes the masks of one network and one sound")

    from ..devices import choose_device, keep_freed_memory, set_threads
    from ..ruler import comparison
    from ..ruler.candidates import Where, candidate
    from ..saved_masks import demand_empty, write_clip
    from ..train.evaluate import as_json, groups_as_json, measure_sounds

    keep_freed_memory()
    set_threads()
    if predictions is not None:
        demand_empty(predictions)
    output, on = printing.output, choose_device(device)
    where = Where(split, data, manifest, store, one_variant_each(variant), preset)
    candidates = [candidate(path, where) for path in networks]
    for each in candidates:
        tell_unchecked(output, each.reader)
        if "classes" in each.noted:
            output.note(f"{each.reader.split}: {each.noted['classes']}")
    found: list[tuple[Candidate, dict[str, Evaluation]]] = []
    work = sum(len(each.reader.labelled) for each in candidates) * len(names)
    with output.bar("evaluating", work) as bar:

        def seen(_sound: str, clip: "StoredBatch", scores: "Tensor") -> None:
            if predictions is not None:
                frames = clip.present[0].nonzero()[:, 0].tolist()
                write_clip(predictions, clip.clips[0], scores.cpu(), frames)
            bar.advance()

        for each in candidates:
            bar.advance(0, title=f"{each.name}, {split}, {', '.join(names)} sound")
            network = each.network(on)
            by_sound = measure_sounds(network, each.reader, on, names, each.categories, seen)
            found.append((each, by_sound))
        bar.advance(0, title="evaluating" if len(candidates) > 1 else None)
    if csv is not None:
        lines = comparison.csv_lines(found)
        durable.write_bytes(csv, protocols.csv_of(comparison.CSV_HEADER, lines))
    rows = comparison.rows(found)
    if output.as_json:
        told = [
            {
                "run": each.name,
                "data_set": each.reader.split.data_set,
                "split": split,
                **as_json(one),
                **each.noted,
                **groups_as_json(one, each.categories),
            }
            for each, by_sound in found
            for one in by_sound.values()
        ]
        several = {"rows": [row.as_json() for row in rows], "evaluations": told}
        output.json(several if len(told) > 1 else told[0])
        return
    _show(output, rows)
    for each, by_sound in found:
        _tell_left_out(output, each, by_sound)


def _show(output: Output, rows: "list[Row]") -> None:
    from ..ruler import comparison

    each, evaluation = rows[0].of[0]
    if len(rows) == 1 and len(rows[0].of) == 1:
        title = f"{each.reader.split}, {rows[0].sound} sound, {counted(rows[0].clips, 'clip')}"
        output.table(protocols.HEADER, protocols.rows(evaluation.protocols), title=title)
        return
    splits = dict.fromkeys(str(each.reader.split) for row in rows for each, _ in row.of)
    title = ", ".join(splits)
    output.table(comparison.HEADER, comparison.table(rows), title=title)
    lines = comparison.by_protocol(rows)
    output.table(comparison.PROTOCOLS, lines, title="every protocol")


def _tell_left_out(output: Output, each: "Candidate", by_sound: "dict[str, Evaluation]") -> None:
    evaluation = next(iter(by_sound.values()))
    if evaluation.without_labels:
        output.warn(
            f"{counted(evaluation.without_labels, 'clip')} left out: no frame of theirs has a label"
        )
    if evaluation.left_out:
        output.warn(
            f"{counted(evaluation.left_out, 'clip')} left out: they failed in preprocessing"
        )
    for sound, one in by_sound.items():
        if one.without_sound:
            output.warn(
                f"{each.name}, {sound}: {counted(one.without_sound, 'clip')} left out: no other "
                "clip is of their category"
            )


def _explain(output: Output) -> None:
    from ..train.sounds import MEANINGS

    columns = {
        "false positives": "clips in which something is segmented though nothing that is heard is "
        "in sight: all clips, with a wrong sound",
        "segmented": "pixels that are called something",
        "unchanged": "pixels that are called the same as with the right sound",
    }
    parts = {
        "protocols of object labels (S4, MS3)": protocols.OBJECTS,
        "protocols of semantic labels (AVSS)": protocols.CLASSES,
        "sounds": MEANINGS,
        "columns, in percent": columns,
    }
    if output.as_json:
        output.json(parts)
        return
    for title, meanings in parts.items():
        output.table(("name", "meaning"), list(meanings.items()), title=title)
