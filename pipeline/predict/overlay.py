"""A film with its masks painted over it: H.264 and AAC in an MP4, on the film's own clock.

Every picture that the film shows is written at the time at which it is shown there, whatever its
rate is (`painted`), and the sound where it is heard.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import durable
from ..errors import MediaError, reason_of
from ..media.clock import first_shown, picture_stream, zero
from ..media.images import Pixels
from ..media.limits import Limits
from ..media.opened import container_of, opened
from .inputs import Film
from .painted import paint_parts

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


def write_overlay(
    path: Path,
    film: Film,
    mask_of: Callable[[int], Pixels | None],
    stream: int | None,
    limits: Limits,
    told: Callable[[int], None] = lambda _: None,
    shown: Callable[[int, Pixels], None] = lambda *_: None,
) -> None:
    """Write the file, whole or not at all. What is painted of it lies in `parts_of(path)` until
    then, so that whoever was killed goes on with that.

    mask_of: the mask of a predicted frame [H,W], None where there is none.  stream: the sound
    stream that the network heard.  told: how many more predicted frames have been passed.
    shown: gets the picture of each predicted frame, as it is.
    Raises MediaError; OSError of the disk.
    """
    import av

    parts = paint_parts(parts_of(path), film, mask_of, limits, told, shown)
    if not parts:
        raise MediaError(film.video or film.name, "no picture in it can be decoded")
    with durable.replacing(path) as file, ExitStack() as stack:
        out = stack.enter_context(av.open(file, "w", format="mp4"))
        sound = stack.enter_context(_Sound(film, stream, limits)) if film.clip.sound else None
        with av.open(str(parts[0]), format="nut") as source:
            video = out.add_stream_from_template(source.streams.video[0])
        track = None if sound is None else sound.track(out)
        for part in parts:
            with av.open(str(part), format="nut") as source:
                for packet in source.demux(video=0):
                    # Its place is not told while the reader guesses how pictures are ordered; they
                    # are coded without any that look ahead.
                    at = packet.pts if packet.dts is None else packet.dts
                    if at is None:
                        continue  # the end of it
                    packet.dts = at
                    if sound is not None and track is not None:
                        for heard in sound.until(float(at * packet.time_base)):
                            out.mux(track.encode(heard))
                    packet.stream = video
                    out.mux(packet)
        if sound is not None and track is not None:
            for heard in sound.until(np.inf):
                out.mux(track.encode(heard))
            out.mux(track.encode(None))
    shutil.rmtree(parts_of(path), ignore_errors=True)


def parts_of(path: Path) -> Path:
    """The folder of what is painted of an overlay that is not whole yet."""
    return path.with_name(f"{path.stem}.parts")


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
