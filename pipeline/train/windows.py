"""A clip of any length as clips of the T frames that a network was trained with.

Neighbours share half of their frames, and what a frame is given is the mean over the clips that it
is in: a network that looks across frames then never changes its mind at a seam alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Clips of `length` frames over `frames` frames; one shorter clip where there are fewer."""

    frames: int
    length: int

    @property
    def starts(self) -> list[int]:
        """The first frame of each clip; the last clip ends with the last frame."""
        last = self.frames - self.length
        if last <= 0:
            return [0]
        return [*range(0, last, (self.length + 1) // 2), last]

    def spans(self, first: int = 0) -> Iterator[tuple[int, int, int]]:
        """Every clip that a frame from `first` on is in: [begin, end), and below which frame all
        have then been in every clip of theirs."""
        starts = self.starts
        for start, settled in zip(starts, [*starts[1:], self.frames], strict=True):
            end = min(start + self.length, self.frames)
            if end > first:
                yield start, end, settled


class RunningMean:
    """Scores of frames that are still in clips to come."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Tensor, int]] = {}

    def add(self, frame: int, scores: Tensor) -> None:
        known, count = self._sums.get(frame, (None, 0))
        self._sums[frame] = (scores if known is None else known + scores), count + 1

    def take(self, before: int) -> Iterator[tuple[int, Tensor]]:
        """Frames below `before`, in order, and their mean scores; they are forgotten."""
        for frame in sorted(frame for frame in self._sums if frame < before):
            total, count = self._sums.pop(frame)
            yield frame, total / count
