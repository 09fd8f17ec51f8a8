"""Clips whose pictures carry their number and whose sound carries its time, made with PyAV."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIDE, BITS = 64, 8
ORIENTATIONS = {
    # as in MP4's track header: a point (p, q) goes to (a p + c q, b p + d q)
    "upright": (1, 0, 0, 1),
    "half": (-1, 0, 0, -1),
    "right": (0, 1, -1, 0),
    "left": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}
"""a, b, c, d of the display matrix by name."""


def picture(number: int) -> NDArray[np.uint8]:
    """A number as upright bars, [64,64,3]; a bright corner says how the picture is turned."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    width = SIDE // BITS
    for bit in range(BITS):
        if number >> bit & 1:
            image[16:, bit * width : (bit + 1) * width] = 255
    image[:16, :32] = 200
    return image


def number(image: NDArray[np.uint8]) -> int:
    """The number of an upright picture. Fails for one that is not upright, or mirrored."""
    bright = image.mean(axis=2)
    assert bright[4:12, 4:28].mean() > 120, "not upright"
    assert bright[4:12, 36:60].mean() < 80, "not upright"
    width = SIDE // BITS
    bars = [bright[24:56, b * width + 2 : (b + 1) * width - 2].mean() for b in range(BITS)]
    return sum(int(bar > 128) << bit for bit, bar in enumerate(bars))


def stored_for(image: NDArray[np.uint8], orientation: str) -> NDArray[np.uint8]:
    """The pixels that are stored when a display matrix will make `image` of them, square images."""
    a, b, c, d = ORIENTATIONS[orientation]
    last = len(image) - 1
    down, across = np.mgrid[: len(image), : len(image)] * 2 - last  # from the picture's middle
    return image[(b * across + d * down + last) // 2, (a * across + c * down + last) // 2]


def tones(seconds: float, rate: int = 48_000) -> NDArray[np.float32]:
    """Second k is a tone of 300 + 250 k Hz."""
    hertz = 300 + 250 * np.floor(np.arange(round(seconds * rate)) / rate)
    return (0.5 * np.sin(2 * np.pi * np.cumsum(hertz) / rate)).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    """What a clip is like. Times in seconds.

    kept: numbers of the pictures that are encoded, at number / rate on the camera's clock.
    cut: packets of pictures that are taken away at the start, in the order of decoding.
    picture_at, sound_at: where picture 0 and the first sample stand on the file's own clock.
    sound: the codec, None for a clip without.
    live: as a browser records, without a length.
    """

    name: str
    codec: str
    rate: Fraction
    kept: tuple[int, ...]
    group: int = 250
    b_frames: int = 0
    cut: int = 0
    picture_at: float = 0.0
    sound: str | None = None
    sound_at: float = 0.0
    sound_seconds: float = 0.0
    orientation: str = "upright"
    live: bool = False


@dataclass(frozen=True)
class Made:
    """What is in a clip that was made: picture number -> time on the file's own clock.

    decodable: those from the first key frame on.
    """

    shown: dict[int, float]
    decodable: frozenset[int]


def make(path: Path, recipe: Recipe) -> Made:
    """Write a clip's file."""
    with av.open(str(path), "w", options={"live": "1"} if recipe.live else {}) as out:
        video = out.add_stream(recipe.codec, rate=recipe.rate)
        assert isinstance(video, av.VideoStream)
        video.width = video.height = SIDE
        video.pix_fmt = "yuvj420p" if recipe.codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = 1 / recipe.rate
        video.codec_context.gop_size = recipe.group
        video.codec_context.bit_rate = 2_000_000
        video.codec_context.options = _options(recipe)
        if recipe.codec not in ("libvpx", "mjpeg", "libx264"):
            video.codec_context.max_b_frames = recipe.b_frames
        sound = out.add_stream(recipe.sound, rate=48_000) if recipe.sound else None
        packets: list[tuple[float, av.Packet]] = []
        pictures: list[av.Packet] = []
        if isinstance(sound, av.AudioStream):
            sound.layout = "mono"
            if recipe.sound == "wmav2":
                sound.bit_rate = 64_000
            packets += _sound_packets(sound, recipe)
        for n in recipe.kept:
            image = stored_for(picture(n), recipe.orientation)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = n, 1 / recipe.rate
            pictures += video.encode(frame)
        pictures += video.encode(None)
        left = pictures[recipe.cut :]
        numbers = [round(float(p.pts * p.time_base * recipe.rate)) for p in left]
        keys = [n for n, packet in zip(numbers, left, strict=True) if packet.is_keyframe]
        packets += _shifted(left, recipe.picture_at)
        # AVI says when packets are decoded, so players show pictures with B-frames a period late.
        delayed = recipe.name == "avi" and recipe.b_frames and recipe.codec != "mjpeg"
        late = float(1 / recipe.rate) if delayed else 0.0
        shown = {
            n: late + float(packet.pts * packet.time_base)
            for n, packet in zip(numbers, left, strict=True)
        }
        for _, packet in sorted(packets, key=lambda each: each[0]):
            out.mux(packet)
    if recipe.orientation != "upright":
        _write_matrix(path, recipe.orientation)
    return Made(shown, frozenset(n for n in shown if keys and n >= min(keys)))


def _options(recipe: Recipe) -> dict[str, str]:
    if recipe.codec == "libx264":
        group = str(recipe.group)
        return {
            "preset": "ultrafast",
            "keyint_min": group,
            "sc_threshold": "0",
            "bf": str(recipe.b_frames),
            "b_strategy": "0",
        }
    if recipe.codec == "libvpx":
        if recipe.b_frames:  # pictures that only later ones refer to
            return {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "8"}
        return {"deadline": "realtime", "cpu-used": "8"}
    return {}


def _sound_packets(sound: av.AudioStream, recipe: Recipe) -> list[tuple[float, av.Packet]]:
    samples = tones(recipe.sound_seconds)
    context = sound.codec_context
    form = "s16" if recipe.sound in ("pcm_s16le", "mp2", "libopus") else "fltp"
    if form == "s16":
        samples = np.round(samples * 32767).astype(np.int16)
    size, found = context.frame_size or 1024, []
    for start in range(0, len(samples), size):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + size].copy(), form, "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        found += sound.encode(frame)
    return _shifted([*found, *sound.encode(None)], recipe.sound_at)


def _shifted(packets: list[av.Packet], seconds: float) -> list[tuple[float, av.Packet]]:
    found = []
    for packet in packets:
        shift = round(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        found.append((float(packet.dts * packet.time_base), packet))
    return found


def _write_matrix(path: Path, orientation: str) -> None:
    """Put a display matrix into the picture's track header of an MP4."""
    data = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in ORIENTATIONS[orientation])
    place = data.index(identity, data.index(b"tkhd"))
    data[place : place + len(identity)] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


def film(
    path: Path,
    seconds: float,
    rate: Fraction = Fraction(25),
    kept: tuple[int, ...] | None = None,
    orientation: str = "upright",
    sound_seconds: float | None = None,
    sound_at: float = 0.0,
    picture_at: float = 0.0,
) -> Made:
    """An MP4 of some seconds as phones make them. kept: numbers of its pictures, all of them."""
    numbers = tuple(range(round(seconds * rate))) if kept is None else kept
    length = seconds if sound_seconds is None else sound_seconds
    recipe = Recipe(
        "mp4", "libx264", rate, numbers, sound="aac" if length else None, sound_seconds=length,
        sound_at=sound_at, picture_at=picture_at, orientation=orientation,
    )  # fmt: skip
    return make(path, recipe)
