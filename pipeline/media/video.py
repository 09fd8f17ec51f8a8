"""Pictures of videos: which one is shown at a time, and from when to when there are some.

Whatever is wrong with a file ends as a `MediaError` that names it. A picture is the one that a
player shows at that time, turned and mirrored as the file says; where that one cannot be decoded
there is none: never the one before or after it.
"""

from bisect import bisect_right, insort
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import MediaError, reason_of
from .clock import (
    LACK,
    end_of,
    first_shown,
    last_shown,
    picture_stream,
    shown_at,
    stated_end,
    zero,
)
from .images import MAX_ASPECT, Pixels
from .limits import USUAL, Limits
from .opened import OpenFile, container_of, opened

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

_THREADS = 4
"""Of one decoder: each holds pictures."""
_ROUNDING = 1e-6
_USUAL_PERIOD = 0.04


@dataclass(frozen=True)
class VideoFrame:
    """The picture that a video shows at a time.

    seconds: on the file's clock, see `clock`.
    """

    path: Path
    seconds: float


@dataclass(frozen=True)
class Span:
    """From when to when a video shows pictures, in seconds on its file's clock."""

    start: float
    end: float


def video_span(path: Path, limits: Limits = USUAL) -> Span:
    """When a file's video is shown, as its packets say; decodes nothing.

    Raises MediaError naming the file: missing, not a regular file, no video, damaged, cut short by
    a window step or more, longer than allowed.
    """
    with opened(path) as file, _errors(path):
        with container_of(file, limits) as container:
            stream = _stream(path, container, limits)
            start = first_shown(container, stream)
            begin = zero(container, start or 0.0)
            end = last_shown(container, stream)
            stated = stated_end(container, stream)
        start = start or 0.0
        if end is None or end <= start:
            end = _end_by_reading(file, start, limits)
    if stated is not None and end < stated - LACK:
        raise MediaError(path, f"truncated at {end:.2f} s, where {stated:.2f} s are stated")
    if end - start > limits.seconds:
        raise MediaError(
            path,
            f"video of {end - start:.0f} s, more than limits.seconds ({limits.seconds:g})",
        )
    return Span(start - begin, end - begin)


def read_video(
    path: Path,
    seconds: Sequence[float],
    limits: Limits = USUAL,
    digests: dict[Path, str] | None = None,
) -> list[Pixels]:
    """What the video shows at each of the ascending times, [H,W,3] uint8 RGB each.

    seconds: on the file's clock.  digests: receives the SHA-256 of the bytes that were decoded.
    Raises MediaError naming the file: as `video_span`, and for a time before the first picture,
    after the last one, or whose picture cannot be decoded.
    """
    return list(pictures_at(path, seconds, limits, digests))


def pictures_at(
    path: Path,
    seconds: Sequence[float],
    limits: Limits = USUAL,
    digests: dict[Path, str] | None = None,
) -> Iterator[Pixels]:
    """The pictures of `read_video` one after the other, for more than should be held at once."""
    with _shown(path, limits, digests) as shown:
        for picture in shown.at(seconds):
            yield _upright(picture, path, limits)


def every_picture(path: Path, limits: Limits = USUAL) -> Iterator[tuple[float, Pixels]]:
    """Every picture that is shown and can be decoded, [H,W,3] uint8 RGB, in the order of time, and
    from when on, in seconds on the file's clock. Raises MediaError as `read_video`."""
    with _shown(path, limits) as shown:
        for time, picture in shown.all():
            yield time, _upright(picture, path, limits)


@contextmanager
def _shown(
    path: Path, limits: Limits, digests: dict[Path, str] | None = None
) -> Generator["_Shown"]:
    with opened(path) as file, _errors(path):
        with container_of(file, limits) as container:
            start = first_shown(container, _stream(path, container, limits))
            begin = zero(container, start or 0.0)
        with container_of(file, limits) as container:
            stream = _stream(path, container, limits)
            yield _Shown(path, container, stream, begin, limits)
        if digests is not None:
            digests[path] = file.digest()


@contextmanager
def _errors(path: Path) -> Generator[None]:
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        # Decoders raise whatever damaged bytes lead them into.
        raise MediaError(path, f"damaged video ({reason_of(error)})") from error


def _stream(path: Path, container: "InputContainer", limits: Limits) -> "VideoStream":
    """The pictures of a container, ready to be decoded."""
    stream = picture_stream(container)
    if stream is None:
        raise MediaError(path, "no video in it, or cut short")
    codec = stream.codec_context
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison] - without a decoder
        raise MediaError(path, "video of a kind that cannot be decoded")
    _demand_usable(path, codec.width, codec.height, limits)
    codec.options = {"max_pixels": str(limits.video_pixels)}
    codec.thread_type, codec.thread_count = "AUTO", _THREADS
    return stream


def _demand_usable(path: Path, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.video_pixels:
        allowed = f"limits.video_pixels ({limits.video_pixels})"
        raise MediaError(path, f"video of {width}x{height} pixels, more than {allowed}")
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise MediaError(path, f"video of {width}x{height} pixels is too narrow to be one")


def _end_by_reading(file: OpenFile, start: float, limits: Limits) -> float:
    """When the last picture has been shown, by reading all packets."""
    with container_of(file, limits) as container:
        stream = _stream(file.path, container, limits)
        count = 0

        def counted() -> "Iterator[Packet]":
            nonlocal count
            for packet in container.demux(stream):
                count += packet.size > 0
                yield packet

        end = end_of(counted())
        if not count:
            raise MediaError(file.path, "no picture in it, or cut short")
        return start + count * _period(stream) if end is None else end


def _period(stream: "VideoStream") -> float:
    return float(1 / stream.average_rate) if stream.average_rate else _USUAL_PERIOD


class _Shown:
    """Decoded pictures in the order of time, held against what the packets promised."""

    def __init__(
        self,
        path: Path,
        container: "InputContainer",
        stream: "VideoStream",
        zero: float,
        limits: Limits,
    ) -> None:
        self._path, self._container, self._stream, self._zero = path, container, stream, zero
        self._limits = limits
        self._period = _period(stream)
        self._promised: list[float] = []
        """When the pictures in the packets so far are to be shown, ascending."""
        self._end = -np.inf

    def at(self, seconds: Sequence[float]) -> "Iterator[DecodedFrame]":
        waiting = [self._zero + time for time in reversed(seconds)]
        last: tuple[float, DecodedFrame] | None = None
        for now, picture in self._decoded():
            while waiting and now > waiting[-1] + _ROUNDING:
                yield self._due(waiting.pop(), last, now)
            if not waiting:
                return
            last = now, picture
        while waiting:
            time = waiting.pop()
            end = max(self._end, -np.inf if last is None else last[0] + self._period)
            if time > end + self._period:
                raise MediaError(
                    self._path,
                    f"video ends at {end - self._zero:.2f} s, a frame at {time - self._zero:.2f} s "
                    "is missing",
                )
            yield self._due(time, last, None)

    def all(self) -> "Iterator[tuple[float, DecodedFrame]]":
        for now, picture in self._decoded():
            yield now - self._zero, picture

    def _due(
        self, time: float, last: "tuple[float, DecodedFrame] | None", then: float | None
    ) -> "DecodedFrame":
        """The last picture before `time`, if it is the one that is to be shown then."""
        at = time - self._zero
        if last is None:
            first = (
                "" if then is None else f", the first that can be is at {then - self._zero:.2f} s"
            )
            raise MediaError(self._path, f"the picture at {at:.2f} s cannot be decoded{first}")
        shown, picture = last
        count = bisect_right(self._promised, time + _ROUNDING)
        # The second field of a picture may be a packet half a period after the first.
        if count and self._promised[count - 1] - shown > 0.75 * self._period:
            raise MediaError(self._path, f"the picture at {at:.2f} s cannot be decoded")
        if picture.is_corrupt:
            raise MediaError(self._path, f"the picture at {at:.2f} s is damaged")
        return picture

    def _decoded(self) -> "Iterator[tuple[float, DecodedFrame]]":
        """Pictures from the first key frame on, each with its time on the file's own clock.

        Without a key frame decoders give pictures all the same, made of nothing. Packets that are
        said to hold one need not: a file without any says so of all.
        """
        from av.video.frame import PictureType

        key: float | None = None
        now: float | None = None
        whole = False
        for packet in self._container.demux(self._stream):
            shown = shown_at(packet)
            if shown is not None:
                insort(self._promised, shown)
                base = packet.time_base or 0
                self._end = max(self._end, shown + float((packet.duration or 0) * base))
            if key is None:
                if not packet.is_keyframe or not packet.size:
                    continue
                key = shown if shown is not None else -np.inf
                whole = packet.is_discard  # then the key frame is not to be seen
            for picture in self._pictures(packet):
                before, now = now, self._time(picture, now)
                whole = whole or picture.key_frame or picture.pict_type == PictureType.I
                if now < key - _ROUNDING or not whole:
                    continue
                if before is not None and now < before - self._period:
                    raise MediaError(
                        self._path,
                        f"the clock of its pictures jumps from {before - self._zero:.2f} s back to "
                        f"{now - self._zero:.2f} s",
                    )
                yield now, picture

    def _pictures(self, packet: "Packet") -> "list[DecodedFrame]":
        """What a packet adds. Decoders forget the size of a video that is too large for them."""
        from av.error import ArgumentError

        try:
            return packet.decode()
        except ArgumentError as error:
            codec = self._stream.codec_context
            if codec.width and codec.height:
                raise
            allowed = f"limits.video_pixels ({self._limits.video_pixels})"
            raise MediaError(
                self._path, f"video of more pixels than {allowed}, or damaged"
            ) from error

    def _time(self, picture: "DecodedFrame", before: float | None) -> float:
        time = picture.dts if picture.pts is None else picture.pts
        if time is not None and picture.time_base:
            return float(time * picture.time_base)
        return self._zero if before is None else before + self._period


def _upright(picture: "DecodedFrame", path: Path, limits: Limits) -> Pixels:
    """A picture as it is to be shown, [H,W,3] uint8 RGB."""
    _demand_usable(path, picture.width, picture.height, limits)  # it may change within the stream
    pixels = picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        pixels = oriented(pixels, np.frombuffer(bytes(matrix), np.int32), path)
    return np.ascontiguousarray(pixels)


def oriented(pixels: Pixels, matrix: NDArray[np.int32], path: Path) -> Pixels:
    """Turn and mirror a picture as its display matrix says.

    matrix: [9], of MP4's track header: a point (column p, row q) goes to (a p + c q, b p + d q).
    Raises MediaError for what is no multiple of a quarter turn, with or without a mirror.
    """
    a, b, _, c, d = (float(value) for value in matrix[:5])
    # A player takes what is within a degree of a quarter turn for one.
    if max(abs(b), abs(c)) <= np.tan(np.radians(1)) * min(abs(a), abs(d)):
        columns, rows = a, d
    elif max(abs(a), abs(d)) <= np.tan(np.radians(1)) * min(abs(b), abs(c)):
        pixels, columns, rows = pixels.swapaxes(0, 1), c, b
    else:
        raise MediaError(path, "turned by what is no multiple of 90 degrees")
    return pixels[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]
