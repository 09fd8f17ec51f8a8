"""AVSBench's three subsets: with `published`, the only place that knows their folders.

Clips come in the order of the data set's CSV: a million are listed in seconds, on a cluster's file
system too.

A CSV comes from somewhere else, so what it says becomes a folder's name only when it is one: text
with a separator, `..`, an absolute path or an unprintable character makes the row a clip with a
`problem`, which later is recorded as failed. A symbolic link inside the root is followed: the owner
of the disk has put it there.
"""

import csv
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..errors import ComboError
from ..media.labels import LabelRule
from ..media.pictures import Fit
from .layout import BINARY_CLASSES, Clip, Layout, Listing, SoundRule, read_classes

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


def _not_a_folder_name(text: str) -> str | None:
    """What keeps a CSV's cell from being one folder's name, or None."""
    if not text:
        return "is empty"
    if text in (".", "..") or "/" in text or "\\" in text:
        return "leaves the data set's root or is no single folder's name"
    if not text.isprintable():
        return "holds unprintable characters"
    return None
