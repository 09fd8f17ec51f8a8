"""What a layout is: a root folder in, `Clip` records out; opens no media for it."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

from ..errors import ComboError, counted
from ..media.labels import LabelRule
from ..media.pictures import Fit, FrameSource

SoundRule = Literal["avsbench", "zeros", "centred"]

BINARY_CLASSES = ("background", "object")
MAX_CLASSES = 255
"""Labels are bytes and 255 is no class: it marks pixels without a label."""


@dataclass(frozen=True)
class Clip:
    """The files of one clip. Frame t, label t and second t belong together.

    name: unique in its split; as the data set writes it.
    sound: a sound file, or a video file whose sound track is meant; None where there is none.
    labels: one entry a frame, None where the frame is not annotated.
    subset, category: as the data set says, or "".
    times: seconds, one a frame; the middle of the sound that belongs to the frame. Those of a video
    are on its file's clock (see `clock`).
    span: seconds that a frame stands for, half of them before its time.
    log_mel: where AVSBench-object keeps the clip's log-mel patches as a pickle.
    problem: why the listing already knows that the clip cannot be read; then it has no frames.
    unread: what lies in the clip's folder and is not read, such as `masks/`.
    """

    name: str
    frames: tuple[FrameSource, ...] = ()
    sound: Path | None = None
    labels: tuple[Path | None, ...] = ()
    subset: str = ""
    category: str = ""
    times: tuple[float, ...] = ()
    span: float = 1.0
    log_mel: Path | None = None
    problem: str | None = None
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing(Sequence[Clip]):
    """The clips of a split, in order; each is made when it is asked for.

    A million rows are listed in seconds, since nobody asks for a million clips at once.
    names, subsets: of every clip.  make: the clip at a place; can be sent to other processes.
    unread: how many clips have what that is not read.
    beside: what lies beside the clips, or the splits' folders, and is not read.
    """

    names: tuple[str, ...]
    subsets: tuple[str, ...]
    make: Callable[[int], Clip]
    unread: Mapping[str, int] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @classmethod
    def of(cls, clips: Sequence[Clip], beside: Sequence[str] = ()) -> "Listing":
        """A listing of clips that are there."""
        return cls(
            tuple(clip.name for clip in clips),
            tuple(clip.subset for clip in clips),
            clips.__getitem__,
            Counter(name for clip in clips for name in clip.unread),
            tuple(beside),
        )

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        places = range(len(self.names))[index]
        return self.make(places) if isinstance(places, int) else [self.make(p) for p in places]

    def named_unread(self, shown: int = 5) -> str:
        """What lies in or beside clips' folders and is not read, or ""."""
        most = sorted(self.unread.items(), key=lambda each: -each[1])
        found = [f"{name} in {counted(count, 'clip')}" for name, count in most]
        found += self.beside
        named = found[:shown]
        more = len(found) - len(named)
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


class Layout(ABC):
    """How one kind of data set lies on the disk, and the rules that are published with it.

    frames_per_clip: the most frames that a clip has; 0: as many as the longest.
    sound_rule: which sound belongs to a frame (`combo.model.vggish` has the rules).
    expected: clips a split of the complete published set; empty where there is none.
    reading: raised when the same files of the layout become other frames or other sound; from 2 on
    it is one of the settings of every variant.
    cut: longer clips are cut into parts of so many frames; 0: they are not.
    """

    name: str
    frames_per_clip: int
    sound_rule: SoundRule
    expected: Mapping[str, int]
    reading: int = 1
    seconds_per_frame: float = 1.0
    cut: int = 0

    @abstractmethod
    def splits(self, root: Path) -> tuple[str, ...]:
        """The names of the splits. Raises ComboError."""

    @abstractmethod
    def clips(self, root: Path, split: str) -> Listing:
        """All clips of a split, in the data set's order; at least one. Raises ComboError."""

    @abstractmethod
    def classes(self, root: Path) -> list[str]:
        """Names of the classes, the background first. Raises ComboError."""

    def longest(self, clips: Listing) -> int:
        """How many frames a clip of this listing has at most."""
        del clips
        return self.frames_per_clip

    def label_rule(self, root: Path) -> LabelRule:
        """How a label image's values become classes: see `labels.read_label`."""
        del root
        return "binary"

    def fit(self, split: str) -> Fit:
        """How frames reach the stored size unless the manifest says otherwise."""
        del split
        return "squash"


def read_classes(path: Path) -> list[str]:
    """Class names from a JSON mapping of names to 0..n-1, in the order of their numbers."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ComboError(
            f"{path}: no such file; it names the classes and is published with the data set"
        ) from None
    except (OSError, ValueError) as error:
        raise ComboError(f"{path}: cannot be read as JSON ({error}); replace it") from error
    numbers = sorted(value.values()) if _is_numbering(value) else []
    if not numbers or numbers != list(range(len(numbers))) or len(numbers) > MAX_CLASSES:
        raise ComboError(
            f"{path}: must be a mapping of class names to the numbers 0, 1, 2, ... without a gap, "
            f"{MAX_CLASSES} at most"
        )
    return sorted(value, key=value.__getitem__)


def _is_numbering(value: object) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())
