"""The pictures of a film with masks over them, encoded part by part.

Between predicted frames masks are held: a picture has the mask of the predicted frame that is
nearest in time, and never one that no network gave. Frames around which there is no sound have
none. A part is a file that is whole or not there, and parts that are there are not painted again;
they hold no picture that refers to a later one, so that their packets can stand behind each other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .. import durable
from ..errors import MediaError
from ..media.clock import picture_stream
from ..media.images import Pixels
from ..media.limits import Limits
from ..media.opened import container_of, opened
from ..media.pictures import frames_in_turn
from ..media.video import every_picture
from ..painting import Paint
from .inputs import Film

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

TICKS = 90_000
"""Of a second: every usual frame rate is a whole number of them."""
QUALITY = {"preset": "veryfast", "crf": "20", "bf": "0"}
PART = 60
"""Predicted frames in a part."""


@dataclass(frozen=True)
class Shown:
    """A picture [H,W,3], when it is shown, in ticks, and the predicted frame that is nearest."""

    tick: int
    number: int
    picture: Pixels


def paint_parts(
    folder: Path,
    film: Film,
    mask_of: Callable[[int], Pixels | None],
    limits: Limits,
    told: Callable[[int], None],
    shown: Callable[[int, Pixels], None],
) -> list[Path]:
    """Paint what is not there yet; the files of all parts, in order. See `write_overlay`."""
    parts: list[Path] = []
    pictures = _told(film, _shown(film, limits), told, shown)
    for number, some in groupby(pictures, lambda each: each.number // PART):
        parts.append(folder / f"{number:06d}.nut")
        if parts[-1].exists():
            for _ in some:
                pass  # decoded all the same: others refer to them
            continue
        with durable.replacing(parts[-1]) as file:
            _encode(file, film, some, mask_of, limits)
    return parts


def _shown(film: Film, limits: Limits) -> Iterator[Shown]:
    """Every picture of a film; an image from the beginning of its span."""
    if film.video is not None:
        pictures, middle = every_picture(film.video, limits), 0.0
    else:
        images, middle = frames_in_turn(film.clip.frames, limits), film.clip.span / 2
        pictures = zip((time - middle for time in film.clip.times), images, strict=True)
    last = -1
    for time, picture in pictures:
        last = max(round(time * TICKS), last + 1)
        yield Shown(last, film.at(time + middle), picture)


def _told(
    film: Film,
    pictures: Iterator[Shown],
    told: Callable[[int], None],
    shown: Callable[[int, Pixels], None],
) -> Iterator[Shown]:
    """The same pictures, while those who want to know are told of them."""
    at, before = -1, None
    waiting = list(enumerate(film.clip.times))[::-1]
    for each in pictures:
        while before is not None and waiting and waiting[-1][1] * TICKS < each.tick:
            shown(waiting.pop()[0], before)
        if each.number != at:
            told(each.number - at)
            at = each.number
        yield each
        before = each.picture
    told(len(film.clip.times) - 1 - at)
    while before is not None and waiting:
        shown(waiting.pop()[0], before)


def _encode(
    file: BinaryIO,
    film: Film,
    pictures: Iterator[Shown],
    mask_of: Callable[[int], Pixels | None],
    limits: Limits,
) -> None:
    import av

    first = next(pictures)
    size, at, paint = first.picture.shape, -1, None
    with av.open(file, "w", format="nut") as out:
        video = _encoder(out, film, first.picture, limits)
        for each in chain([first], pictures):
            if each.number != at:
                mask = mask_of(each.number)
                at, paint = each.number, None if mask is None else Paint.of(mask)
                if mask is not None and mask.shape != size[:2]:
                    size = ()
            if each.picture.shape != size:
                raise MediaError(film.video or film.name, "its pictures change their size")
            painted = each.picture if paint is None else paint.over(each.picture)
            out.mux(video.encode(_encodable(painted, each.tick)))
        out.mux(video.encode(None))


def _encoder(out: "OutputContainer", film: Film, picture: Pixels, limits: Limits) -> "VideoStream":
    rate, aspect = Fraction(1, 1) * Fraction(film.fps).limit_denominator(1000), None
    if film.video is not None:
        with opened(film.video) as file, container_of(file, limits) as container:
            source = picture_stream(container)
            assert source is not None
            rate = source.average_rate or Fraction(25)
            aspect = source.sample_aspect_ratio
            turned = source.height != picture.shape[0] and source.width == picture.shape[0]
            if aspect and turned:
                aspect = 1 / aspect
    video: VideoStream = out.add_stream("libx264", rate=rate, options=QUALITY)
    height, width = picture.shape[:2]
    video.height, video.width = height + height % 2, width + width % 2
    video.pix_fmt = "yuv420p"
    video.time_base = video.codec_context.time_base = Fraction(1, TICKS)
    if aspect:
        video.codec_context.sample_aspect_ratio = aspect
    return video


def _encodable(picture: Pixels, tick: int) -> Any:
    """A picture for the encoder. H.264's usual pixels come in twos: what has an odd side gets its
    last row or column twice."""
    from av.video.frame import VideoFrame

    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts, frame.time_base = tick, Fraction(1, TICKS)
    return frame
