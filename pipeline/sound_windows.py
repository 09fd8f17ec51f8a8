"""Windows around frames, cut from a sound while it is read, however long it is.

`combo.model.vggish.centred` cuts the same windows from a whole waveform.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..model.vggish import RATE, WINDOW, window_starts
from .resample import Samples


def centred_windows(
    blocks: Iterable[Samples], seconds: Sequence[float]
) -> Iterator[tuple[int, Samples]]:
    """One window around each timestamp, from a sound that comes block by block.

    blocks: the waveform in pieces, 16 kHz.  seconds: [T] timestamps, measured from the first
    sample, in any order.  Yields (t, window [15600]) in the order of time; where a window reaches
    over an end of the sound it holds zeros there. Keeps one block and one window of sound, and asks
    for no block behind the last window's end.
    Raises ValueError for a sound shorter than one window and for a timestamp whose window has no
    sound in it at all.
    """
    starts = window_starts(seconds).tolist()
    waiting = sorted(range(len(starts)), key=starts.__getitem__, reverse=True)
    if waiting and starts[waiting[-1]] + WINDOW <= 0:
        raise ValueError(f"no sound around {seconds[waiting[-1]]:.2f} s: the sound begins later")
    begin = 0
    held = np.zeros(0, dtype=np.float64)
    for block in blocks:
        held = np.concatenate([held, block])
        end = begin + len(held)
        # A sound that is too short has no windows, not even those that its first samples fill.
        while waiting and WINDOW <= end >= starts[waiting[-1]] + WINDOW:
            t = waiting.pop()
            yield t, _cut(held, starts[t] - begin)
        if not waiting:
            return
        outlived = min(max(starts[waiting[-1]] - begin, 0), len(held))
        begin, held = begin + outlived, held[outlived:]
    end = begin + len(held)
    if end < WINDOW:
        raise ValueError(f"the sound lasts {end / RATE:.3f} s, shorter than one window of 0.975 s")
    for t in reversed(waiting):
        if starts[t] >= end:
            length = end / RATE
            raise ValueError(
                f"no sound around {seconds[t]:.2f} s: the sound is {length:.2f} s long"
            )
        yield t, _cut(held, starts[t] - begin)


def _cut(held: Samples, start: int) -> Samples:
    window = np.zeros(WINDOW, dtype=np.float64)
    there = held[max(start, 0) : max(start + WINDOW, 0)]
    window[max(-start, 0) :][: len(there)] = there
    return window
