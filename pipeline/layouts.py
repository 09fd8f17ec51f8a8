"""Which files make a clip: the only place that knows AVSBench's folders.

A layout turns a root folder into `Clip` records, in the order of the data set's CSV, and opens no
media for it: a million clips are listed in seconds, on a cluster's file system too.

A CSV comes from somewhere else, so what it says becomes a folder's name only when it is one: text
with a separator, `..`, an absolute path or an unprintable character makes the row a clip with a
`problem`, which later is recorded as failed. A symbolic link inside the root is followed: the owner
of the disk has put it there.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

from .errors import ComboError
from .labels import LabelRule
from .media import Fit, FrameSource

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
    """

    names: tuple[str, ...]
    subsets: tuple[str, ...]
    make: Callable[[int], Clip]
    unread: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> "Listing":
        """A listing of clips that are there."""
        return cls(
            tuple(clip.name for clip in clips),
            tuple(clip.subset for clip in clips),
            clips.__getitem__,
            Counter(name for clip in clips for name in clip.unread),
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
        """What lies in clips' folders and is not read, with the number of clips, or ""."""
        most = sorted(self.unread.items(), key=lambda each: -each[1])
        named = [f"{name} in {count} clips" for name, count in most[:shown]]
        more = len(most) - len(named)
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


class Layout(ABC):
    """How one kind of data set lies on the disk, and the rules that are published with it.

    frames_per_clip: the most frames that a clip has.
    sound_rule: which sound belongs to a frame (`combo.model.vggish` has the rules).
    expected: clips a split of the complete published set; empty where there is none.
    reading: raised when the same files of the layout become other frames or other sound; from 2 on
    it is one of the settings of every variant.
    """

    name: str
    frames_per_clip: int
    sound_rule: SoundRule
    expected: Mapping[str, int]
    reading: int = 1
    seconds_per_frame: float = 1.0

    @abstractmethod
    def splits(self, root: Path) -> tuple[str, ...]:
        """The names of the splits. Raises ComboError."""

    @abstractmethod
    def clips(self, root: Path, split: str) -> Listing:
        """All clips of a split, in the data set's order; at least one. Raises ComboError."""

    @abstractmethod
    def classes(self, root: Path) -> list[str]:
        """Names of the classes, the background first. Raises ComboError."""

    def label_rule(self, root: Path) -> LabelRule:
        """How a label image's values become classes: see `labels.read_label`."""
        del root
        return "binary"

    def fit(self, split: str) -> Fit:
        """How frames reach the stored size unless the manifest says otherwise."""
        del split
        return "squash"


Row = Mapping[str, str]
_Rows = Sequence[tuple[int, tuple[str, ...]]]
"""Lines of a CSV, each with its number and some of its cells."""


@dataclass(frozen=True)
class _AVSBench(Layout):
    """What the three subsets share: a CSV with one row a clip, and splits in one of its columns.

    home: the folders in which the set is published; the root may stand before, in or after them.
    columns: those that become folders, the clip's name first.
    """

    name: str
    home: tuple[str, ...]
    table: str
    columns: tuple[str, ...]
    category_column: str
    frames_per_clip: int
    sound_rule: SoundRule
    expected: Mapping[str, int] = field(hash=False)

    def splits(self, root: Path) -> tuple[str, ...]:
        del root
        return tuple(self.expected)

    def clips(self, root: Path, split: str) -> Listing:
        table = self._table(root)
        wanted = (*self.columns, self.category_column)
        splits = _read_csv(table, wanted, self.columns)
        rows = splits.get(split, [])
        names = [_shown_name(line, cells[0]) for line, cells in rows]
        lines: dict[str, int] = {}
        for name, (line, _) in zip(names, rows, strict=True):
            if line != lines.setdefault(name, line):
                raise ComboError(
                    f"{table}: clip {name!r} of split {split!r} stands in lines "
                    f"{lines[name]} and {line}; remove one of them"
                )
        if not rows:
            found = ", ".join(sorted(splits)) or "none"
            raise ComboError(
                f"{table}: no clip of split {split!r} (splits in the file: {found}); leave it out "
                "of this data set's `splits` in data_manifest.yaml or use another file"
            )
        subsets = tuple(self._subset(dict(zip(wanted, cells, strict=True))) for _, cells in rows)
        return Listing(tuple(names), subsets, _Made(self, table, split, wanted, rows))

    def _subset(self, row: Row) -> str:
        """The subset of the clip of a row."""
        del row
        return ""

    def classes(self, root: Path) -> list[str]:
        del root
        return list(BINARY_CLASSES)

    def _table(self, root: Path) -> Path:
        for depth in range(len(self.home) + 1):
            table = root.joinpath(*self.home[depth:], self.table)
            if table.is_file():
                return table
        raise ComboError(
            f"{root / self.table}: no such file; set this data set's `root` in data_manifest.yaml "
            f"to the folder that holds {self.table}, or make a sample: combo sample DIR"
        )

    def clip(self, table: Path, line: int, row: Row, split: str) -> Clip:
        """The clip of a row of the CSV; a cell that is no folder's name is its problem."""
        for column in self.columns:
            if wrong := _not_a_folder_name(row[column]):
                where = f"{table.name} line {line}: {column} {row[column]!r} {wrong}"
                return Clip(_shown_name(line, row[self.columns[0]]), problem=where)
        return self._files(table.parent, row, split)

    @abstractmethod
    def _files(self, home: Path, row: Row, split: str) -> Clip:
        """The clip of a row whose cells are safe folder names."""


@dataclass(frozen=True)
class _Made:
    """Makes the clips of rows (line, cells of `columns`)."""

    layout: _AVSBench
    table: Path
    split: str
    columns: tuple[str, ...]
    rows: "_Rows"

    def __call__(self, place: int) -> Clip:
        line, cells = self.rows[place]
        row = dict(zip(self.columns, cells, strict=True))
        return self.layout.clip(self.table, line, row, self.split)


class _SingleSource(_AVSBench):
    """AVSBench-object, one sounding object a clip (S4). In training only frame 1 is annotated."""

    def _files(self, home: Path, row: Row, split: str) -> Clip:
        name, category = row["name"], row["category"]
        data = home / "s4_data"
        frames = data.joinpath("visual_frames", split, category, name)
        masks = data.joinpath("gt_masks", split, category, name)
        numbers = range(1, self.frames_per_clip + 1)
        return Clip(
            name=name,
            frames=tuple(frames / f"{name}_{n}.png" for n in numbers),
            sound=data.joinpath("audio_wav", split, category, f"{name}.wav"),
            labels=tuple(
                masks / f"{name}_{n}.png" if n == 1 or split != "train" else None for n in numbers
            ),
            category=category,
            times=_seconds(self.frames_per_clip),
            log_mel=data.joinpath("audio_log_mel", split, category, f"{name}.pkl"),
        )


class _MultiSources(_AVSBench):
    """AVSBench-object, several sounding objects a clip (MS3). Every frame is annotated."""

    def _files(self, home: Path, row: Row, split: str) -> Clip:
        name = row["video_id"]
        data = home / "ms3_data"
        numbers = range(1, self.frames_per_clip + 1)
        return Clip(
            name=name,
            frames=tuple(data / "visual_frames" / name / f"{name}.mp4_{n}.png" for n in numbers),
            sound=data / "audio_wav" / split / f"{name}.wav",
            labels=tuple(data / "gt_masks" / split / name / f"{name}_{n}.png" for n in numbers),
            times=_seconds(self.frames_per_clip),
            log_mel=data / "audio_log_mel" / split / f"{name}.pkl",
        )


class _Semantic(_AVSBench):
    """AVSBench-semantic (AVSS): label values are classes; three subsets of 5, 5 and 10 frames."""

    frames_of = {"v1s": 5, "v1m": 5, "v2": 10}  # noqa: RUF012 - not a field

    def classes(self, root: Path) -> list[str]:
        return read_classes(self._table(root).parent / "label2idx.json")

    def label_rule(self, root: Path) -> LabelRule:
        del root
        return "index"

    def fit(self, split: str) -> Fit:
        return "crop" if split == "train" else "squash"

    def _subset(self, row: Row) -> str:
        known = row["label"] in self.frames_of and not _not_a_folder_name(row["uid"])
        return row["label"] if known else ""

    def _files(self, home: Path, row: Row, split: str) -> Clip:
        name, subset = row["uid"], row["label"]
        if subset not in self.frames_of:
            known = ", ".join(self.frames_of)
            return Clip(name, problem=f"{self.table}: label {subset!r} is not one of {known}")
        folder = home / subset / name
        count = self.frames_of[subset]
        annotated = 1 if subset == "v1s" and split == "train" else count
        return Clip(
            name=name,
            frames=tuple(folder / "frames" / f"{t}.jpg" for t in range(count)),
            sound=folder / "audio.wav",
            labels=tuple(
                folder / "labels_semantic" / f"{t}.png" if t < annotated else None
                for t in range(count)
            ),
            subset=subset,
            category=row[self.category_column],
            times=_seconds(count),
        )


S4 = _SingleSource(
    name="avsbench-s4",
    home=("AVSBench_object", "Single-source"),
    table="s4_meta_data.csv",
    columns=("name", "category", "split"),
    category_column="category",
    frames_per_clip=5,
    sound_rule="avsbench",
    expected={"train": 3452, "val": 740, "test": 740},
)
MS3 = _MultiSources(
    name="avsbench-ms3",
    home=("AVSBench_object", "Multi-sources"),
    table="ms3_meta_data.csv",
    columns=("video_id", "split"),
    category_column="",
    frames_per_clip=5,
    sound_rule="avsbench",
    expected={"train": 296, "val": 64, "test": 64},
)
AVSS = _Semantic(
    name="avsbench-avss",
    home=("AVSBench_semantic",),
    table="metadata.csv",
    columns=("uid", "split", "label"),
    category_column="a_obj",
    frames_per_clip=10,
    sound_rule="zeros",
    expected={"train": 8498, "val": 1304, "test": 1554},
)


def layout(name: str, folders: Layout | None = None) -> Layout:
    """The layout of that name. folders: the one that `folders` means, with its settings.

    Raises ComboError for an unknown name.
    """
    from .folders import Folders

    known: dict[str, Layout] = {each.name: each for each in (S4, MS3, AVSS)}
    known["folders"] = folders or Folders()
    if name not in known:
        raise ComboError(f"no layout {name!r}; data_manifest.yaml may name {', '.join(known)}")
    return known[name]


def _seconds(count: int) -> tuple[float, ...]:
    """AVSBench pairs frame t with second t as a whole; the second's middle stands for it."""
    return tuple(t + 0.5 for t in range(count))


def _read_csv(table: Path, columns: Sequence[str], needed: Sequence[str]) -> Mapping[str, _Rows]:
    """The rows of each split: (line, cells of `columns`), stripped and "" where missing.

    needed: those columns that must be there, "split" among them. A table is read once for all its
    splits. Raises ComboError.
    """
    try:
        status = table.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        return _rows_of(table, tuple(columns), tuple(needed), stamp)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComboError(
            f"{table}: cannot be read as CSV ({' '.join(str(error).split())}); use the file that "
            "is published with the data set"
        ) from error


@lru_cache(1)
def _rows_of(
    table: Path, columns: tuple[str, ...], needed: tuple[str, ...], stamp: tuple[int, int]
) -> dict[str, list[tuple[int, tuple[str, ...]]]]:
    del stamp  # another one, another file
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = next((row for row in reader if row), [])
        if missing := [column for column in needed if column not in names]:
            raise ComboError(
                f"{table}: no column {', '.join(missing)} in its first line; use the CSV file "
                "that is published with the data set"
            )
        places = [names.index(column) if column in names else len(names) for column in columns]
        split, width = columns.index("split"), max(places) + 1
        for row in reader:
            if not row:
                continue
            if len(row) < width:
                row += [""] * (width - len(row))
            cells = tuple([row[place].strip() for place in places])
            found.setdefault(cells[split], []).append((reader.line_num, cells))
    return found


def _shown_name(line: int, name: str) -> str:
    """How a clip of this name is called, which need not be a folder's."""
    if name.isprintable():
        return name or f"line {line}"
    return name.encode("unicode_escape").decode()


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


def _not_a_folder_name(text: str) -> str | None:
    """What keeps a CSV's cell from being one folder's name, or None."""
    if not text:
        return "is empty"
    if text in (".", "..") or "/" in text or "\\" in text:
        return "leaves the data set's root or is no single folder's name"
    if not text.isprintable():
        return "holds unprintable characters"
    return None
