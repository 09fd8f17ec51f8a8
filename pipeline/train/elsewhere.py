"""A network on data that it was not trained for: other classes, longer clips.

Classes are told by their names. Where one side knows objects only ("object" against everything
else) and the other has classes, both are taken for objects. Clips of more frames than
the network was trained with are cut into windows, as `combo predict` cuts films.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model.interface import Network
from ..errors import ComboError
from ..layouts.layout import BINARY_CLASSES
from ..media.labels import LABEL_IGNORED
from ..source import Source, Variant, choose_variants, open_source, remake, usable
from ..store import UNASKED
from .evaluate import open_run
from .loader import ClipReader, StoredBatch
from .run_folder import RunData, RunFolder
from .windows import RunningMean, Windows

OF_THE_DATA = {*UNASKED, "fit", "windows", "reading"}
"""Settings of a stage that are the data set's own, not the network's."""


def clips_of(run: RunFolder, data: RunData) -> tuple[int, list[str]]:
    """How many frames the clips had that a run was trained on, and the names of its classes."""
    if "frames_per_clip" in data and "classes" in data:
        return data["frames_per_clip"], data["classes"]
    try:
        plan = open_source(Path(data["store"]), data["data_set"], "train").plan()
    except ComboError as error:
        raise ComboError(
            f"{run.root} is of an older combo, whose runs leave it to their store how long "
            f"clips are and what classes are called: {error}"
        ) from None
    return plan.frames_per_clip, list(plan.classes)


@dataclass(frozen=True)
class Naming:
    """Which classes of a network are which of a data set.

    taken: for each class of the data set, the network's numbers that are it; none where it knows
    no such class.  objects: the data set's classes count as one.  said: all that in words.
    """

    taken: tuple[tuple[int, ...], ...]
    objects: bool
    said: str

    @classmethod
    def of(cls, network: Sequence[str], data: Sequence[str]) -> "Naming | None":
        """None where both have the same classes. Raises ComboError for none in common."""
        if list(network) == list(data):
            return None
        others = tuple(range(1, len(network)))
        if 2 in (len(network), len(data)) and "object" in (*network[1:], *data[1:]):
            said = "the network's" if len(data) == 2 else "the data set's"
            return cls(((0,), others), len(data) > 2, f"any of {said} classes counts as an object")
        taken = tuple((network.index(n),) if n in network else () for n in data)
        known = [name for name, numbers in zip(data, taken, strict=True) if numbers]
        if len(known) < 2:
            raise ComboError(
                f"the network and the data set have no class in common: {', '.join(network[1:6])} "
                f"... and {', '.join(data[1:6])} ..."
            )
        unknown = [name for name in data if name not in known]
        more = [name for name in network if name not in known]
        said = f"{len(known)} of the data set's {len(data)} classes are the network's, by name"
        if unknown:
            said += f"; never predicted: {', '.join(unknown)}"
        if more:
            said += f"; left out of the network's: {', '.join(more)}"
        return cls(taken, False, said)


class ObjectReader(ClipReader):
    """Clips whose classes all count as one object."""

    def __init__(self, source: Source, choice: Any) -> None:
        super().__init__(source, choice)
        self.plan = replace(self.plan, classes=BINARY_CLASSES)

    def take(self, pending: Any) -> StoredBatch:
        batch = super().take(pending)
        labels = batch.labels
        return replace(
            batch, labels=torch.where(labels == LABEL_IGNORED, labels, labels.clamp(max=1))
        )


class Elsewhere(Network):
    """A network that takes longer clips and speaks of a data set's classes.

    length: frames of a clip that it was trained with.  naming: None for its own classes.
    """

    def __init__(self, network: Network, length: int, naming: Naming | None) -> None:
        super().__init__()
        self.network, self.length, self.naming = network, length, naming

    def forward(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Scores [B, T, K, H, W], of the data set's classes."""
        return torch.stack([*self.clip_scores(frames, maskige, sound, valid)])

    def clip_scores(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Iterator[Tensor]:
        """As `Network.clip_scores`; as many windows at once as there are clips."""
        clips, most = frames.shape[:2]
        counts = [most] * clips if valid is None else valid.sum(dim=1).tolist()
        windows = [
            (clip, begin, end)
            for clip, count in enumerate(counts)
            for begin, end, _ in Windows(count, self.length).spans()
        ]
        scored = self._windows(windows, frames, maskige, sound)
        for clip, of_clip in groupby(zip(windows, scored, strict=True), lambda each: each[0][0]):
            means = RunningMean()
            for (_, begin, end), scores in of_clip:
                for place, each in zip(range(begin, end), scores, strict=False):
                    means.add(place, each)
            found = torch.stack([mean for _, mean in means.take(counts[clip])])
            missing = found.new_zeros((most - counts[clip], *found.shape[1:]))
            yield self._renamed(torch.cat([found, missing]))

    def _windows(
        self,
        windows: Sequence[tuple[int, int, int]],
        frames: Tensor,
        maskige: Tensor | None,
        sound: Tensor,
    ) -> Iterator[Tensor]:
        """The network's scores of each window (clip, begin, end), [length, K, H, W]."""
        length = min(self.length, frames.shape[1])
        for first in range(0, len(windows), len(frames)):
            some = windows[first : first + len(frames)]

            def cut(of: Tensor, some: Sequence[tuple[int, int, int]] = some) -> Tensor:
                return torch.stack([of[clip, begin : begin + length] for clip, begin, _ in some])

            there = torch.stack([torch.arange(begin, begin + length) < e for _, begin, e in some])
            seen = None if maskige is None else cut(maskige)
            yield from self.network.clip_scores(cut(frames), seen, cut(sound), there)

    def scores(self, out: Tensor) -> Tensor:
        return out

    def _renamed(self, scores: Tensor) -> Tensor:
        """[T, K, H, W] of the network's classes -> of the data set's; a class that it does not know
        has the lowest score of all there is, 0."""
        if self.naming is None:
            return scores
        nothing = torch.zeros_like(scores[:, 0])
        named = [
            scores[:, list(numbers)].amax(1) if numbers else nothing
            for numbers in self.naming.taken
        ]
        return torch.stack(named, 1)


def in_windows(network: Network, reader: ClipReader, length: int) -> Network:
    """The network, for clips that may be longer than the `length` it was trained with."""
    longer = reader.plan.frames_per_clip > length
    return Elsewhere(network, length, None) if longer else network


def open_run_for(run: RunFolder, reader: ClipReader, device: torch.device) -> Network:
    """A run's network, as `open_run`, for a split of its data set."""
    return in_windows(open_run(run, device), reader, length_for(run.data(), reader))


def length_for(data: RunData, reader: ClipReader) -> int:
    """Frames of the clips that a run was trained with; older runs do not say it."""
    return data.get("frames_per_clip", reader.plan.frames_per_clip)


def open_elsewhere(
    run: RunFolder,
    data_set: str,
    split: str,
    store: Path | None = None,
    named: Mapping[str, str] | None = None,
) -> tuple[ClipReader, Naming | None]:
    """A split of another data set than a run's own, made with the same stages and weights.

    What is the data set's own may differ: how frames are fitted, which windows of sound are a
    frame's. Raises ComboError: no such split, no stage that fits, no class in common.
    """
    data = run.data()
    _, classes = clips_of(run, data)
    source = open_source(store or Path(data["store"]), data_set, split)
    naming = Naming.of(classes, source.plan().classes)
    chosen = dict(named or {})
    like = next(iter(data["settings"].values()))
    for stage, settings in like.items():
        fits = [
            variant.name
            for variant in source.variants(stage)
            if _own(variant.settings) == _own(settings)
            and dict(variant.weights) == data["weights"][stage]
            and usable(source, variant)
        ]
        if stage not in chosen and len(fits) != 1:
            raise ComboError(_unlike(source, stage, settings, fits, run))
        chosen.setdefault(stage, fits[0] if fits else "")
    choice = choose_variants(source, {stage: {} for stage in like}, chosen)
    reader = ObjectReader if naming is not None and naming.objects else ClipReader
    return reader(source, choice), naming


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in OF_THE_DATA}


def _unlike(
    source: Source, stage: str, settings: Mapping[str, Any], fits: Sequence[str], run: RunFolder
) -> str:
    if fits:
        return (
            f"several variants of {stage} fit {source}: {', '.join(fits)}; "
            f"choose one with --variant {stage}=NAME"
        )
    there: list[Variant] = source.variants(stage)
    return (
        f"no finished {stage} of {source} in {source.store} is as {run.root} was trained with "
        f"(there: {', '.join(v.name for v in there) or 'none'}); with the stages of its manifest, "
        f"run: {remake(source, stage, settings)}"
    )
