"""Frames and labels from disk, and how they are brought to the stored size.

Whatever is wrong with a file ends as a `MediaError` that names it: one unreadable picture costs its
clip, never the job. Pictures are read the way the public benchmark reads them: the stored pixel
grid, in RGB, transparency dropped. An EXIF orientation is not applied, because label images are
drawn on the stored grid. A video's display rotation is applied, because its frames have no other
grid that labels could have been drawn on.
"""

import hashlib
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .digests import file_digest
from .errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

Pixels = NDArray[np.uint8]
LabelRule = Literal["binary", "index"]
Fit = Literal["squash", "crop"]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
"""Image formats that are tried, whatever the file's name; the others may start helper programs."""

MAX_PIXELS = 100_000_000
MAX_ASPECT = 256
"""Beyond it, scaling the short side up to the stored size would take gigabytes."""

END_TOLERANCE = 0.5
"""Seconds by which a video's last frame may stand in for a time beyond it: headers round."""

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class VideoFrame:
    """The frame that a video shows at a time.

    seconds: counted from the video stream's first frame.
    """

    path: Path
    seconds: float


FrameSource = Path | VideoFrame
"""An image file, or a moment of a video file."""


def read_frame(source: FrameSource, digests: dict[Path, str] | None = None) -> Pixels:
    """One frame, [H,W,3] uint8 RGB. See `read_frames`."""
    return read_frames((source,), digests)[0]


def read_frames(
    sources: Sequence[FrameSource], digests: dict[Path, str] | None = None
) -> list[Pixels]:
    """The frames of one clip, each [H,W,3] uint8 RGB, all of one size, in the order of `sources`.

    Grey, palette, 16-bit (the upper byte) and transparent (alpha dropped) pictures become RGB. A
    video is decoded once, however many of its frames are asked for. `digests` receives the SHA-256
    of every file read; an image is not read a second time for that.
    Raises MediaError naming the file: missing, empty, truncated, not an image, too large, a time
    after the video's end, frames of different sizes.
    """
    frames: dict[int, Pixels] = {}
    moments: dict[Path, list[tuple[float, int]]] = {}
    for position, source in enumerate(sources):
        if isinstance(source, VideoFrame):
            moments.setdefault(source.path, []).append((source.seconds, position))
        else:
            with _image(source, digests) as image:
                frames[position] = _rgb(image, source)
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
                f"{_size(frame)} pixels, but the clip's first frame has {_size(ordered[0])}",
            )
    return ordered


def frame_files(sources: Sequence[FrameSource]) -> list[Path]:
    """The files that `read_frames` reads, each once: images in order, then videos."""
    images = [source for source in sources if not isinstance(source, VideoFrame)]
    videos = [source.path for source in sources if isinstance(source, VideoFrame)]
    return list(dict.fromkeys([*images, *videos]))


def read_label(
    path: Path,
    rule: LabelRule,
    classes: int,
    shape: tuple[int, ...] | None = None,
    digests: dict[Path, str] | None = None,
) -> Pixels:
    """One label image as a class map, [H,W] uint8 in 0..classes-1.

    rule "binary": AVSBench-object's value // 255, so 255 is the object and all else background;
    bilevel, grey and palette files are told apart by their pixels. rule "index": the value is the
    class. shape: the frame's; its first two numbers must be the label's.
    Raises MediaError naming the file: unreadable, a value outside the range, a mask that marks
    something but nowhere with 255, another size than its frame.
    """
    with _image(path, digests) as image:
        values = _binary(image, path) if rule == "binary" else _indices(image, path)
    if shape is not None and values.shape != tuple(shape[:2]):
        raise MediaError(
            path, f"label of {_size(values)} pixels, but its frame has {shape[1]}x{shape[0]}"
        )
    top = int(values.max())
    if top >= classes or int(values.min()) < 0:
        wrong = top if top >= classes else int(values.min())
        raise MediaError(path, f"label value {wrong} is outside 0..{classes - 1}")
    return values.astype(np.uint8)


def read_painted(
    path: Path, palette: NDArray[np.uint8], digests: dict[Path, str] | None = None
) -> Pixels:
    """A Maskige's picture as the label map it was painted from, [H,W] uint8: palette[map] is it.

    palette: [256,3], RGB.  Of a palette picture the stored indices are taken where they are painted
    alike; an index beyond the file's own palette is the grey (i,i,i), as the public code reads it
    (later Pillows read black). Otherwise a colour becomes the lowest index that has it.
    Raises MediaError naming the file: unreadable, or a colour that no index paints.
    """
    with _image(path, digests) as image:
        if image.mode != "P":
            return _indices_of(_rgb(image, path), palette, path)
        stored = np.array(image)
        own = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)[:256]
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours[: len(own)] = own
    used = np.unique(stored)
    if np.array_equal(colours[used], palette[used]):
        return stored
    return _indices_of(colours[stored], palette, path)


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
def _image(path: Path, digests: dict[Path, str] | None) -> Generator[Image.Image]:
    """An opened image with its pixels loaded; what the body finds wrong is a MediaError too."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MediaError.of(path, error) from error
    if not data:
        raise MediaError(path, "empty file (0 bytes)")
    if digests is not None:
        digests[path] = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise MediaError(path, f"image of {width}x{height} pixels, more than {MAX_PIXELS}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise MediaError(path, f"image of {width}x{height} pixels is too narrow to be one")
            image.load()
            yield image
    except (MediaError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise MediaError(path, "not an image, or damaged at its start") from error
    except Image.DecompressionBombError as error:
        raise MediaError(path, f"image of more than {MAX_PIXELS} pixels") from error
    except Exception as error:
        # Pillow's decoders raise whatever damaged bytes lead them into.
        raise MediaError(path, f"damaged image ({_one_line(error)})") from error


def _indices_of(rgb: Pixels, palette: NDArray[np.uint8], path: Path) -> Pixels:
    """The lowest index of each pixel's colour, [H,W] uint8."""
    weights = np.array([1 << 16, 1 << 8, 1], np.uint32)
    known, lowest = np.unique(palette @ weights, return_index=True)
    colours = rgb @ weights
    places = np.searchsorted(known, colours).clip(max=len(known) - 1)
    strange = known[places] != colours
    if strange.any():
        row, column = np.argwhere(strange)[0].tolist()
        colour = tuple(rgb[row, column].tolist())
        raise MediaError(
            path,
            f"no label is painted {colour}, which {int(strange.sum())} pixels are "
            f"(the first in row {row}, column {column})",
        )
    return lowest[places].astype(np.uint8)


def _rgb(image: Image.Image, path: Path) -> Pixels:
    if image.mode == "F":
        raise MediaError(path, "image of floating-point pixels, expected 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MediaError(path, "image of more than 16 bits")
        grey = (values >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _binary(image: Image.Image, path: Path) -> NDArray[np.integer]:
    if image.mode in ("1", "RGB", "RGBA", "LA"):
        image = image.convert("L")
    values = np.asarray(image)
    if image.mode == "P" and not (values == 255).any():
        values = np.asarray(image.convert("L"))
    top = int(values.max())
    if values.ndim != 2 or top > 255:
        raise MediaError(path, f"mask of mode {image.mode}, expected 8 bits a pixel")
    if 0 < top < 255:
        # value // 255 would read such a mask, 0 and 1 say, as nothing but background
        raise MediaError(path, f"mask whose largest value is {top}: the object must be 255")
    return values // 255


def _indices(image: Image.Image, path: Path) -> NDArray[np.integer]:
    if image.mode not in ("1", "L", "P", *_SIXTEEN_BIT_MODES):
        raise MediaError(path, f"label image of mode {image.mode}, expected a class index a pixel")
    values = np.asarray(image)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


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
        raise MediaError(path, f"damaged video ({_one_line(error)})") from error


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


def _size(array: Pixels | NDArray[np.integer]) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
