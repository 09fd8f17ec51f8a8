"""Finished clips, wherever they lie: in a store, or in a file that was packed from one.

Training and evaluation read through `Source` and ask for nothing else, so that both are the same
to them. Here alone stands what "usable" means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import remedies
from .durable import absolute
from .errors import ComboError
from .imports import is_imported
from .packed import PackedSplit, is_packed, splits_in_packed
from .store import Finished, Plan, SplitStore, StoreDamaged, Variant, splits_in


class RowReader(Protocol):
    """Reads clips of one array ahead, in threads of its own."""

    def ask(self, rows: np.ndarray) -> Any:
        """A future whose `result()` is [len(rows), ...]."""
        ...


class Source(Protocol):
    """What is read of a split. `SplitStore` and `PackedSplit` are two."""

    store: Path
    data_set: str
    split: str

    def plan(self) -> Plan: ...

    def variants(self, stage: str | None = None) -> list[Variant]: ...

    def finished(self, variant: Variant) -> Finished | None: ...

    def reader(self, variant: Variant, name: str, finished: Finished | None = None) -> RowReader:
        """An array. finished: what closed the variant, so that all that is read is what was written
        then, or an error."""
        ...


def open_source(store: Path, data_set: str, split: str) -> Source:
    """A split of a store, or of a packed file where the path is one. Raises ComboError."""
    store = absolute(store)
    if not store.exists():
        raise ComboError(f"the store {store} is not there; --store says where it lies now")
    kind = PackedSplit if is_packed(store) else SplitStore
    return kind(store, data_set, split)


def sources_in(store: Path, data_sets: Sequence[str] | None = None) -> list[Source]:
    """Every split of a store or a packed file."""
    if is_packed(store):
        return list(splits_in_packed(store, data_sets))
    return list(splits_in(store, data_sets))


def usable(source: Source, variant: Variant) -> Finished | None:
    """What closed a variant, where it was closed for the split's plan and with its settings."""
    finished = source.finished(variant)
    fits = finished is not None and (finished.plan, finished.fingerprint) == (
        source.plan().fingerprint,
        variant.fingerprint,
    )
    return finished if fits else None


def demand_usable(source: Source, variant: Variant) -> Finished:
    """As `usable`, and described as it was when it was finished. Raises ComboError with the command
    that finishes the variant, or writes its description anew."""
    finished, command = usable(source, variant), remake(source, variant.stage, variant.settings)
    if finished is None:
        raise ComboError(f"{variant.key} of {source} is not finished; run: {command}")
    if finished.description not in ("", variant.digest):
        raise StoreDamaged(
            f"the description of {variant.key} of {source} in {source.store} is not what the "
            f"variant was finished with; run: {command}"
        )
    return finished


def annotated_frames(source: Source, frames: Variant) -> tuple[int, int]:
    """How many frames of a split have labels, and how many frames there are."""
    rows = np.arange(len(source.plan().clips))
    asked = [source.reader(frames, name).ask(rows) for name in ("annotated", "present")]
    annotated, present = (int(np.count_nonzero(each.result())) for each in asked)
    return annotated, present


def remake(source: Source, stage: str, settings: Mapping[str, Any], this_split: bool = True) -> str:
    """The command that makes a stage of a split, as it stands in errors. this_split: of it alone;
    else of all of its data set, which costs nothing where the others are finished."""
    if is_packed(source.store):
        return remedies.pack(source.store)
    split = source.split if this_split else ""
    return remedies.make(stage, source.data_set, split, is_imported(settings))


@dataclass(frozen=True)
class Choice:
    """The variants of a split that a run is trained or evaluated on, one a stage.

    maskige: None for a network that reads none.
    """

    frames: Variant
    audio: Variant
    maskige: Variant | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        read = (self.frames, self.audio, self.maskige)
        return tuple(variant for variant in read if variant is not None)


def choose_variants(
    source: Source,
    wanted: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, str] | None = None,
    weights: Mapping[str, Mapping[str, str]] | None = None,
) -> Choice:
    """The variant with the settings `wanted` (stage -> settings) of each of these stages.

    named: stage -> name of the variant to take instead.  weights: stage -> digests, when those
    must be the same too.  Raises ComboError when a stage has none that fits, or several, or one is
    named that is not wanted.
    """
    for stage in (named or {}).keys() - wanted.keys():
        raise ComboError(f"no {stage} is read here; leave --variant {stage}=NAME out")
    chosen: dict[str, Variant] = {}
    nothing = [stage for stage in wanted if not source.variants(stage)]
    for stage, settings in wanted.items():
        variants = source.variants(stage)
        if named and stage in named:
            fits = [v for v in variants if v.name == named[stage]]
        else:
            fits = [v for v in variants if v.is_what(settings)]
        if weights is not None:
            fits = [v for v in fits if dict(v.weights) == dict(weights[stage])]
        if len(fits) == 1:
            chosen[stage] = fits[0]
            continue
        there = ", ".join(v.name for v in variants) or "none"
        if not fits:
            whole = len(nothing) > 1  # of a data set, whose other splits will be wanted too
            make = remake(source, remedies.ALL if whole else stage, settings, not whole)
            raise ComboError(
                f"no {stage} of {source} with these settings in {source.store} (there: {there}); "
                f"{_of_another(variants, settings)}run: {make}, "
                f"or choose one with --variant {stage}=NAME"
            )
        raise ComboError(
            f"several variants of {stage} fit {source}: {', '.join(v.name for v in fits)}; "
            f"choose one with --variant {stage}=NAME"
        )
    return Choice(chosen["frames"], chosen["audio"], chosen.get("maskige"))


def _of_another(variants: Sequence[Variant], wanted: Mapping[str, Any]) -> str:
    """The option that takes the only variant there is, where another encoder or generator made it,
    as words that another command may follow."""
    for option in ("encoder", "generator"):
        names = {variant.settings.get(option) for variant in variants}
        if option in wanted and len(names) == 1 and names != {wanted[option]}:
            return f"add --{option} {names.pop()}, or "
    return ""
