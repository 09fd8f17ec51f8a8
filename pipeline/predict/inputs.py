"""What people point at: a video, a folder of videos, a glob, or frames with a sound file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..durable import listed
from ..errors import ComboError, MediaError, WrongUsage, readable
from ..layouts import Clip
from ..layouts.folders import IMAGES, VIDEOS, Folders
from ..media.limits import USUAL, Limits
from ..media.video import VideoFrame

ANY_LENGTH = 1 << 40
"""Frames that a clip may have here."""


@dataclass(frozen=True)
class Film:
    """One input. clip: the frames that are predicted, their times and their sound.

    name: of its folder of results.  fps: predicted frames a second.
    """

    name: str
    clip: Clip
    fps: float

    @property
    def video(self) -> Path | None:
        """The video whose pictures are painted; None where the frames are images."""
        first = self.clip.frames[0]
        return first.path if isinstance(first, VideoFrame) else None

    def at(self, seconds: float) -> int:
        """The predicted frame nearest to a time on the file's clock; the later of two."""
        nearest = int((seconds - self.clip.times[0]) * self.fps + 0.5 + 1e-6)
        return min(max(nearest, 0), len(self.clip.times) - 1)


def found(paths: Sequence[str]) -> list[Path]:
    """The videos and clip folders that words on a command line mean, in order.

    Raises ComboError: a URL, nothing there, a folder without any.
    """
    every: list[Path] = []
    for text in paths:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            raise ComboError(f"{text} is no file; fetch it first, and give the file")
        path = Path(text)
        if path.exists():
            every += _inside(path) if path.is_dir() else [path]
            continue
        matches = _matching(path)
        if not matches:
            raise WrongUsage(f"{readable(text)}: no such file, folder or pattern")
        for match in matches:
            every += _inside(match) if match.is_dir() else [match]
    return list(dict.fromkeys(every))


def open_film(path: Path, fps: float = 1.0, limits: Limits = USUAL) -> Film:
    """An input as a clip of any length: a frame in the middle of every 1 / fps seconds, exactly as
    `combo preprocess` takes them from clips of one's own. Looks at a video's packets.

    Raises MediaError, ComboError: not readable, no pictures, frames with a hole in their numbers.
    """
    if not 0.001 <= fps <= 1000:
        raise WrongUsage(f"--fps {fps:g}: frames a second, from 0.001 to 1000")
    layout = Folders(ANY_LENGTH, 1 / fps, limits=limits)
    if not path.exists():
        raise MediaError(path, "missing")
    clip = layout.read(path, labelled=False) if path.is_dir() else layout.of_video(path)
    return Film(path.stem if path.is_file() else path.resolve().name, clip, fps)


def named(films: Sequence[Film]) -> list[Film]:
    """The same films, no two of one name: where two have one, their files' endings tell them apart,
    and numbers where those do not."""
    counts = [sum(other.name.lower() == film.name.lower() for other in films) for film in films]
    longer = [
        replace(film, name=film.clip.name) if count > 1 else film
        for film, count in zip(films, counts, strict=True)
    ]
    taken: set[str] = set()
    unlike: list[Film] = []
    for film in longer:
        name, number = film.name, 1
        while name.lower() in taken:
            number += 1
            name = f"{film.name}-{number}"
        taken.add(name.lower())
        unlike.append(replace(film, name=name))
    return unlike


def _matching(pattern: Path) -> list[Path]:
    if not re.search(r"[*?\[]", str(pattern)):
        return []
    root = Path(pattern.anchor) if pattern.anchor else Path()
    return sorted(root.glob(str(pattern.relative_to(pattern.anchor))))


def _inside(folder: Path) -> list[Path]:
    """A clip's folder itself, or the videos in it, or the clips' folders in it."""
    shown = [path for path in listed(folder) if not path.name.startswith(".")]
    kinds = [path.suffix.lower() for path in shown]
    videos = [path for path, kind in zip(shown, kinds, strict=True) if kind in VIDEOS]
    if len(videos) > 1 and not any(kind in IMAGES for kind in kinds):
        return videos
    if videos or any(kind in IMAGES for kind in kinds):
        return [folder]
    clips = [
        path
        for path in shown
        if path.is_dir() and any(p.suffix.lower() in IMAGES | VIDEOS for p in listed(path))
    ]
    if not clips:
        raise ComboError(f"{folder}: no video and no frames in it")
    return clips
