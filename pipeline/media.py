"""Frames from disk, and how they and their labels are brought to the stored size.

Whatever is wrong with a file ends as a `MediaError` that names it: one unreadable picture costs its
clip, never the job. Pictures are read the way the public benchmark reads them, in RGB, transparency
dropped, but upright: an EXIF orientation is applied, as every viewer and label program applies it
(labels drawn on the picture as it is stored: see `labels`). A video's display rotation is
applied, because its frames have no other grid that labels could have been drawn on.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from .digests import file_digest
from .errors import MediaError
from .images import Pixels, one_line, open_image, orientation, rgb, size_of, turned
from .limits import USUAL, Limits

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

Fit = Literal["squash", "crop"]

END_TOLERANCE = 0.5
"""Seconds by which a video's last frame may stand in for a time beyond it: headers round."""


@dataclass(frozen=True)
class VideoFrame:
    """The frame that a video shows at a time.

    seconds: counted from the video stream's first frame.
    """

    path: Path
    seconds: float


FrameSource = Path | VideoFrame
"""An image file, or a moment of a video file."""


def read_frame(
    source: FrameSource, digests: dict[Path, str] | None = None, limits: Limits = USUAL
) -> Pixels:
    """One frame, [H,W,3] uint8 RGB. See `read_frames`."""
    return read_frames((source,), digests, limits)[0]


def read_frames(
    sources: Sequence[FrameSource],
    digests: dict[Path, str] | None = None,
    limits: Limits = USUAL,
) -> list[Pixels]:
    """The frames of one clip, each [H,W,3] uint8 RGB, all of one size, in the order of `sources`.

    Grey, palette, 16-bit (the upper byte) and transparent (alpha dropped) pictures become RGB, and
    those with an EXIF orientation upright. A video is decoded once, however many of its frames are
    asked for. `digests` receives the SHA-256 of every file read; an image is not read a second time
    for that.
    Raises MediaError naming the file: missing, empty, truncated, not an image, too large, a time
    after the video's end, frames of different sizes.
    """
    frames: dict[int, Pixels] = {}
    moments: dict[Path, list[tuple[float, int]]] = {}
    for position, source in enumerate(sources):
        if isinstance(source, VideoFrame):
            moments.setdefault(source.path, []).append((source.seconds, position))
        else:
            with open_image(source, digests, limits) as image:
                frames[position] = rgb(turned(image, orientation(image)), source)
    for path, wanted in moments.items():
        if digests is not None:
            digests[path] = file_digest(path)
        wanted.sort()
        times = [seconds for seconds, _ in wanted]
        frames |= zip((p for _, p in wanted), _video_frames(path, times), strict=True)
    ordered = [frames[position] for position in range(len(sources))]
    for source, frame in zip(sources, ordered, strict=True):
        if frame.shape != ordered[0].shape:
            raise MediaError(
                _path(source),
                f"{size_of(frame)} pixels, but the clip's first frame has {size_of(ordered[0])}",
            )
    return ordered


def frame_files(sources: Sequence[FrameSource]) -> list[Path]:
    """The files that `read_frames` reads, each once: images in order, then videos."""
    images = [source for source in sources if not isinstance(source, VideoFrame)]
    videos = [source.path for source in sources if isinstance(source, VideoFrame)]
    return list(dict.fromkeys([*images, *videos]))


def fit_frame(frame: Pixels, size: tuple[int, int], fit: Fit) -> Pixels:
    """Bring a frame [H,W,3] to `size` (height, width) with Pillow's (antialiased) bilinear filter.

    "squash" scales both sides apart. "crop" scales until the frame just covers the size (at a
    square size: the short side gets it) and takes the centre. Both round as AVSBench does. What has
    the size already is returned as it is.
    """
    return _fit(frame, size, fit, Image.Resampling.BILINEAR)


def fit_label(label: Pixels, size: tuple[int, int], fit: Fit) -> Pixels:
    """Bring a label or Maskige label map [H,W] to `size`: `fit_frame`'s way, nearest pixel."""
    return _fit(label, size, fit, Image.Resampling.NEAREST)


def video_seconds(path: Path) -> float:
    """Length of a file's video stream, from its header. Raises MediaError."""
    with _video(path) as (container, stream):
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return container.duration / 1_000_000
    raise MediaError(path, "video without a length in its header")


def _fit(array: Pixels, size: tuple[int, int], fit: Fit, filter_: Image.Resampling) -> Pixels:
    height, width = size
    old_height, old_width = array.shape[:2]
    if (old_height, old_width) == size:
        return array
    image = Image.fromarray(array)
    if fit == "squash":
        return np.array(image.resize((width, height), filter_))
    if old_width * height > old_height * width:
        scaled = (int(old_width * height / old_height), height)
    else:
        scaled = (width, int(old_height * width / old_width))
    left = round((scaled[0] - width) / 2)
    top = round((scaled[1] - height) / 2)
    image = image.resize(scaled, filter_)
    return np.array(image.crop((left, top, left + width, top + height)))


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


def _video_frames(path: Path, times: Sequence[float]) -> Iterator[Pixels]:
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


def _path(source: FrameSource) -> Path:
    return source.path if isinstance(source, VideoFrame) else source
