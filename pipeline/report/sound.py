"""What is heard while a clip's frames are shown, to look at and to listen to.

Everything is brought on one axis of time, that of the frames: a strip of pictures, the spectrogram
below it and the player's place in it then belong together.
"""

import io
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoders import encoder
from ..errors import MediaError
from ..layouts import Clip
from ..media.images import Pixels
from ..media.limits import USUAL, Limits
from ..media.sound_files import open_sound

RATE = 16_000
_INK = ((13, 8, 35), (84, 21, 109), (187, 55, 84), (249, 142, 9), (252, 255, 190))
"""Colours of a spectrogram from quiet to loud: their brightness rises evenly."""


@dataclass(frozen=True)
class Window:
    """The piece of sound that belongs to a frame, in seconds on the frames' axis."""

    frame: int
    start: float
    end: float


@dataclass(frozen=True)
class Heard:
    """waveform: [N] float64 mono, 16 kHz, while the frames are shown; zeros where the file has no
    sound.  windows: what of it the network is given."""

    waveform: NDArray[np.float64]
    windows: tuple[Window, ...]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / RATE


def hear(
    clip: Clip, audio: Mapping[str, Any], limits: Limits = USUAL, frames: int | None = None
) -> Heard:
    """The sound of a clip while its first `frames` are shown, or all of them.

    audio: settings of the audio stage.  Raises MediaError.
    """
    if clip.problem is not None:
        raise MediaError(clip.name, clip.problem)
    if clip.sound is None:
        raise MediaError(clip.name, "no sound file and no video")
    times, stream = clip.times[:frames], audio.get("stream")
    begin, end = times[0] - clip.span / 2, times[-1] + clip.span / 2
    blocks: list[NDArray[np.float64]] = []
    with open_sound(clip.sound, RATE, stream, "soxr", limits) as source:
        held, start = 0, source.start
        for block in source.blocks:
            blocks.append(block)
            held += len(block)
            if start + held / RATE >= end:
                break
    sound = np.concatenate(blocks) if blocks else np.zeros(0)
    waveform = np.zeros(max(1, round((end - begin) * RATE)))
    shift = round((start - begin) * RATE)
    there = sound[max(0, -shift) :][: max(0, len(waveform) - max(0, shift))]
    waveform[max(0, shift) :][: len(there)] = there
    return Heard(waveform, tuple(_windows(times, begin, audio, start, len(sound) / RATE)))


def _windows(
    times: Sequence[float], begin: float, audio: Mapping[str, Any], start: float, seconds: float
) -> list[Window]:
    """Where the windows lie on the frames' axis.

    times, begin: of the frames, and when their axis begins.  start, seconds: of the sound.
    """
    made = encoder(str(audio["encoder"])) if "encoder" in audio else encoder("mel-stats")
    length, step = made.window / made.rate, made.stride / made.rate
    if audio.get("windows") == "centred":
        middles = enumerate(time - begin for time in times)
        return [Window(t, middle - length / 2, middle + length / 2) for t, middle in middles]
    count = max(0, int((seconds - length) / step + 1e-9) + 1)
    starts = [start - begin + t * step for t in range(min(count, len(times)))]
    return [Window(t, first, first + length) for t, first in enumerate(starts)]


def spectrogram(heard: Heard, height: int = 64) -> Pixels:
    """A picture of the log-mel that the front-end makes of it: [height, columns, 3], low at the
    bottom, a column each 10 ms."""
    import torch

    from ...model.vggish import HOP, STRIDE, WINDOW, LogMel

    columns = -(-len(heard.waveform) // HOP)
    count = -(-len(heard.waveform) // STRIDE)
    padded = torch.zeros((count - 1) * STRIDE + WINDOW, dtype=torch.float64)
    padded[: len(heard.waveform)] = torch.from_numpy(heard.waveform)[: len(padded)]
    patches = LogMel()(padded.unfold(0, WINDOW, STRIDE))
    mel = patches.flatten(0, 1)[:columns].numpy().T[::-1]
    low, high = np.log(0.01), max(float(mel.max()), 0.0)
    return _inked((mel - low) / (high - low)).repeat(max(1, height // len(mel)), 0)


def _inked(values: NDArray[np.floating]) -> Pixels:
    """0..1 -> colours."""
    places = np.linspace(0, 1, len(_INK))
    channels: Sequence[NDArray[np.floating]] = [
        np.interp(values, places, [ink[c] for ink in _INK]) for c in range(3)
    ]
    return np.stack(channels, -1).round().astype(np.uint8)


def wav(heard: Heard) -> bytes:
    """A WAV file of 16 bits, which every browser plays."""
    samples = (heard.waveform.clip(-1, 1) * 32767).round().astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(samples.tobytes())
    return file.getvalue()
