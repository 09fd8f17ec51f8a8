"""Which files make a clip: the only place that knows AVSBench's folders.

A layout turns a root folder into `Clip` records, in the order of the data set's CSV, and opens no
media for it: ten thousand clips are listed in a moment, on a cluster's file system too.

A CSV comes from somewhere else, so what it says becomes a folder's name only when it is one: text
with a separator, `..`, an absolute path or an unprintable character makes the row a clip with a
`problem`, which later is recorded as failed. A symbolic link inside the root is followed: the owner
of the disk has put it there.
"""

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .errors import ComboError, MediaError
from .media import Fit, FrameSource, LabelRule, VideoFrame, video_seconds

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
    times: seconds, one a frame; the middle of the sound that belongs to the frame.
    log_mel: where AVSBench-object keeps the clip's log-mel patches as a pickle.
    problem: why the listing already knows that the clip cannot be read; then it has no frames.
    """

    name: str
    frames: tuple[FrameSource, ...] = ()
    sound: Path | None = None
    labels: tuple[Path | None, ...] = ()
    subset: str = ""
    category: str = ""
    times: tuple[float, ...] = ()
    log_mel: Path | None = None
    problem: str | None = None


class Layout(ABC):
    """How one kind of data set lies on the disk, and the rules that are published with it.

    frames_per_clip: the most frames that a clip has.
    sound_rule: which sound belongs to a frame (`combo.model.vggish` has the rules).
    expected: clips a split of the complete published set; empty where there is none.
    """

    name: str
    frames_per_clip: int
    sound_rule: SoundRule
    expected: Mapping[str, int]
    seconds_per_frame: float = 1.0

    @abstractmethod
    def splits(self, root: Path) -> tuple[str, ...]:
        """The names of the splits. Raises ComboError."""

    @abstractmethod
    def clips(self, root: Path, split: str) -> list[Clip]:
        """All clips of a split, in the data set's order; at least one. Raises ComboError."""

    @abstractmethod
    def classes(self, root: Path) -> list[str]:
        """Names of the classes, the background first. Raises ComboError."""

    def label_rule(self, root: Path) -> LabelRule:
        """How a label image's values become classes: see `media.read_label`."""
        del root
        return "binary"

    def fit(self, split: str) -> Fit:
        """How frames reach the stored size unless the manifest says otherwise."""
        del split
        return "squash"


Row = Mapping[str, str]


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

    def clips(self, root: Path, split: str) -> list[Clip]:
        table = self._table(root)
        rows = _read_csv(table, self.columns, self.category_column)
        clips: list[Clip] = []
        lines: dict[str, int] = {}
        for line, row in rows:
            if row["split"] != split:
                continue
            clip = self._clip(table, line, row, split)
            if clip.name in lines:
                raise ComboError(
                    f"{table}: clip {clip.name!r} of split {split!r} stands in lines "
                    f"{lines[clip.name]} and {line}; remove one of them"
                )
            lines[clip.name] = line
            clips.append(clip)
        if not clips:
            found = ", ".join(sorted({row["split"] for _, row in rows})) or "none"
            raise ComboError(
                f"{table}: no clip of split {split!r} (splits in the file: {found}); leave it out "
                "of this data set's `splits` in data_manifest.yaml or use another file"
            )
        return clips

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

    def _clip(self, table: Path, line: int, row: Row, split: str) -> Clip:
        name = row[self.columns[0]]
        for column in self.columns:
            if wrong := _not_a_folder_name(row[column]):
                where = f"{table.name} line {line}: {column} {row[column]!r} {wrong}"
                shown = name if name.isprintable() else name.encode("unicode_escape").decode()
                return Clip(shown or f"line {line}", problem=where)
        return self._files(table.parent, row, split)

    @abstractmethod
    def _files(self, home: Path, row: Row, split: str) -> Clip:
        """The clip of a row whose cells are safe folder names."""


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
        return _read_classes(self._table(root).parent / "label2idx.json")

    def label_rule(self, root: Path) -> LabelRule:
        del root
        return "index"

    def fit(self, split: str) -> Fit:
        return "crop" if split == "train" else "squash"

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


IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif"})
VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg"})
SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".wma"})


@dataclass(frozen=True)
class Folders(Layout):
    """One folder a clip: ROOT/CLIP/ or ROOT/SPLIT/CLIP/, in natural order (clip2 before clip10).

    A clip's folder holds its frames, as images in natural order or as one video file, of which a
    frame is taken every `seconds_per_frame`: the middle one of each such span, or with
    `anchor="start"` its first. A shorter video gives one frame. It holds one sound file; without
    one, the video's sound track is meant. Label images may lie in `labels/`, named as the frames;
    a video's frames are named 0, 1, 2, ... Frames without one are not annotated.

    With ROOT/label2idx.json (as AVSS has it) a label's value is the class; without it 255 is the
    object. Splits are the sub-folders that hold clip folders, or "all" when ROOT holds the clips.
    Listing opens the videos' headers. A clip with more than `frames_per_clip` frames has a problem:
    nothing is cut off in silence.
    """

    frames_per_clip: int = 10
    seconds_per_frame: float = 1.0
    anchor: Literal["centre", "start"] = "centre"
    sound_rule: SoundRule = "centred"
    name: str = "folders"
    expected: Mapping[str, int] = field(default_factory=dict, hash=False)

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(self._homes(root))

    def clips(self, root: Path, split: str) -> list[Clip]:
        homes = self._homes(root)
        if split not in homes:
            raise ComboError(
                f"{root}: no split {split!r} in it, it has {', '.join(homes)}; correct this data "
                "set's `splits` in data_manifest.yaml"
            )
        return [self._clip(folder) for folder in _folders(homes[split])]

    def _homes(self, root: Path) -> dict[str, Path]:
        """The folder that holds a split's clip folders, by the split's name."""
        folders = _folders(root)
        clips = [f for f in folders if _has_media(f)]
        splits = [f for f in folders if f not in clips and any(map(_has_media, _folders(f)))]
        if clips and splits:
            raise ComboError(
                f"{root}: holds clips ({clips[0].name}) and folders of clips ({splits[0].name}); "
                "move the clips into a folder of their own, one for each split"
            )
        if not clips and not splits:
            raise ComboError(
                f"{root}: no clip in it; put each clip's frames (images or a video) and sound into "
                "a folder of its own, ROOT/CLIP/ or ROOT/SPLIT/CLIP/"
            )
        return {f.name: f for f in splits} or {"all": root}

    def classes(self, root: Path) -> list[str]:
        table = root / "label2idx.json"
        return _read_classes(table) if table.exists() else list(BINARY_CLASSES)

    def label_rule(self, root: Path) -> LabelRule:
        return "index" if (root / "label2idx.json").exists() else "binary"

    def _clip(self, folder: Path) -> Clip:
        try:
            return self._read_folder(folder)
        except ComboError as error:
            return Clip(folder.name, problem=str(error))

    def _read_folder(self, folder: Path) -> Clip:
        files = [f for f in _visible(folder) if f.is_file()]
        images, videos, sounds = (
            [f for f in files if f.suffix.lower() in kinds] for kinds in (IMAGES, VIDEOS, SOUNDS)
        )
        for kind, found in (("video", videos), ("sound", sounds)):
            if len(found) > 1:
                names = ", ".join(f.name for f in found)
                raise ComboError(f"{folder}: more than one {kind} file ({names}); leave one")
        frames: tuple[FrameSource, ...] = tuple(images)
        names = [f.stem for f in images]
        times = self._moments(len(images), len(images) * self.seconds_per_frame)
        if videos and not images:
            length = video_seconds(videos[0])
            times = self._moments(max(1, int(length / self.seconds_per_frame + 1e-6)), length)
            frames = tuple(VideoFrame(videos[0], t) for t in times)
            names = [str(n) for n in range(len(times))]
        if not frames:
            raise MediaError(folder, "no frame images and no video in the clip's folder")
        if len(frames) > self.frames_per_clip:
            raise ComboError(
                f"{folder}: {len(frames)} frames, more than {self.frames_per_clip}; raise this "
                "data set's `frames_per_clip` in data_manifest.yaml or cut the clip"
            )
        source = sounds or videos
        return Clip(
            name=folder.name,
            frames=frames,
            sound=source[0] if source else None,
            labels=_labels(folder / "labels", names),
            times=times,
        )

    def _moments(self, count: int, length: float) -> tuple[float, ...]:
        shift = 0.0 if self.anchor == "start" else min(self.seconds_per_frame, length) / 2
        return tuple(n * self.seconds_per_frame + shift for n in range(count))


def layout(name: str, folders: Folders | None = None) -> Layout:
    """The layout of that name. folders: the settings of the layout `folders`.

    Raises ComboError for an unknown name.
    """
    known: dict[str, Layout] = {each.name: each for each in (S4, MS3, AVSS, folders or Folders())}
    if name not in known:
        raise ComboError(f"no layout {name!r}; data_manifest.yaml may name {', '.join(known)}")
    return known[name]


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder in natural order, hidden files left out. Raises ComboError."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ComboError(
            f"{folder}: cannot be listed ({error.strerror}); set this data set's `root` in "
            "data_manifest.yaml to the folder that holds the clips"
        ) from error
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name)
    numbers = [(False, int(p), "") if p.isdecimal() else (True, 0, p.lower()) for p in parts]
    return numbers, path.name


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _has_media(folder: Path) -> bool:
    kinds = IMAGES | VIDEOS | SOUNDS
    return any(path.suffix.lower() in kinds and path.is_file() for path in _visible(folder))


def _labels(folder: Path, names: Sequence[str]) -> tuple[Path | None, ...]:
    """The label image of each frame, by name. Raises MediaError for one without a frame."""
    if not folder.is_dir():
        return (None,) * len(names)
    found: dict[str, Path] = {}
    for path in _visible(folder):
        if path.suffix.lower() not in IMAGES:
            continue
        if path.stem not in names:
            raise MediaError(path, "label of no frame, it must be named as its frame is")
        if path.stem in found or names.count(path.stem) > 1:
            raise MediaError(path, "more than one label or frame of this name")
        found[path.stem] = path
    return tuple(found.get(name) for name in names)


def _seconds(count: int) -> tuple[float, ...]:
    """AVSBench pairs frame t with second t as a whole; the second's middle stands for it."""
    return tuple(t + 0.5 for t in range(count))


def _read_csv(table: Path, columns: Sequence[str], extra: str) -> list[tuple[int, Row]]:
    """(line, row) for every row, cells of `columns` and `extra` stripped and "" where missing.

    extra: a column that may be absent.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise ComboError(
                    f"{table}: no column {', '.join(missing)} in its first line; use the CSV file "
                    "that is published with the data set"
                )
            wanted = (*columns, extra)
            return [
                (reader.line_num, {c: (row.get(c) or "").strip() for c in wanted}) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComboError(
            f"{table}: cannot be read as CSV ({' '.join(str(error).split())}); use the file that "
            "is published with the data set"
        ) from error


def _read_classes(path: Path) -> list[str]:
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
