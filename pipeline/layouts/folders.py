"""The user's own clips: a folder or a video each, in whatever state people's folders are.

What lies in a clip's folder and looks like media is used, fails the clip by its name, or is named
as not read: a frame that is passed over in silence puts every later one beside the sound of another
second. So a link to nowhere is a missing file, a picture of a strange kind is an error, and numbers
of frames must be even.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal

from ..errors import ComboError, MediaError, readable
from ..media.labels import LabelRule
from ..media.limits import USUAL, Limits
from ..media.pictures import FrameSource
from ..media.regular_files import missing
from ..media.video import VideoFrame, video_span
from .layout import BINARY_CLASSES, Clip, Layout, Listing, SoundRule, read_classes
from .numbering import composed, demand_even_numbers, natural_order


def _endings(text: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in text.split())


IMAGES = _endings(
    "png apng jpg jpeg jpe jfif mpo bmp dib webp tif tiff ppm pgm pbm pnm gif jp2 j2k jpf jpx j2c "
    "jpc heic heif hif avif"
)
VIDEOS = _endings(
    "mp4 mkv webm mov avi m4v mpg mpeg mpe m1v m2v mts m2ts m2t ts vob 3gp 3g2 flv f4v wmv asf ogv "
    "mxf dv rm rmvb nut ivf qt divx 264 h264 265 h265 hevc y4m ogm mj2 tp trp tod mod mjpeg mjpg "
    "wtv amv gxf"
)
SOUNDS = _endings(
    "wav wave flac ogg oga opus spx mp3 mp2 m4a m4b aac wma aif aiff aifc au snd caf w64 rf64 amr "
    "awb ac3 eac3 dts mka weba ape wv tta voc"
)
UNREAD = _endings(
    "svg svgz psd psb xcf ai eps exr hdr pfm tga pcx sgi dds ico jxl jxr wdp dng cr2 cr3 nef nrw "
    "arw raf rw2 orf pef srw x3f raw fits dcm pdf djvu mid midi ra gsm mpc shn"
)
"""Pictures and sounds of kinds that are not read."""

_KINDS = IMAGES | VIDEOS | SOUNDS | UNREAD

SPLITS = ("train", "val", "test")
"""Folders of these names, alone in a root, are splits also where they hold nothing but videos."""
LABELS = "labels"
MOST_FRAMES = 1000
"""Of a clip, where nothing else is said: all others get room for as many."""


TOO_SHORT = 1e-3 + 1e-6
"""Seconds by which a film may be too short: MKV and others count milliseconds, and round down."""


@dataclass(frozen=True)
class Folders(Layout):
    """A folder or a video each: ROOT/CLIP/, ROOT/CLIP.mp4, or the same in ROOT/SPLIT/, in natural
    order (clip2 before clip10).

    A clip's folder holds its frames, as images in natural order or as one video file, of which a
    frame is taken every `seconds_per_frame`: the middle one of each such span, or with
    `anchor="start"` its first. A shorter video gives one frame. It holds one sound file; without
    one, the video's sound track is meant. Label images may lie in `labels/`, named as the frames
    (compared in Unicode's composed form); a video's frames are named 0, 1, 2, ... Frames without
    one are not annotated. Numbered images must have even numbers. A video that is a clip by itself
    has the sound file of its name beside it, where there is one, and its labels in labels/NAME/.

    With ROOT/label2idx.json (as AVSS has it) a label's value is the class; without it 255 is the
    object. Splits are the sub-folders that hold clip folders, or "all" when ROOT holds the clips;
    `split` then divides those, split -> share: a clip belongs where SHA-256 of "SEED:NAME" says, so
    that it stays there when others are added or removed.
    Listing looks at the videos' first and last packets. A clip with more than `frames_per_clip`
    frames (0: `MOST_FRAMES`, and the longest clip counts) has a problem: nothing is cut off in
    silence.
    With `cut` such a clip is several, of so many frames and a shorter last one: NAME#1, NAME#2, ...
    """

    frames_per_clip: int = 0
    seconds_per_frame: float = 1.0
    anchor: Literal["centre", "start"] = "centre"
    sound_rule: SoundRule = "centred"
    name: str = "folders"
    expected: Mapping[str, int] = field(default_factory=dict, hash=False)
    split: Mapping[str, float] = field(default_factory=dict, hash=False)
    split_seed: int = 0
    cut: int = 0
    limits: Limits = USUAL
    reading: int = 2

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(self._homes(root))

    def clips(self, root: Path, split: str) -> Listing:
        homes = self._homes(root)
        if split not in homes:
            raise ComboError(
                f"{root}: no split {split!r} in it, it has {', '.join(homes)}; correct this data "
                "set's `splits` in data_manifest.yaml"
            )
        home = _Home(homes[split])
        clips = [part for path in homes[split] for part in self._parts_of(self._clip(path, home))]
        names = Counter(clip.name for clip in clips)
        if (twice := next((name for name in names if names[name] > 1), None)) is not None:
            raise ComboError(f"{home.folder}: two clips are called {twice}; rename one of them")
        beside: set[str] = set()
        if home.folder != root:  # the root has a folder for each split
            beside = {readable(folder.name) for folder in _Contents.of(root).folders} - set(homes)
        lone = [f"{name}/ (no clip in it)" for name in sorted(beside)]
        return Listing.of(clips, [*lone, *home.unread])

    def longest(self, clips: Listing) -> int:
        return self.frames_per_clip or max(len(clip.frames) for clip in clips) or 1

    def _homes(self, root: Path) -> dict[str, list[Path]]:
        """The clip folders of each split, links to nowhere that may stand for one among them."""
        found = _Contents.of(root)
        clips = [f for f in found.folders if _has_media(f)]
        if clips and all(map(_is_split_of_films, clips)):
            clips = []
        inside = {f: _looked_into(f) for f in found.folders if f not in clips}
        splits = [
            folder
            for folder, there in inside.items()
            if there.lost or there.films or any(map(_has_media, there.folders))
        ]
        if found.films:
            splits = [folder for folder in splits if folder.name != LABELS]
        if (clips or found.films) and splits:
            raise ComboError(
                f"{root}: holds clips ({[*clips, *found.films][0].name}) and folders of clips "
                f"({splits[0].name}); move the clips into a folder of their own, one for each split"
            )
        if splits:
            return self._in_folders(root, found, {f: inside[f] for f in splits})
        if not clips and not found.films and not found.lost:
            raise ComboError(
                f"{root}: no clip in it; put videos there, or each clip's frames (images or a "
                "video) and sound into a folder of its own, ROOT/CLIP/ or ROOT/SPLIT/CLIP/"
            )
        return self._divided(root, found.clips) if self.split else {"all": found.clips}

    def _in_folders(
        self, root: Path, found: "_Contents", splits: Mapping[Path, "_Contents"]
    ) -> dict[str, list[Path]]:
        if self.split:
            raise ComboError(
                f"{root}: has folders for its splits ({', '.join(f.name for f in splits)}); leave "
                "this data set's `split` out of data_manifest.yaml"
            )
        for lost in found.lost:
            raise ComboError(f"{lost}: {missing(lost)}; mend or remove it")
        for folder in splits:
            if readable(folder.name) != folder.name:
                raise ComboError(f"{readable(str(folder))}: its name is no UTF-8; rename it")
        return {f.name: contents.clips for f, contents in splits.items()}

    def _divided(self, root: Path, clips: Sequence[Path]) -> dict[str, list[Path]]:
        """The clips of a root without split folders, by `split`. Raises ComboError for none."""
        parts = self._parts(clips, self.split_seed)
        if empty := [split for split, members in parts.items() if not members]:
            fitting = (s for s in range(1000) if all(self._parts(clips, s).values()))
            seed = next(fitting, None)
            mend = "give it a larger share" if seed is None else f"set `split_seed: {seed}`"
            raise ComboError(
                f"{root}: none of its {len(clips)} clips falls to split {empty[0]!r}; {mend} in "
                "this data set's entry in data_manifest.yaml"
            )
        return parts

    def _parts(self, clips: Sequence[Path], seed: int) -> dict[str, list[Path]]:
        parts: dict[str, list[Path]] = {split: [] for split in self.split}
        for folder in clips:
            text = f"{seed}:{composed(folder.name)}".encode("utf-8", "surrogateescape")
            place = int.from_bytes(hashlib.sha256(text).digest()[:8]) / 2**64
            ends = zip(parts, accumulate(self.split.values()), strict=True)
            fitting = (split for split, end in ends if place < end)
            parts[next(fitting, list(parts)[-1])].append(folder)
        return parts

    def classes(self, root: Path) -> list[str]:
        table = root / "label2idx.json"
        return read_classes(table) if os.path.lexists(table) else list(BINARY_CLASSES)

    def label_rule(self, root: Path) -> LabelRule:
        return "index" if os.path.lexists(root / "label2idx.json") else "binary"

    def _clip(self, path: Path, home: "_Home") -> Clip:
        name = readable(path.name)
        try:
            if name != path.name:
                raise MediaError(path, "a name that is no UTF-8 (an old archive?), rename it")
            if path in home.films:
                return self._film(path, home)
            if not path.is_dir():
                raise MediaError(path, missing(path))
            return self.read(path)
        except ComboError as error:
            return Clip(name, problem=readable(str(error)))

    def _film(self, video: Path, home: "_Home") -> Clip:
        """A video that is a clip by itself, with the sound and the labels of its name."""
        clip, sounds = self.of_video(video), home.sounds.get(video.stem, [])
        labels = home.folder / LABELS / video.stem
        found, others = _labels(labels, [str(n) for n in range(len(clip.frames))])
        if (sounds or any(found)) and home.stems[video.stem] > 1:
            raise ComboError(f"{video}: another video has its name, but for the ending; rename one")
        if len(sounds) > 1:
            names = ", ".join(file.name for file in sounds)
            raise ComboError(f"{video}: more than one sound file of its name ({names}); leave one")
        sound = sounds[0] if sounds else video
        return replace(clip, labels=found, sound=sound, unread=tuple(others))

    def _parts_of(self, clip: Clip) -> Iterator[Clip]:
        """A clip, or where it is to be cut, its parts: they know their times in the whole."""
        if not self.cut or len(clip.frames) <= self.cut:
            yield clip
            return
        for number, first in enumerate(range(0, len(clip.frames), self.cut), 1):
            part = slice(first, first + self.cut)
            yield replace(
                clip,
                name=f"{clip.name}#{number}",
                frames=clip.frames[part],
                labels=clip.labels[part],
                times=clip.times[part],
                unread=clip.unread if number == 1 else (),
            )

    def of_video(self, video: Path) -> Clip:
        """A video file as a clip: its frames, and its own sound. Raises MediaError, ComboError."""
        span = video_span(video, self.limits)
        length = span.end - span.start
        count = max(1, int((length + TOO_SHORT) / self.seconds_per_frame))
        self._refuse_too_many(video, count)
        times = tuple(span.start + time for time in self._moments(count, length))
        return Clip(
            name=video.name,
            frames=tuple(VideoFrame(video, time) for time in times),
            sound=video,
            labels=(None,) * count,
            times=times,
            span=min(self.seconds_per_frame, length),
        )

    def read(self, folder: Path, labelled: bool = True) -> Clip:
        """The clip that a folder holds, with its labels if it is to be labelled. Raises MediaError,
        ComboError."""
        contents = _Contents.of(folder)
        images, videos, sounds = map(contents.of_kind, (IMAGES, VIDEOS, SOUNDS))
        for strange in contents.of_kind(UNREAD):
            raise MediaError(strange, "a kind of file that is not read, convert or remove it")
        for kind, found in (("video", videos), ("sound", sounds)):
            if len(found) > 1:
                names = ", ".join(f.name for f in found)
                apart = "" if kind == "sound" else ", or put videos that are clips by themselves "
                apart += apart and "straight into the root, or its folders train, val and test"
                raise ComboError(f"{folder}: more than one {kind} file ({names}); leave one{apart}")
        frames: tuple[FrameSource, ...] = tuple(images)
        names = [f.stem for f in images]
        length = len(images) * self.seconds_per_frame
        times = self._moments(len(images), length)
        demand_even_numbers(images)
        unread = [f"{f.name}/" for f in contents.folders if f.name != LABELS]
        if videos and images:
            unread.append(f"pictures of {videos[0].name}")
        span = min(self.seconds_per_frame, length)
        if videos and not images:
            film = self.of_video(videos[0])
            frames, times, span = film.frames, film.times, film.span
            names = [str(n) for n in range(len(frames))]
        if not frames:
            there = ", ".join(f.name for f in contents.files if f not in sounds)
            inside = f"; frames lie straight in it, not in {', '.join(unread)}" if unread else ""
            raise MediaError(
                folder,
                "no frame images and no video in the clip's folder"
                + (f" (only {there[:200]})" if there else "")
                + inside[:200],
            )
        self._refuse_too_many(folder, len(frames))
        labels, others = (None,) * len(frames), list[str]()
        if labelled:
            labels, others = _labels(folder / LABELS, names)
        source = sounds or videos
        return Clip(
            name=folder.name,
            frames=frames,
            sound=source[0] if source else None,
            labels=labels,
            times=times,
            span=span,
            unread=(*unread, *others),
        )

    def _refuse_too_many(self, folder: Path, count: int) -> None:
        most = self.frames_per_clip or MOST_FRAMES
        if count > most and not self.cut:
            raise ComboError(
                f"{folder}: {count} frames, more than {most}; write `cut` into this data set's "
                "entry in data_manifest.yaml, for parts of so many frames, or raise its "
                "`frames_per_clip`"
            )

    def _moments(self, count: int, length: float) -> tuple[float, ...]:
        shift = 0.0 if self.anchor == "start" else min(self.seconds_per_frame, length) / 2
        return tuple(n * self.seconds_per_frame + shift for n in range(count))


@dataclass(frozen=True)
class _Contents:
    """What lies in a folder, in natural order, without hidden files and what archives of a Mac add.

    files: whatever is no folder, links to nowhere among them.  lost: those links which may stand
    for a folder, since their name is no media file's.
    """

    folders: list[Path]
    files: list[Path]
    lost: list[Path]

    @classmethod
    def of(cls, folder: Path) -> "_Contents":
        """Raises ComboError for a folder that cannot be listed."""
        try:
            with os.scandir(folder) as entries:
                found = [
                    (folder / entry.name, entry.is_dir(), entry.is_symlink())
                    for entry in entries
                    if not entry.name.startswith(".") and entry.name != "__MACOSX"
                ]
        except OSError as error:
            raise ComboError(
                f"{folder}: cannot be listed ({error.strerror}); set this data set's `root` in "
                "data_manifest.yaml to the folder that holds the clips"
            ) from error
        found.sort(key=lambda each: natural_order(each[0]))
        return cls(
            folders=[path for path, is_folder, _ in found if is_folder],
            files=[path for path, is_folder, _ in found if not is_folder],
            lost=[
                path
                for path, is_folder, is_link in found
                if is_link and not is_folder and not _is(path, _KINDS) and not path.exists()
            ],
        )

    @property
    def films(self) -> list[Path]:
        """The videos: clips by themselves, where this is no clip's folder."""
        return [path for path in self.files if _is(path, VIDEOS)]

    @property
    def clips(self) -> list[Path]:
        """The folders, the videos, and the links that may have stood for a folder."""
        films = self.films
        folders = [f for f in self.folders if not films or f.name != LABELS]
        return sorted([*folders, *films, *self.lost], key=natural_order)

    def of_kind(self, kinds: frozenset[str]) -> list[Path]:
        """The files with these endings. Raises MediaError for a name that no store can hold."""
        found = [path for path in self.files if _is(path, kinds)]
        for path in found:
            if readable(path.name) != path.name:
                raise MediaError(path, "a name that is no UTF-8 (an old archive?), rename it")
        return found


class _Home:
    """The folder that clips lie in, and what lies beside those of them that are videos.

    films, stems: these videos, and how many have one name.  sounds: sound files by their names
    without the ending.  unread: what looks like media and is no clip's.
    """

    def __init__(self, clips: Sequence[Path]) -> None:
        self.folder = clips[0].parent
        there = _Contents.of(self.folder)
        self.films = frozenset(there.films)
        self.stems = Counter(film.stem for film in self.films)
        self.sounds: dict[str, list[Path]] = {}
        self.unread: list[str] = []
        for path in there.files:
            if _is(path, SOUNDS) and path.stem in self.stems:
                self.sounds.setdefault(path.stem, []).append(path)
            elif _is(path, _KINDS - VIDEOS):
                self.unread.append(readable(path.name))
        if self.films and (labels := self.folder / LABELS).is_dir():
            lone = [f for f in _Contents.of(labels).folders if f.name not in self.stems]
            self.unread += [f"{LABELS}/{readable(f.name)}/ (no video of this name)" for f in lone]


def _is_split_of_films(folder: Path) -> bool:
    there = _looked_into(folder)
    return (
        folder.name in SPLITS
        and bool(there.films)
        and not any(_is(path, IMAGES) for path in there.files)
    )


def _is(path: Path, kinds: frozenset[str]) -> bool:
    return path.suffix.lower() in kinds


def _has_media(folder: Path) -> bool:
    return any(_is(path, _KINDS) for path in _looked_into(folder).files)


def _looked_into(folder: Path) -> _Contents:
    """What lies in a folder; nothing in one that may not be listed, which fails as a clip."""
    try:
        return _Contents.of(folder)
    except ComboError:
        return _Contents([], [], [])


def _labels(folder: Path, names: Sequence[str]) -> tuple[tuple[Path | None, ...], Iterable[str]]:
    """The label image of each frame, by name, and what else is in the folder.

    Raises MediaError for a label without a frame, or of a kind that is not read.
    """
    if not folder.is_dir():
        if folder.is_symlink():
            raise MediaError(folder, missing(folder))
        return (None,) * len(names), [folder.name] if folder.exists() else []
    contents = _Contents.of(folder)
    for path in contents.of_kind(_KINDS - IMAGES):
        raise MediaError(path, "a label of a kind that is not read, save it as PNG")
    known = [composed(name) for name in names]
    found: dict[str, Path] = {}
    for path in contents.of_kind(IMAGES):
        name = composed(path.stem)
        if name not in known:
            raise MediaError(path, "label of no frame, it must be named as its frame is")
        if name in found or known.count(name) > 1:
            raise MediaError(path, "more than one label or frame of this name")
        found[name] = path
    others = [f"{path.name}/" for path in contents.folders]
    others += [path.name for path in contents.files if path not in found.values()]
    return tuple(found.get(name) for name in known), [f"labels/{name}" for name in others]
