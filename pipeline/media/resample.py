"""Resampling in a stream, by the reference's filter or by soxr.

VGGish's published front-end resamples with resampy's "kaiser_best". Its filter already falls from
7.0 kHz on (-14 dB at 7.5 kHz), which the two highest mel bands hear: with a flatter resampler such
as soxr their log-mels are off by up to 0.5. Embeddings that should equal the reference's therefore
need this filter, and get it here as a bank of one short filter for each position that an output
sample can have between two input samples. That turns resampling into products of matrices, and
needs neither resampy's compiler nor its time.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Literal, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Samples = NDArray[np.float64]
"""Double precision from the file to the front-end: half of it would be heard in the quiet bands."""
Resampling = Literal["kaiser_best", "soxr"]

ZEROS, ROLL_OFF, BETA = 50, 0.9173473712, 12.9846
"""kaiser_best of resampy 0.4: zero crossings on each side, cut-off against Nyquist's, window."""
TABLE = 8192
"""Entries of resampy's filter table from one zero crossing to the next."""

_OUTPUTS_AT_ONCE = 64


class KaiserBest:
    """A stream from one rate to another that gives resampy's numbers to float noise.

    Beyond its ends the sound is taken as zero, and N samples become floor(N * rate / rate_in), as
    in the reference.
    """

    def __init__(self, rate_in: int, rate: int) -> None:
        self._bank = _bank(rate_in, rate)
        self._ratio = rate, rate_in
        self._taken = self._given = 0
        # The first output reaches back before the first sample.
        self._pending = np.zeros(self._bank.reach - 1, dtype=np.float64)

    def push(self, block: Samples) -> Samples:
        """What can be said after [n] more samples: [m] float64."""
        self._taken += len(block)
        return self._advance(block)

    def finish(self) -> Samples:
        """The rest, after the last block."""
        rate, rate_in = self._ratio
        missing = self._taken * rate // rate_in - self._given
        bank = self._bank
        silence = np.zeros(2 * bank.reach + 2 * bank.inputs, dtype=np.float64)
        return self._advance(silence)[:missing]

    def _advance(self, block: Samples) -> Samples:
        import torch

        bank = self._bank
        samples = np.concatenate([self._pending, block])
        periods = max(0, (len(samples) - bank.span) // bank.inputs + 1)
        out = np.empty((periods, bank.outputs), dtype=np.float64)
        for part in bank.parts if periods else ():
            windows = sliding_window_view(samples[part.begin :], len(part.weights))
            windows = np.array(windows[:: bank.inputs][:periods], order="C")
            # PyTorch's product, because its threads are those that the stage was given.
            out[:, part.outputs] = torch.from_numpy(windows) @ torch.from_numpy(part.weights)
        self._pending = samples[periods * bank.inputs :]
        self._given += out.size
        return out.reshape(-1)


class Soxr:
    """A stream through soxr's highest quality: flat up to 7.4 kHz when the result has 16 kHz."""

    def __init__(self, rate_in: int, rate: int) -> None:
        import soxr

        self._stream = soxr.ResampleStream(rate_in, rate, 1, dtype="float64", quality="VHQ")

    def push(self, block: Samples) -> Samples:
        """What can be said after [n] more samples: [m] float64."""
        return self._stream.resample_chunk(block)

    def finish(self) -> Samples:
        """The rest, after the last block."""
        return self._stream.resample_chunk(np.zeros(0, dtype=np.float64), last=True)


class Unchanged:
    """A stream that has its rate already."""

    def push(self, block: Samples) -> Samples:
        return block

    def finish(self) -> Samples:
        return np.zeros(0, dtype=np.float64)


class Resampler(Protocol):
    def push(self, block: Samples) -> Samples: ...
    def finish(self) -> Samples: ...


def resampler(kind: Resampling, rate_in: int, rate: int) -> Resampler:
    """The stream of this name from one rate (samples per second) to another."""
    if rate_in == rate:
        return Unchanged()
    return {"kaiser_best": KaiserBest, "soxr": Soxr}[kind](rate_in, rate)


@dataclass(frozen=True)
class _Part:
    """Neighbouring outputs of a period: their window's first sample and weights [window, n]."""

    begin: int
    outputs: slice
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class _Bank:
    """Filters of one period: after `inputs` samples or `outputs` samples everything repeats.

    reach: samples on each side of an output that it hears.  span: samples that one period hears.
    """

    inputs: int
    outputs: int
    reach: int
    span: int
    parts: tuple[_Part, ...]


@lru_cache(maxsize=4)
def _bank(rate_in: int, rate: int) -> _Bank:
    common = gcd(rate_in, rate)
    inputs, outputs = rate_in // common, rate // common
    # Short periods are taken several times, so that a product has some width.
    several = -(-_OUTPUTS_AT_ONCE // outputs)
    inputs, outputs = inputs * several, outputs * several
    scale = min(1.0, rate / rate_in)
    # Quirk: the reference walks through its table in whole steps, which bends the filter a little
    # differently for each output; worth a hundredth in the log-mels of quiet bands.
    step = int(scale * TABLE)
    length = ZEROS * TABLE + 1
    reach = length // step

    ticks = np.arange(outputs) * inputs
    before, fraction = ticks // outputs, (ticks % outputs / outputs)[:, None]
    steps = np.arange(reach) * step

    def wing(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        places = distance * scale * TABLE
        taps = (length - places.astype(np.int64)) // step
        weights = _filter((places + steps) / TABLE) * scale
        return np.where(np.arange(reach) < taps, weights, 0.0)

    filters = np.concatenate([wing(fraction)[:, ::-1], wing(1 - fraction)], axis=1)
    parts: list[_Part] = []
    for some in np.array_split(np.arange(outputs), -(-outputs // _OUTPUTS_AT_ONCE)):
        begin = int(before[some[0]])
        weights = np.zeros((int(before[some[-1]]) - begin + 2 * reach, len(some)))
        for column, output in enumerate(some):
            at = int(before[output]) - begin
            weights[at : at + 2 * reach, column] = filters[output]
        parts.append(_Part(begin, slice(int(some[0]), int(some[-1]) + 1), weights))
    return _Bank(inputs, outputs, reach, int(before[-1]) + 2 * reach, tuple(parts))


def _filter(crossings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of the low-pass filter, at these distances in zero crossings: a Kaiser-windowed sinc."""
    inside = np.sqrt(np.clip(1 - (crossings / ZEROS) ** 2, 0, None))
    window = np.i0(BETA * inside) / np.i0(BETA)
    return ROLL_OFF * np.sinc(ROLL_OFF * crossings) * window
