"""`combo status`."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .. import remedies
from ..console import duration
from ..errors import counted, unknown
from .options import Printing, Splits, command

if TYPE_CHECKING:
    from ..jobs.status import StageStatus
    from ..manifest import Manifest

app = typer.Typer()

SECONDS_BETWEEN_LOOKS = 5.0


@command(app)
def status(
    splits: Splits,
    printing: Printing,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, until all is finished.")
    ] = False,
) -> None:
    """How far the store is: what is done, failed, open or not begun, speed and time left.

    Example: combo status --data s4
    """
    output, manifest = printing.output, splits.open()
    if watch and output.as_json:
        raise typer.BadParameter("--watch shows people how it goes; leave out --json")
    states, problems = _look(manifest, splits)
    if output.as_json:
        output.json([{**dataclasses.asdict(each), "state": each.state} for each in states])
    elif not states and not problems:
        output.note(f"nothing in {manifest.store_path} yet; run: {remedies.make(remedies.ALL)}")
    else:
        output.states(_lines(states))
    with contextlib.suppress(KeyboardInterrupt):  # it is how one leaves
        while watch and any(each.state not in ("finished", "all failed") for each in states):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            states, problems = _look(manifest, splits)
            output.clear()
            output.states(_lines(states))
    for problem in problems:
        output.warn(problem)
    if problems:
        sys.exit(1)


def _look(manifest: "Manifest", asked: Splits) -> "tuple[list[StageStatus], list[str]]":
    """The state of every stage asked for, in order, and what cannot be read."""
    from ..jobs.status import in_order, not_begun, stage_statuses
    from ..source import sources_in

    store, problems = manifest.store_path, list[str]()
    known = dict.fromkeys([*manifest.data_sets, *(each.data_set for each in sources_in(store))])
    for name in asked.data or ():
        if name not in known:
            raise unknown(f"no data set {name!r} in {manifest.file} or {store}", name, known)
    there = stage_statuses(store, asked.data or None, asked.split or None, problems.append)
    states = [*there, *not_begun(manifest, there, asked.data or (), asked.split or ())]
    return in_order(states, known), problems


def _lines(states: "Sequence[StageStatus]") -> "Iterator[tuple[str, str, str]]":
    """What is before a state, the state, and what is after it; a heading for each split."""
    width = max((len(each.key) for each in states), default=0)
    split = ""
    for each in states:
        if split != (split := f"{each.data_set}/{each.split}"):
            of = [one for one in states if (one.data_set, one.split) == (each.data_set, each.split)]
            yield f"{split}: {_counts(of)}", "", ""
        yield f"  {each.key:<{width}}  ", f"{each.state:<10}", f"  {_progress(each)}".rstrip()
        if each.state == "finished":
            continue
        for part in each.parts:
            done = f"{part.units_done} of {counted(part.units, 'unit')}"
            rate = f", {part.clips_per_second} clips/s" if part.clips_per_second else ""
            job = f", job {part.job}" if part.job else ""
            about = f" {done}{rate}, {part.host} {part.pid}{job}"
            yield f"    part {part.part} of {part.parts}: ", part.state, about
        for holder in sorted(each.held, key=lambda holder: holder.since):
            yield f"    unit {holder.unit}: in the hands of {holder}", "", ""


def _counts(of_split: "Sequence[StageStatus]") -> str:
    clips = max(each.clips for each in of_split)
    annotated = next((each.annotated for each in of_split if each.annotated), None)
    annotated = annotated if annotated and annotated[1] else None
    labels = ", {:,} of {:,} frames annotated".format(*annotated) if annotated else ""
    return f"{counted(clips, 'clip')}{labels}" if clips else "not begun"


def _progress(of: "StageStatus") -> str:
    if of.state == "not begun":
        return ""
    done = f"{of.done:,} done" if not of.to_do else f"{of.done:,} of {of.clips:,} done"
    said = [done, *([f"{of.failed:,} failed"] if of.failed else [])]
    if of.seconds_left is not None:
        said.append(f"{duration(of.seconds_left)} left")
    elif of.to_do and of.clips_per_second:
        said.append(f"{of.clips_per_second} clips/s")
    return ", ".join(said)
