"""What there is to say of a store: how much, how fast, how large, what failed, how it looks."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ComboError
from ..jobs import records
from ..jobs.status import StageStatus, stage_statuses
from ..packed import is_packed, spec_bytes
from ..source import Source, sources_in
from ..store import VALID, SplitStore, Variant
from .clips import Panel, StoredClips
from .files import files_of

SAMPLES = 4
"""Clips of a split that are shown."""


@dataclass(frozen=True)
class Speed:
    """How long units took on one kind of device. seconds: of computing and writing, one process."""

    device: str
    clips: int
    seconds: float

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class StageLooks:
    """A variant of a split. sizes: array -> bytes on the disk.  done: [units, 2] when each unit was
    done (seconds since 1970) and how many clips that made.  masks: of each present frame of a
    Maskige variant.  left_out: masks beyond the 255 that a map has room for."""

    status: StageStatus
    variant: Variant
    sizes: dict[str, int]
    speeds: list[Speed]
    done: NDArray[np.float64]
    masks: NDArray[np.int64] | None = None
    left_out: int = 0

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


@dataclass(frozen=True)
class SplitLooks:
    """A split of a store. subsets: name -> clips."""

    source: Source
    clips: int
    frames_per_clip: int
    classes: tuple[str, ...]
    subsets: dict[str, int]
    stages: list[StageLooks]
    samples: list[Panel]


@dataclass(frozen=True)
class StoreLooks:
    """A store. problems: splits that cannot be read, and why."""

    path: Path
    packed: bool
    splits: list[SplitLooks]
    problems: list[str]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for split in self.splits for stage in split.stages)

    @property
    def failures(self) -> list[tuple[str, str, str, str]]:
        """Split, stage, clip and reason of each."""
        return [
            (str(split.source), stage.variant.stage, name, reason)
            for split in self.splits
            for stage in split.stages
            for name, reason in stage.status.failures.items()
        ]


def look_at_store(
    path: Path, manifest: Path | None = None, on_split: Callable[[], None] = lambda: None
) -> StoreLooks:
    """Gather it. manifest: where the data sets lie, in place of what the store says.

    Raises ComboError for a folder that holds no split.
    """
    problems: list[str] = []
    states = stage_statuses(path, on_problem=problems.append)
    splits: list[SplitLooks] = []
    for source in sources_in(path):
        mine = [s for s in states if (s.data_set, s.split) == (source.data_set, source.split)]
        if mine:
            try:
                splits.append(_split(source, mine, manifest))
            except ComboError as error:
                problems.append(f"{source}: {error}")
        on_split()
    return StoreLooks(path, is_packed(path), splits, problems)


def _split(source: Source, states: list[StageStatus], manifest: Path | None) -> SplitLooks:
    plan = source.plan()
    variants = {variant.key: variant for variant in source.variants()}
    clips = None
    if any(variant.stage == "frames" for variant in variants.values()):
        clips = StoredClips(source, files_of(source, manifest))
    stages = [_stage(source, s, variants[f"{s.stage}/{s.variant}"], clips) for s in states]
    return SplitLooks(
        source,
        len(plan.clips),
        plan.frames_per_clip,
        plan.classes,
        {name: count for name, count in Counter(plan.subsets).items() if name},
        stages,
        [clips.panel(row) for row in clips.some(SAMPLES)] if clips else [],
    )


def _stage(
    source: Source, status: StageStatus, variant: Variant, clips: StoredClips | None
) -> StageLooks:
    masks, left_out = None, 0
    if variant.stage == "maskige" and clips is not None:
        there = clips.array(clips.frames, "present").astype(bool)
        there &= clips.array(variant, VALID).astype(bool)[:, None]
        masks = clips.array(variant, "masks")[there].astype(np.int64)
        left_out = int(clips.array(variant, "left_out")[there].sum())
    if not isinstance(source, SplitStore):
        sizes = {a.name: spec_bytes(a) * status.clips for a in variant.all_arrays}
        return StageLooks(status, variant, sizes, [], np.zeros((0, 2)), masks, left_out)
    home = source.arrays(variant)
    sizes = {array.name: _bytes_below(home / array.name) for array in variant.all_arrays}
    speeds, done = _history(source, variant)
    return StageLooks(status, variant, sizes, speeds, done, masks, left_out)


def _history(source: SplitStore, variant: Variant) -> tuple[list[Speed], NDArray[np.float64]]:
    """How fast units were, by device, and when they were done."""
    clips, seconds, done = Counter[str](), Counter[str](), list[tuple[float, int]]()
    for record in records.done_units(source, variant, source.plan()):
        clips[record.device] += len(record.clips)
        seconds[record.device] += record.compute_seconds + record.write_seconds  # pyright: ignore[reportArgumentType]
        done.append((record.finished_at, len(record.clips)))
    speeds = [Speed(device, count, float(seconds[device])) for device, count in clips.items()]
    return speeds, np.array(sorted(done), np.float64).reshape(-1, 2)


def _bytes_below(folder: Path) -> int:
    total = 0
    for home, _, names in os.walk(folder):
        total += sum(os.lstat(f"{home}/{name}").st_size for name in names)
    return total


def settings_of(variant: Variant) -> dict[str, Any]:
    """What made a variant, without what its name says already."""
    return {k: v for k, v in variant.settings.items() if v not in (None, "")}
