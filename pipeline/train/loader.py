"""Clips from a finished store, or a file packed from one, as batches of tensors, read ahead.

Pictures are read when their batch comes; what is small (sound, which frames are annotated)
is read once when the split is opened. Reads go on in threads of the source (tensorstore's, or
a packed file's), so a few batches ahead cost no process, no pickling and no copy between processes.
All that is read is what the stages wrote, or an error that names the clip (see `rows`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...model.interface import label_values
from ...model.maskige import colour
from ...model.transfers import send
from .. import remedies
from ..errors import ComboError
from ..jobs.records import missing_shard
from ..source import Choice, RowReader, Source, demand_usable
from ..store import VALID, Plan, SplitStore, StoreDamaged, Variant


@dataclass(frozen=True)
class Batch:
    """Clips of a batch on a device. T is the most frames a clip of the data set has.

    frames, maskige: [B, T, 3, H, W] uint8 RGB; maskige is None where none are read.
    labels: [B, T, H, W] uint8, 255 is ignored.  sound: [B, T, D] float32.  present: [B, T] bool,
    frames that the clip has.  annotated: [B, T] bool, frames with labels; these two stay on the
    CPU, where they cost no wait.  clips: names.
    """

    frames: Tensor
    maskige: Tensor | None
    labels: Tensor
    sound: Tensor
    present: Tensor
    annotated: Tensor
    clips: tuple[str, ...]

    def part(self, first: int, last: int) -> "Batch":
        """Clips `first` to `last` - 1."""
        return _part(self, first, last)


@dataclass(frozen=True)
class StoredBatch:
    """Clips as the store has them: a `Batch`, but Maskiges are label maps, [B, T, H, W] uint8.

    They are painted where the network is: a third of the bytes go there.
    """

    frames: Tensor
    label_map: Tensor | None
    labels: Tensor
    sound: Tensor
    present: Tensor
    annotated: Tensor
    clips: tuple[str, ...]
    palette: Tensor | None
    values: Tensor | None = None
    """[B, T, 256] bool, on the CPU: which values each label map has, where that is known."""

    def held(self) -> Tensor:
        """As `values`; looked up where it is not known."""
        return label_values(self.labels) if self.values is None else self.values

    def part(self, first: int, last: int) -> "StoredBatch":
        """Clips `first` to `last` - 1."""
        return _part(self, first, last)

    @classmethod
    def of(cls, shares: Sequence["StoredBatch"]) -> "StoredBatch":
        """Several batches of one split as one."""
        first = shares[0]
        if len(shares) == 1:
            return first
        tensors = {name: value for name, value in vars(first).items() if isinstance(value, Tensor)}
        tensors.pop("palette", None)  # they share it
        whole = {name: torch.cat([getattr(each, name) for each in shares]) for name in tensors}
        return replace(first, clips=tuple(c for each in shares for c in each.clips), **whole)

    @property
    def shown(self) -> dict[str, Tensor]:
        """What goes to the network's device: all but what the host alone looks at."""
        names = ("frames", "label_map", "labels", "sound", "palette")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def pinned(self) -> "StoredBatch":
        """The same in pinned memory, from which a GPU is reached without waiting."""
        return replace(self, **{name: value.pin_memory() for name, value in self.shown.items()})

    def sent(self, device: torch.device) -> "StoredBatch":
        """The same on a device. Nobody waits for it to arrive there."""
        return replace(self, **{name: send(value, device) for name, value in self.shown.items()})

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, its Maskiges painted. Nobody waits for it to arrive there."""
        there, maskige = self.sent(device), None
        if there.label_map is not None and there.palette is not None:
            maskige = colour(there.label_map, there.palette)
        return Batch(
            frames=there.frames,
            maskige=maskige,
            labels=there.labels,
            sound=there.sound,
            present=self.present,
            annotated=self.annotated,
            clips=self.clips,
        )


Either = TypeVar("Either", Batch, StoredBatch)


def _part(batch: Either, first: int, last: int) -> Either:
    whole = {n: v for n, v in vars(batch).items() if n != "palette" and v is not None}
    return replace(batch, **{name: value[first:last] for name, value in whole.items()})


@dataclass(frozen=True)
class _Pending:
    rows: np.ndarray
    reads: tuple[Any, ...]


class ClipReader:
    """The clips of one finished split that every stage of a choice could make.

    left_out: names of clips that failed in a stage, with the reason.  labelled: places in `rows`
    of the clips with a label on some frame.  outputs: digest of all that
    each stage wrote, stage -> SHA-256.  unchecked: variants of a store that an older combo wrote,
    whose clips are held against nothing.
    Raises ComboError when a variant is not finished or belongs to another list of clips, or what is
    read here is not what was written.
    """

    def __init__(self, split: Source, choice: Choice) -> None:
        self.split, self.choice = split, choice
        self.plan: Plan = split.plan()
        self.left_out: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.unchecked: list[str] = []
        self._finished = {v.stage: demand_usable(split, v) for v in choice.variants}
        usable = np.ones(len(self.plan.clips), bool)
        for variant in choice.variants:
            finished = self._finished[variant.stage]
            self.left_out |= finished.failed
            self.outputs[variant.stage] = finished.outputs
            if not finished.description and isinstance(split, SplitStore):
                self._look_for_shards(split, variant)
            usable &= self._whole(variant, VALID).astype(bool)
        self.rows = np.flatnonzero(usable)
        if not len(self.rows):
            raise ComboError(
                f"no clip of {split} came through all stages; see: "
                f"{remedies.show(split.data_set, split.split)}"
            )
        self._sound = torch.from_numpy(self._whole(choice.audio, "embedding"))
        self._present = torch.from_numpy(self._whole(choice.frames, "present").astype(bool))
        self._annotated = torch.from_numpy(self._whole(choice.frames, "annotated").astype(bool))
        self.labelled = [
            place for place, row in enumerate(self.rows) if bool(self._annotated[int(row)].any())
        ]
        self._pictures = [self._reader(choice.frames, name) for name in ("frames", "labels")]
        self._palette = None
        if choice.maskige is not None:
            self._pictures.append(self._reader(choice.maskige, "label_map"))
            self._palette = torch.tensor(choice.maskige.attributes["palette"], dtype=torch.uint8)

    def _reader(self, variant: Variant, name: str) -> RowReader:
        return self.split.reader(variant, name, self._finished[variant.stage])

    def _whole(self, variant: Variant, name: str) -> np.ndarray:
        """A small array, [clips, ...]."""
        return self._reader(variant, name).ask(np.arange(len(self.plan.clips))).result()

    def _look_for_shards(self, split: SplitStore, variant: Variant) -> None:
        self.unchecked.append(variant.key)
        missing = missing_shard(split, variant, self.plan)
        if missing is not None:
            raise StoreDamaged(
                f"{missing} is not there; run: {remedies.repair(split.data_set, split.split)}"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def ask(self, clips: Sequence[int]) -> _Pending:
        """Start reading clips, given as positions in `rows`."""
        rows = self.rows[np.asarray(clips)]
        return _Pending(rows, tuple(array.ask(rows) for array in self._pictures))

    @property
    def sound_width(self) -> int:
        """D: numbers of one frame's sound."""
        return self._sound.shape[-1]

    def sound(self, clips: Sequence[int]) -> Tensor:
        """Sound embeddings of clips, given as positions in `rows`: [B, T, D]."""
        return self._sound.index_select(0, torch.from_numpy(self.rows[np.asarray(clips)]))

    def marks(self) -> tuple[Tensor, Tensor]:
        """`present` and `annotated` of all clips in `rows`, [N, T] each."""
        rows = torch.from_numpy(self.rows)
        return self._present.index_select(0, rows), self._annotated.index_select(0, rows)

    def sound_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each of the D numbers over all frames of the split."""
        rows = torch.from_numpy(self.rows)
        heard = self._sound[rows][self._present[rows]]
        return heard.mean(0), heard.std(0, correction=0)

    def take(self, pending: _Pending) -> StoredBatch:
        """Wait for clips asked for."""
        frames, labels, *maps = (torch.from_numpy(read.result()) for read in pending.reads)
        rows = torch.from_numpy(pending.rows)
        # index_select, since tensor[rows] waits for PyTorch's threads, and the cores are busy.
        return StoredBatch(
            frames=frames.permute(0, 1, 4, 2, 3),
            label_map=maps[0] if maps else None,
            labels=labels,
            sound=self._sound.index_select(0, rows),
            present=self._present.index_select(0, rows),
            annotated=self._annotated.index_select(0, rows),
            clips=tuple(self.plan.clips[row] for row in pending.rows),
            palette=self._palette,
        )

    def read(self, clips: Sequence[int]) -> StoredBatch:
        """Clips, given as positions in `rows`."""
        return self.take(self.ask(clips))

    def batches(self, order: Iterable[Sequence[int]], ahead: int = 4) -> Iterator[StoredBatch]:
        """The batches of `order`, with up to `ahead` of them being read meanwhile."""
        pending: deque[_Pending] = deque()
        for clips in order:
            pending.append(self.ask(clips))
            if len(pending) > ahead:
                yield self.take(pending.popleft())
        while pending:
            yield self.take(pending.popleft())


def shuffled(clips: int, batch: int, seed: int, first: int, last: int) -> Iterator[list[int]]:
    """Batches `first` to `last` - 1 of the endless concatenation of shuffled epochs.

    Depends on (clips, batch, seed) alone, so a run that stopped goes on with the same batches.
    """
    order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(clips))
    for iteration in range(first, last):
        places = range(iteration * batch, (iteration + 1) * batch)
        yield [int(order(place // clips)[place % clips]) for place in places]
