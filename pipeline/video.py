"""Pictures of videos: which one is shown at a time, and how long a video is.

Whatever is wrong with a file ends as a `MediaError` that names it. A video's display rotation is
applied, because its frames have no other grid that labels could have been drawn on.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import MediaError, one_line

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

Pixels = NDArray[np.uint8]

END_TOLERANCE = 0.5
"""Seconds by which a video's last frame may stand in for a time beyond it: headers round."""


@dataclass(frozen=True)
class VideoFrame:
    """The frame that a video shows at a time.

    seconds: counted from the video stream's first frame.
    """

    path: Path
    seconds: float


def video_seconds(path: Path) -> float:
    """Length of a file's video stream, from its header. Raises MediaError."""
    with _video(path) as (container, stream):
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return container.duration / 1_000_000
    raise MediaError(path, "video without a length in its header")


@contextmanager
def _video(path: Path) -> Generator[tuple["InputContainer", "VideoStream"]]:
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise MediaError(path, "no video in it, or cut short")
            yield container, stream  # pyright: ignore[reportReturnType]
    except (MediaError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise MediaError(path, "missing") from error
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(path, f"damaged video ({one_line(error)})") from error


def video_frames(path: Path, times: Sequence[float]) -> Iterator[Pixels]:
    """What the video shows at each of the ascending `times`: the last frame not after each."""
    waiting = list(reversed(times))
    with _video(path) as (container, stream):
        stream.thread_type = "AUTO"
        period = float(1 / stream.average_rate) if stream.average_rate else 0.04
        shown: DecodedFrame | None = None
        start = now = 0.0
        for frame in container.decode(stream):
            if shown is None:
                start = 0.0 if frame.pts is None else frame.time
            now = now + period if frame.pts is None else frame.time - start
            while waiting and shown is not None and now > waiting[-1] + 1e-6:
                waiting.pop()
                yield _upright(shown)
            if not waiting:
                return
            shown = frame
        while waiting:
            if shown is None or waiting[-1] > now + period + END_TOLERANCE:
                end = now + period if shown is not None else 0.0
                raise MediaError(
                    path, f"video ends at {end:.2f} s, a frame at {waiting[-1]:.2f} s is missing"
                )
            waiting.pop()
            yield _upright(shown)


def _upright(frame: "DecodedFrame") -> Pixels:
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))
