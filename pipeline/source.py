"""Finished clips, wherever they lie: in a store, or in a file that was packed from one.

Training and evaluation read through `Source` and ask for nothing else, so that both are the same
to them. What "finished" means is still only known in `jobs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter

from .errors import ComboError
from .jobs.records import Finished, read_finished
from .packed import PackedSplit, is_packed, splits_in_packed
from .store import Plan, SplitStore, Variant, splits_in

STAGES = ("frames", "audio", "maskige")


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

    def read_array(self, variant: Variant, name: str) -> np.ndarray:
        """A whole array, [at least as many as clips, ...]."""
        ...

    def reader(self, variant: Variant, name: str) -> RowReader: ...


def open_source(store: Path, data_set: str, split: str) -> Source:
    """A split of a store, or of a packed file where the path is one. Raises ComboError."""
    if not store.exists():
        raise ComboError(f"the store {store} is not there; --store says where it lies now")
    kind = PackedSplit if is_packed(store) else SplitStore
    return kind(store, data_set, split)


def sources_in(store: Path, data_sets: Sequence[str] | None = None) -> list[Source]:
    """Every split of a store or a packed file."""
    if is_packed(store):
        return list(splits_in_packed(store, data_sets))
    return list(splits_in(store, data_sets))


def finished_manifest(source: Source, variant: Variant) -> Finished | None:
    """The manifest of a finished variant, or None."""
    if isinstance(source, SplitStore):
        return read_finished(source, variant)
    assert isinstance(source, PackedSplit)
    return TypeAdapter(Finished).validate_python(source.finished(variant))


def annotated_frames(source: Source, frames: Variant) -> tuple[int, int]:
    """How many frames of a split have labels, and how many frames there are."""
    rows = np.arange(len(source.plan().clips))
    asked = [source.reader(frames, name).ask(rows) for name in ("annotated", "present")]
    annotated, present = (int(np.count_nonzero(each.result())) for each in asked)
    return annotated, present


def remake(source: Source, stage: str, settings: Mapping[str, Any]) -> str:
    """The command that makes a stage of a split, as it stands in errors."""
    if is_packed(source.store):
        return f"combo pack STORE --to {source.store} --overwrite"
    imported = "imported" in (settings.get("generator"), settings.get("source"))
    verb = f"import-{stage} DIR" if imported else f"preprocess {stage}"
    return f"combo {verb} --data {source.data_set} --split {source.split}"


@dataclass(frozen=True)
class Choice:
    """The three variants of a split that a run is trained or evaluated on."""

    frames: Variant
    audio: Variant
    maskige: Variant

    @property
    def variants(self) -> tuple[Variant, Variant, Variant]:
        return self.frames, self.audio, self.maskige


def choose_variants(
    source: Source,
    wanted: Mapping[str, Mapping[str, Any]],
    named: Mapping[str, str] | None = None,
    weights: Mapping[str, Mapping[str, str]] | None = None,
) -> Choice:
    """The variant of each stage with the settings `wanted` (stage -> settings).

    named: stage -> name of the variant to take instead.  weights: stage -> digests, when those
    must be the same too.  Raises ComboError when a stage has none that fits, or several.
    """
    chosen: dict[str, Variant] = {}
    for stage in STAGES:
        variants = source.variants(stage)
        if named and stage in named:
            fits = [v for v in variants if v.name == named[stage]]
        else:
            fits = [v for v in variants if v.is_what(wanted[stage])]
        if weights is not None:
            fits = [v for v in fits if dict(v.weights) == dict(weights[stage])]
        if len(fits) == 1:
            chosen[stage] = fits[0]
            continue
        there = ", ".join(v.name for v in variants) or "none"
        if not fits:
            raise ComboError(
                f"no {stage} of {source} with these settings in {source.store} (there: {there}); "
                f"run: {remake(source, stage, wanted.get(stage, {}))}, "
                f"or choose one with --variant {stage}=NAME"
            )
        raise ComboError(
            f"several variants of {stage} fit {source}: {', '.join(v.name for v in fits)}; "
            f"choose one with --variant {stage}=NAME"
        )
    return Choice(chosen["frames"], chosen["audio"], chosen["maskige"])
