"""Six kinds of moving shapes, each with a look and a voice of its own, and the filming of them.

The scenes are made so that only listening tells which shapes are meant: every second, some visible
shape is silent. A kind is known by its outline and roughly by its hue; size, turn, colour,
pitch, loudness and background differ from clip to clip, so that nothing can be learnt by heart.
"""

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

RATE = 44_100
"""Samples a second of every sound here."""

_SUPERSAMPLING = 4
_FADE = 0.02

Points = NDArray[np.float64]
Samples = NDArray[np.floating]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Kind:
    """outline: [V,2], inside the unit circle.  hole: radius of a round hole, 0 for none.
    hue: degrees.  voice: (rng, seconds [N]) -> samples [N] of any loudness."""

    name: str
    outline: Points
    hue: float
    voice: Callable[[Generator, Samples], Samples]
    hole: float = 0.0


@dataclass(frozen=True)
class Scene:
    """frames: one a second, [H,W,3].  labels: [T,H,W], 0 or 1 + the kind that sounds there.
    sound: [T * RATE] in -1..1."""

    frames: list[Pixels]
    labels: Pixels
    sound: Samples


def _polygon(radii: Sequence[float], corners: int, turn: float = 0.0) -> Points:
    """Corners on rays at equal angles; `radii` repeat around."""
    angles = turn + 2 * math.pi * np.arange(corners) / corners
    return np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross() -> Points:
    arm, half = 0.95, 0.3
    corner = [(half, -half), (arm, -half), (arm, half)]
    turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate([np.array(corner) @ turn.T for turn in turns])


def _wave(frequency: float | Samples, seconds: Samples, rng: Generator) -> Samples:
    """Phase in 0..2 pi of a tone whose frequency (Hz) may change; a random start.

    Added up in float64; float32 does for the sines of it and of its whole multiples.
    """
    turns = np.cumsum(np.broadcast_to(np.asarray(frequency) / RATE, seconds.shape)) + rng.uniform()
    return (2 * math.pi * (turns % 1)).astype(np.float32)


def _tuned(frequency: float, rng: Generator) -> float:
    return frequency * float(rng.uniform(0.93, 1.07))


def _hum(rng: Generator, seconds: Samples) -> Samples:
    phase = _wave(_tuned(120, rng), seconds, rng)
    return sum((np.sin(n * phase) / n**2 for n in range(1, 6)), np.zeros_like(seconds))


def _buzz(rng: Generator, seconds: Samples) -> Samples:
    phase = _wave(_tuned(330, rng), seconds, rng)
    tone = sum((np.sin(n * phase) / n for n in range(1, 14, 2)), np.zeros_like(seconds))
    return tone * (0.6 + 0.4 * np.sin(_wave(11.0, seconds, rng)))


def _whistle(rng: Generator, seconds: Samples) -> Samples:
    vibrato = 1 + 0.03 * np.sin(_wave(6.0, seconds, rng))
    phase = _wave(_tuned(2400, rng) * vibrato, seconds, rng)
    return np.sin(phase) + 0.15 * np.sin(2 * phase)


def _bell(rng: Generator, seconds: Samples) -> Samples:
    pitch = _tuned(760, rng)
    since_struck = (seconds + rng.uniform(0, 1)) % (1 / 3)
    tone = np.zeros_like(seconds)
    for ratio, decay, weight in ((1.0, 6.0, 1.0), (2.76, 9.0, 0.7), (5.4, 14.0, 0.5)):
        tone += weight * np.exp(-decay * since_struck) * np.sin(_wave(ratio * pitch, seconds, rng))
    return tone


def _hiss(rng: Generator, seconds: Samples) -> Samples:
    spectrum = np.fft.rfft(rng.standard_normal(len(seconds)))
    frequencies = np.fft.rfftfreq(len(seconds), 1 / RATE)
    spectrum[(frequencies < _tuned(4200, rng)) | (frequencies > 7200)] = 0
    pulse = 0.5 + 0.5 * np.sin(_wave(_tuned(5, rng), seconds, rng))
    return np.fft.irfft(spectrum, len(seconds)) * pulse


def _siren(rng: Generator, seconds: Samples) -> Samples:
    rise = (seconds * 2 + rng.uniform(0, 1)) % 1
    phase = _wave(_tuned(520, rng) * 3.0**rise, seconds, rng)
    return np.sin(phase) + 0.4 * np.sin(3 * phase)


KINDS = (
    Kind("disc", _polygon([0.9], 64), hue=0, voice=_hum),
    Kind("square", _polygon([1.0], 4, math.pi / 4), hue=220, voice=_buzz),
    Kind("triangle", _polygon([1.0], 3), hue=120, voice=_whistle),
    Kind("star", _polygon([1.0, 0.42], 10), hue=52, voice=_bell),
    Kind("ring", _polygon([0.95], 64), hue=290, voice=_hiss, hole=0.55),
    Kind("cross", _cross(), hue=175, voice=_siren),
)


def film(
    rng: Generator, size: tuple[int, int], visible: Sequence[int], sources: Sequence[Sequence[int]]
) -> Scene:
    """A clip of one frame a second.

    size: height and width in pixels.  visible: indices into KINDS, each at most once, the last in
    front.  sources: for each second which of the visible sound.
    """
    height, width = size
    seconds = len(sources)
    background = _background(rng, size)
    frames = [background] * seconds
    labels = np.zeros((seconds, height, width), np.uint8)
    for kind, path in zip(visible, _paths(rng, len(visible), seconds, size), strict=True):
        radius, growth = rng.uniform(0.17, 0.25) * min(size), rng.uniform(0.97, 1.03)
        turn, spin = rng.uniform(0, 2 * math.pi), rng.uniform(-0.25, 0.25)
        paint = _paint(rng, KINDS[kind].hue, size)
        for t, centre in enumerate(path):
            alpha = _stamp(KINDS[kind], centre, radius * growth**t, turn + spin * t, size)
            weight = alpha[..., None].astype(np.float32) / 255
            frames[t] = (frames[t] + (paint - frames[t]) * weight).astype(np.float32)
            labels[t][alpha > 127] = 1 + kind if kind in sources[t] else 0
    pixels = [np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in frames]
    return Scene(pixels, labels, _mix(rng, visible, sources))


def _paths(rng: Generator, count: int, seconds: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """[count, seconds, 2] centres (x, y) in pixels: slow straight walks that start well apart."""
    extent = np.array([size[1], size[0]])
    first = np.linspace(0, 2 * math.pi, count, endpoint=False) + rng.uniform(0, 2 * math.pi)
    around = np.stack([np.cos(first), np.sin(first)], axis=1) * rng.uniform(0.22, 0.3, (count, 1))
    start = extent * (0.5 + around + rng.uniform(-0.05, 0.05, (count, 2)))
    speed = extent * rng.uniform(-0.1, 0.1, (count, 2)) / seconds
    return start[:, None] + speed[:, None] * np.arange(seconds)[None, :, None]


def _stamp(
    kind: Kind, centre: NDArray[np.float64], radius: float, turn: float, size: tuple[int, int]
) -> Pixels:
    """[H,W] coverage 0..255 of a shape."""
    height, width = size
    scale = _SUPERSAMPLING
    canvas = Image.new("L", (width * scale, height * scale))
    pen = ImageDraw.Draw(canvas)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = kind.outline @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    pen.polygon([(float(x), float(y)) for x, y in corners * scale], fill=255)
    if kind.hole:
        (x, y), r = centre * scale, kind.hole * radius * scale
        pen.ellipse((x - r, y - r, x + r, y + r), fill=0)
    return np.asarray(canvas.reduce(scale))


def _noise(rng: Generator, size: tuple[int, int], cells: int) -> NDArray[np.float32]:
    """[H,W] smooth noise in about -1..1, `cells` bumps along the width."""
    height, width = size
    coarse = rng.uniform(-1, 1, (max(2, cells * height // width), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _background(rng: Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """[H,W,3] in 0..255: a greyish colour under clouds and grain."""
    colour = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.3), rng.uniform(0.3, 0.7))
    clouds = sum(
        (_noise(rng, size, cells) * depth for cells, depth in ((4, 45), (11, 25), (40, 10))),
        np.zeros(size, np.float32),
    )
    grain = rng.normal(0, 4, size).astype(np.float32)
    painted = np.array(colour, np.float32) * 255 + (clouds + grain)[..., None]
    return np.clip(painted, 0, 255).astype(np.float32)


def _paint(rng: Generator, hue: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """[H,W,3] in 0..255: the shape's colour, lit from one side and slightly mottled."""
    shade = ((hue + rng.uniform(-20, 20)) % 360) / 360
    colour = colorsys.hsv_to_rgb(shade, rng.uniform(0.55, 0.95), rng.uniform(0.6, 1.0))
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    light = 1 + 0.25 * (math.cos(angle) * x + math.sin(angle) * y) + 0.08 * _noise(rng, size, 25)
    painted = np.array(colour, np.float32) * 255 * light[..., None]
    return np.clip(painted, 0, 255).astype(np.float32)


def _mix(rng: Generator, visible: Sequence[int], sources: Sequence[Sequence[int]]) -> Samples:
    """[T * RATE] in -1..1: the voices of each second's sources over a faint noise."""
    seconds = np.arange(len(sources) * RATE) / RATE
    mix = rng.normal(0, 1e-3, len(seconds))
    steady = (np.arange(len(sources))[:, None] + [_FADE / 2, 1 - _FADE / 2]).ravel()
    for kind in visible:
        gate = [float(kind in now) for now in sources]
        if not any(gate):
            continue
        voice = KINDS[kind].voice(rng, seconds)
        loudness = rng.uniform(0.08, 0.14) / np.sqrt(np.mean(voice**2))
        # Open or shut within a second, sliding from one to the other around its end.
        mix += voice * loudness * np.interp(seconds, steady, np.repeat(gate, 2))
    return mix / max(1.0, float(np.abs(mix).max()))
