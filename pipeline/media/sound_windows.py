"""Windows around frames, cut from a sound while it is read, however long it is.

`combo.model.vggish.centred` cuts the same windows from a whole waveform, and refuses those that
have no sound in them.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...model.vggish import RATE, WINDOW, window_starts
from .clock import LACK
from .resample import Samples


def centred_windows(
    blocks: Iterable[Samples],
    seconds: Sequence[float],
    begins: float = 0.0,
    span: float = 1.0,
    rate: int = RATE,
    window: int = WINDOW,
    lacking: list[int] | None = None,
) -> Iterator[tuple[int, Samples]]:
    """One window around each frame's time, from a sound that comes block by block.

    blocks: the waveform in pieces.  seconds: [T] times of the frames, in any order, and begins:
    that of the first sample, on one clock.  span: seconds that a frame stands for, half of them
    before its time.  rate: samples per second.  window: samples of one.
    Yields (t, window [samples]) in the order of time; where a window reaches over an end of the
    sound it holds zeros there. Keeps one block and one window of sound, and asks for no block
    behind the last window's end.

    A sound that begins after the first frame's span, or ends before the last one's, by less than a
    window step is silent there. Raises ValueError for a frame whose window has no sound
    in it at all because more than that is lacking, and for a sound without a sample.
    lacking: receives the places of such frames, which then are no error and get no window.
    """
    starts = window_starts([time - begins for time in seconds], rate, window).tolist()
    waiting = sorted(range(len(starts)), key=starts.__getitem__, reverse=True)
    reach = LACK - min(span, LACK) / 2

    def lacks(t: int, distance: float, what: str) -> bool:
        if distance < reach:
            return False
        if lacking is None:
            raise ValueError(f"no sound around the frame at {seconds[t]:.2f} s: the sound {what}")
        lacking.append(t)
        return True

    while waiting and starts[t := waiting[-1]] + window <= 0:
        if not lacks(t, begins - seconds[t], f"begins at {begins:.2f} s"):
            break
        waiting.pop()
    begin = 0
    held = np.zeros(0, dtype=np.float64)
    for block in blocks:
        held = np.concatenate([held, block])
        end = begin + len(held)
        while waiting and 0 < end >= starts[waiting[-1]] + window:
            t = waiting.pop()
            yield t, _cut(held, starts[t] - begin, window)
        if not waiting:
            return
        outlived = min(max(starts[waiting[-1]] - begin, 0), len(held))
        begin, held = begin + outlived, held[outlived:]
    end = begin + len(held)
    if end == 0:
        raise ValueError("the sound has no sample")
    for t in reversed(waiting):
        if starts[t] >= end:
            ends = begins + end / rate
            if lacks(t, seconds[t] - ends, f"ends at {ends:.2f} s"):
                continue
        yield t, _cut(held, starts[t] - begin, window)


def _cut(held: Samples, start: int, length: int) -> Samples:
    window = np.zeros(length, dtype=np.float64)
    there = held[max(start, 0) : max(start + length, 0)]
    window[max(-start, 0) :][: len(there)] = there
    return window
