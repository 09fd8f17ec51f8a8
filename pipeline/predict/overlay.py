"""A film with its masks painted over it: H.264 and AAC in an MP4, on the film's own clock.

Every picture that the film shows is written at the time at which it is shown there, whatever its
rate is, and the sound where it is heard. Between predicted frames masks are held: a picture
has the mask of the predicted frame that is nearest in time, and never one that no network gave.
Frames around which there is no sound have none.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import durable
from ..errors import MediaError, reason_of
from ..media.clock import first_shown, picture_stream, zero
from ..media.images import Pixels
from ..media.limits import Limits
from ..media.opened import container_of, opened
from ..media.pictures import frames_in_turn
from ..media.video import every_picture
from ..painting import Paint
from .inputs import Film

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream

TICKS = 90_000
"""Of a second: every usual frame rate is a whole number of them."""
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
QUALITY = {"preset": "veryfast", "crf": "20"}


def write_overlay(
    path: Path,
    film: Film,
    mask_of: Callable[[int], Pixels | None],
    stream: int | None,
    limits: Limits,
    told: Callable[[int], None] = lambda _: None,
    shown: Callable[[int, Pixels], None] = lambda *_: None,
) -> None:
    """Write the file, whole or not at all.

    mask_of: the mask of a predicted frame [H,W], None where there is none.  stream: the sound
    stream that the network heard.  told: how many more predicted frames have been passed.
    shown: gets the picture of each predicted frame, as it is.
    Raises MediaError; OSError of the disk.
    """
    import av

    pictures = _painted(film, mask_of, limits, told, shown)
    first = next(pictures, None)
    if first is None:
        raise MediaError(film.video or film.name, "no picture in it can be decoded")
    with durable.replacing(path) as file, ExitStack() as stack:
        out = stack.enter_context(av.open(file, "w", format="mp4"))
        sound = stack.enter_context(_Sound(film, stream, limits)) if film.clip.sound else None
        video = _video_stream(out, film, first[1], limits)
        track = None if sound is None else sound.track(out)
        last = -1
        for time, picture in _chained(first, pictures):
            if sound is not None and track is not None:
                for heard in sound.until(time):
                    out.mux(track.encode(heard))
            tick = max(round(time * TICKS), last + 1)
            out.mux(video.encode(_encodable(picture, tick)))
            last = tick
        out.mux(video.encode(None))
        if sound is not None and track is not None:
            for heard in sound.until(np.inf):
                out.mux(track.encode(heard))
            out.mux(track.encode(None))


def _chained(
    first: tuple[float, Pixels], rest: Iterator[tuple[float, Pixels]]
) -> Iterator[tuple[float, Pixels]]:
    yield first
    yield from rest


def _pictures(film: Film, limits: Limits) -> Iterator[tuple[float, Pixels]]:
    """Every picture of a film and when it is shown; an image from the beginning of its span."""
    if film.video is not None:
        yield from every_picture(film.video, limits)
        return
    images = frames_in_turn(film.clip.frames, limits)
    for time, picture in zip(film.clip.times, images, strict=True):
        yield time - film.clip.span / 2, picture


def _painted(
    film: Film,
    mask_of: Callable[[int], Pixels | None],
    limits: Limits,
    told: Callable[[int], None],
    shown: Callable[[int, Pixels], None],
) -> Iterator[tuple[float, Pixels]]:
    at, paint, before = -1, None, None
    waiting = list(enumerate(film.clip.times))[::-1]
    middle = film.clip.span / 2 if film.video is None else 0.0
    for time, picture in _pictures(film, limits):
        while before is not None and waiting and waiting[-1][1] < time:
            shown(waiting.pop()[0], before)
        number = film.at(time + middle)
        if number != at:
            told(number - at)
            mask = mask_of(number)
            if mask is not None and mask.shape != picture.shape[:2]:
                raise MediaError(film.video or film.name, "its pictures change their size")
            at, paint = number, None if mask is None else Paint.of(mask)
        yield time, picture if paint is None else paint.over(picture)
        before = picture
    told(len(film.clip.times) - 1 - at)
    while before is not None and waiting:
        shown(waiting.pop()[0], before)


def _video_stream(
    out: "OutputContainer", film: Film, picture: Pixels, limits: Limits
) -> "VideoStream":
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


@dataclass
class _Sound:
    """The sound that the network heard, from its file, with times on the film's clock."""

    film: Film
    stream: int | None
    limits: Limits

    def __enter__(self) -> "_Sound":
        self._stack = ExitStack()
        path = self.film.clip.sound
        assert path is not None
        try:
            file = self._stack.enter_context(opened(path))
            with container_of(file, self.limits) as container:
                pictures = picture_stream(container)
                begin = zero(container, first_shown(container, pictures) if pictures else None)
            container = self._stack.enter_context(container_of(file, self.limits))
            self._source: AudioStream = container.streams.audio[self.stream or 0]
            self._frames = self._decoded(container.decode(self._source), begin)
            self._next = next(self._frames, None)
        except MediaError:
            raise
        except Exception as error:
            raise MediaError(path, f"no readable sound ({reason_of(error)})") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def track(self, out: "OutputContainer") -> "AudioStream | None":
        """A track of an MP4 for it; None where there is no sample."""
        if self._next is None:
            return None
        track: AudioStream = out.add_stream("aac", rate=self._next.sample_rate)
        track.layout, track.format = self._next.layout.name, "fltp"
        track.bit_rate = 96_000 * min(2, self._next.layout.nb_channels)
        return track

    def until(self, time: float) -> "Iterator[AudioFrame]":
        while self._next is not None and (self._next.time or 0.0) <= time:
            yield self._next
            self._next = next(self._frames, None)

    def _decoded(self, frames: "Iterator[AudioFrame]", begin: float) -> "Iterator[AudioFrame]":
        """Frames as the encoder takes them; times follow from the first one's and from how many
        samples there have been, as they do for the network."""
        from av.audio.resampler import AudioResampler

        first = next(frames, None)
        if first is None:
            return
        rate = min(AAC_RATES, key=lambda each: abs(each - first.sample_rate))
        layout = "mono" if first.layout.nb_channels == 1 else "stereo"
        to_aac = AudioResampler(format="fltp", layout=layout, rate=rate)
        samples = round(((first.time or begin) - begin) * rate)

        def every() -> "Iterator[AudioFrame | None]":
            yield first
            yield from frames
            yield None

        for frame in every():
            if frame is not None:
                frame.pts = None
            for made in to_aac.resample(frame):
                made.pts, made.time_base = samples, Fraction(1, rate)
                samples += made.samples
                yield made
