"""Frames from disk, and how they and their labels are brought to the stored size.

Whatever is wrong with a file ends as a `MediaError` that names it: one unreadable picture costs its
clip, never the job. Pictures are read the way the public benchmark reads them, in RGB, transparency
dropped, but upright: an EXIF orientation is applied, as every viewer and label program applies it
(labels drawn on the picture as it is stored: see `labels`). Videos are read by `video`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import MediaError
from .images import Pixels, open_image, orientation, rgb, size_of, turned
from .limits import USUAL, Limits
from .video import VideoFrame, pictures_at, read_video

Fit = Literal["squash", "crop"]

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
    asked for. `digests` receives the SHA-256 of every file read, of the bytes that were decoded.
    Raises MediaError naming the file: missing, no regular file, empty, truncated, not an image,
    beyond the limits, a time at which the video has no picture, frames of different sizes.
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
        wanted.sort()
        pictures = read_video(path, [seconds for seconds, _ in wanted], limits, digests)
        frames |= zip((position for _, position in wanted), pictures, strict=True)
    ordered = [frames[position] for position in range(len(sources))]
    for source, frame in zip(sources, ordered, strict=True):
        _demand_size(source, frame, ordered[0])
    return ordered


def frames_in_turn(sources: Sequence[FrameSource], limits: Limits = USUAL) -> Iterator[Pixels]:
    """The frames of `read_frames`, of images or of one video in the order of time, one after the
    other and never all at once. Raises MediaError as `read_frames`."""
    first: Pixels | None = None
    videos = [source for source in sources if isinstance(source, VideoFrame)]
    if videos:
        pictures = pictures_at(videos[0].path, [each.seconds for each in videos], limits)
    else:
        pictures = (read_frame(source, limits=limits) for source in sources)
    for source, picture in zip(sources, pictures, strict=True):
        first = picture if first is None else first
        _demand_size(source, picture, first)
        yield picture


def _demand_size(source: FrameSource, frame: Pixels, first: Pixels) -> None:
    if frame.shape != first.shape:
        raise MediaError(
            _path(source),
            f"{size_of(frame)} pixels, but the clip's first frame has {size_of(first)}",
        )


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


def _path(source: FrameSource) -> Path:
    return source.path if isinstance(source, VideoFrame) else source
