"""combo as a library: what `import combo` gives, each a few lines over what the commands use.

`predict` and `Combo.from_run` take a trained run, `open_store` what `combo preprocess` has made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from .. import model
from .durable import absolute
from .errors import ComboError
from .media.images import Pixels
from .predict.inputs import found, open_film
from .predict.predictor import Frame, Predictor
from .source import Choice, choose_variants, open_source, sources_in, usable
from .train.loader import ClipReader, StoredBatch

if TYPE_CHECKING:
    StrPath = str | PathLike[str]


class Combo(model.Combo):
    """`combo.model.Combo`, which can come from a run, too."""

    @classmethod
    def from_run(cls, run: "StrPath", device: str = "cpu") -> Self:
        """The network of a run in eval mode: its best, or that of a checkpoint in its folder.

        Raises ComboError: no run, damaged, another network than COMBO.
        """
        from .devices import choose_device
        from .train import checkpoint
        from .train.run_folder import checkpoint_of

        folder, file = checkpoint_of(Path(run))
        settings = folder.settings().network
        if not isinstance(settings, model.ComboSettings):
            raise ComboError(f"{folder.root} is a run of another network than COMBO")
        network = cls(settings)
        checkpoint.load_network(file, network)
        return network.to(choose_device(device)).eval()


def predict(
    run: "StrPath",
    path: "StrPath",
    *,
    fps: float = 1.0,
    device: str = "auto",
    generator: str | None = None,
    data_set: str | None = None,
) -> Iterator[Frame]:
    """Frames and masks of a video, or of a folder of frames with a sound file, in order.

    run: a run's folder, or a checkpoint; see `predict.trained.trained`.  fps: predicted frames a
    second.  device: of all networks.  generator: of Maskiges, only for a run that was trained on
    imported ones.  data_set: whose stages a file outside of its run was trained with.
    The video is decoded while frames are asked for; no more than one clip of them is held. Frames
    around which there is no sound are left out.
    Raises ComboError at once: no run, no video, weights missing, no sound; later MediaError for a
    picture that cannot be decoded.
    """
    file, *others = found([str(path)])
    if others:
        raise ComboError(f"{path} holds several videos or clips; give one after the other")
    predictor, film = Predictor(Path(run), device, generator, data_set), open_film(file, fps)
    return predictor.frames(film, predictor.hear(film))


@dataclass(frozen=True)
class StoredClip:
    """One clip of a store. T is its own number of frames.

    frames: [T,H,W,3] uint8 RGB.  labels: [T,H,W] uint8, classes, 255 where nothing is labelled.
    annotated: [T] bool, frames with a label.  sound: [T,D] float32.  label_map: [T,H,W] uint8, and
    palette [256,3] uint8, of which a Maskige is painted; None where the store has none.
    """

    name: str
    frames: Pixels
    labels: Pixels
    annotated: NDArray[np.bool_]
    sound: NDArray[np.float32]
    label_map: Pixels | None
    palette: Pixels | None

    @property
    def maskige(self) -> Pixels | None:
        """[T,H,W,3] uint8 RGB."""
        painted = self.label_map is not None and self.palette is not None
        return self.palette[self.label_map] if painted else None  # pyright: ignore[reportOptionalSubscript]


class StoredSplit(Sequence[StoredClip]):
    """The clips of a split that came through every stage, each read when it is asked for.

    classes: their names, the background first.  left_out: failed clips and why.
    Can be sent to other processes, which open the store anew.
    """

    def __init__(self, store: Path, name: str, variants: Mapping[str, str]) -> None:
        self._store, self.name, self._variants = store, name, dict(variants)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredSplit, (self._store, self.name, self._variants)

    def __repr__(self) -> str:
        return f"<{self.name} of {self._store}>"

    @cached_property
    def reader(self) -> ClipReader:
        """What training reads. Raises ComboError: unfinished, or several variants of a stage."""
        data_set, _, split = self.name.partition("/")
        source = open_source(self._store, data_set, split)
        stages = {variant.stage: {} for variant in source.variants() if usable(source, variant)}
        chosen = dict(self._variants)
        for stage in stages:
            of_stage = [v.name for v in source.variants(stage) if usable(source, v)]
            if stage not in chosen and len(of_stage) == 1:
                chosen[stage] = of_stage[0]
            elif stage not in chosen:
                raise ComboError(
                    f"{self.name} has several {stage}: {', '.join(of_stage)}; choose one: "
                    f"combo.open_store(PATH, variants={{{stage!r}: {of_stage[0]!r}}})"
                )
        wanted: dict[str, Mapping[str, Any]] = {"frames": {}, "audio": {}, **stages}
        choice: Choice = choose_variants(source, wanted, chosen)
        return ClipReader(source, choice)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reader.plan.classes

    @property
    def left_out(self) -> Mapping[str, str]:
        return self.reader.left_out

    def __len__(self) -> int:
        return len(self.reader)

    @overload
    def __getitem__(self, index: int) -> StoredClip: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredClip]: ...
    def __getitem__(self, index: int | slice) -> StoredClip | list[StoredClip]:
        places = range(len(self))[index]
        return _clip(self.batch(places)) if isinstance(places, int) else [self[p] for p in places]

    def batch(self, place: int) -> StoredBatch:
        """One clip as the trainer gets it, T the most frames of any clip."""
        return self.reader.read([place])

    def dataset(self) -> "ClipDataset":
        """The split for a `torch.utils.data.DataLoader`."""
        return ClipDataset(self)


class ClipDataset(Dataset[dict[str, Any]]):
    """A split's clips as tensors that PyTorch's loader can put into batches.

    A clip is a dictionary: `name`; `frames` and, where the store has any, `maskige` [T,3,H,W] uint8
    RGB; `labels` [T,H,W] uint8, 255 is ignored; `sound` [T,D] float32; `present` and `annotated`
    [T] bool: frames that the clip has, and those with labels. T is the most frames of any clip.
    With `num_workers` take `multiprocessing_context="spawn"`: the store is read by threads, which
    a forked process does not have.
    """

    def __init__(self, split: StoredSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.split.batch(range(len(self))[index])
        batch = stored.to(torch.device("cpu"))
        names = ("frames", "maskige", "labels", "sound", "present", "annotated")
        arrays = {name: getattr(batch, name) for name in names}
        tensors = {name: value[0] for name, value in arrays.items() if value is not None}
        return {"name": batch.clips[0], **tensors}


class OpenStore(Mapping[str, StoredSplit]):
    """A store, or a file packed from one: "DATA_SET/SPLIT" -> its clips."""

    def __init__(self, path: Path, variants: Mapping[str, str]) -> None:
        self.path, self._variants = path, variants
        self._names = [f"{each.data_set}/{each.split}" for each in sources_in(path)]

    def __getitem__(self, name: str) -> StoredSplit:
        """Raises ComboError for a split that is not there."""
        if name not in self._names:
            there = ", ".join(self._names) or "nothing"
            raise ComboError(f"{self.path} holds no {name!r}; there is {there}")
        return StoredSplit(self.path, name, self._variants)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def open_store(path: "StrPath", variants: Mapping[str, str] | None = None) -> OpenStore:
    """The finished clips of a store, or of a file that `combo pack` made: read, never written.

    variants: stage -> name, where a stage has several. Raises ComboError: nothing there.
    """
    store = absolute(Path(path))
    if not store.exists():
        raise ComboError(f"{store}: no such store; make one with combo preprocess all")
    return OpenStore(store, variants or {})


def _clip(stored: StoredBatch) -> StoredClip:
    """A clip alone, without the frames that it does not have."""
    there = stored.present[0]

    def own(tensor: torch.Tensor) -> Any:
        return tensor[0][there].numpy()

    return StoredClip(
        name=stored.clips[0],
        frames=own(stored.frames.permute(0, 1, 3, 4, 2)),
        labels=own(stored.labels),
        annotated=own(stored.annotated),
        sound=own(stored.sound),
        label_map=None if stored.label_map is None else own(stored.label_map),
        palette=None if stored.palette is None else stored.palette.numpy(),
    )
