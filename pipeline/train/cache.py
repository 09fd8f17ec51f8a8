"""A split's clips in memory, so that nothing is read after the first epoch.

As bytes, as the store has them: S4 at 224 pixels is 5 GB on a GPU. A batch is then picked where it
lies, and the host sends nothing but its clips' numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ...model.interface import label_values
from ...model.transfers import send
from ..errors import ComboError
from .ahead import sent_ahead
from .loader import ClipReader, StoredBatch

Cache = Literal["auto", "device", "host", "none"]

AT_ONCE = 16
"""Clips that are read together while the memory is filled."""
SHARE = 1 / 3
"""Of a GPU's free memory, what `auto` takes."""


def bytes_of(reader: ClipReader) -> int:
    """What a split's pictures and labels take."""
    height, width = reader.choice.frames.settings["size"]
    planes = 4 if reader.choice.maskige is None else 5
    return len(reader) * reader.plan.frames_per_clip * height * width * planes


def chosen(wanted: Cache, reader: ClipReader, device: torch.device) -> Cache:
    """What `auto` means here: `device` on a GPU with the room, else `none`."""
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "none"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if bytes_of(reader) <= SHARE * free else "none"


class KeptClips:
    """All clips of a split, in the memory of a device, or of the host.

    Raises ComboError where there is not enough of it.
    """

    def __init__(self, reader: ClipReader, where: torch.device) -> None:
        starts = range(0, len(reader), AT_ONCE)
        order = [range(first, min(first + AT_ONCE, len(reader))) for first in starts]
        values: list[Tensor] = []
        clips: list[str] = []
        for places, batch in zip(order, reader.batches(order), strict=True):
            read = {
                # A pixel's colours side by side, as the store has them.
                "frames": batch.frames.permute(0, 1, 3, 4, 2),
                "labels": batch.labels,
                "sound": batch.sound,
            }
            if batch.label_map is not None:
                read["label_map"] = batch.label_map
            if places.start == 0:
                self._palette = batch.palette
                self._there = {n: self._room(reader, array, where) for n, array in read.items()}
            for name, array in read.items():
                self._there[name][places.start : places.stop] = array
            values.append(label_values(batch.labels))
            clips += batch.clips
        self._clips, self._values = clips, torch.cat(values)
        self._present, self._annotated = reader.marks()

    @staticmethod
    def _room(reader: ClipReader, like: Tensor, where: torch.device) -> Tensor:
        try:
            return torch.empty((len(reader), *like.shape[1:]), dtype=like.dtype, device=where)
        except RuntimeError as error:  # of a GPU or of the host
            raise ComboError(
                f"{reader.split} takes {bytes_of(reader) / 1e9:.1f} GB, which {where} does not "
                f"have free; add --set cache=none"
            ) from error

    def batches(self, order: Iterable[Sequence[int]]) -> Iterator[StoredBatch]:
        """The batches of `order`, given as `ClipReader.batches` takes them."""
        for clips in order:
            here = torch.tensor(clips)
            there = send(here, self._there["frames"].device)
            picked = {name: all.index_select(0, there) for name, all in self._there.items()}
            yield StoredBatch(
                frames=picked["frames"].permute(0, 1, 4, 2, 3),
                label_map=picked.get("label_map"),
                labels=picked["labels"],
                sound=picked["sound"],
                present=self._present.index_select(0, here),
                annotated=self._annotated.index_select(0, here),
                clips=tuple(self._clips[clip] for clip in clips),
                palette=self._palette,
                values=self._values.index_select(0, here),
            )


def batches(
    reader: ClipReader, order: Iterable[Sequence[int]], wanted: Cache, device: torch.device
) -> Iterator[StoredBatch]:
    """The same batches of `order` from memory or read ahead; wanted: `TrainSettings.cache`.

    Those for a GPU are there, or on their way.
    """
    kept = chosen(wanted, reader, device)
    if kept == "device":
        return KeptClips(reader, device).batches(order)
    of_host = reader if kept == "none" else KeptClips(reader, torch.device("cpu"))
    read = of_host.batches(order)
    return sent_ahead(read, device) if device.type == "cuda" else read
