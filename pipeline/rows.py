"""Clips of one Zarr array for whoever reads many: never a value that was not written.

Three things stand between a reader and wrong numbers, none of which costs time that one could
measure. Chunks carry the checksum of what is in them, so a flipped byte is an error. A chunk that
is not there is an error too, and not fill value. And the first time that a clip is read, its values
are held against its check, which tells the bytes of another clip; later times they come from the
same file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clip_checks import clip_check


class Rows:
    """Clips of one array, read in tensorstore's own threads.

    whole, filled: the array twice; a missing chunk is an error in the one, fill value in the other.
    checks: [clips], or None where nothing is known of them.  damaged: the error for a clip (its
    row, what is wrong).
    """

    def __init__(
        self,
        whole: Any,
        filled: Any,
        checks: np.ndarray | None,
        damaged: Callable[[int, str], Exception],
    ) -> None:
        self._whole, self._filled, self._checks, self._damaged = whole, filled, checks, damaged
        self._held = np.zeros(0 if checks is None else len(checks), bool)

    def ask(self, rows: Sequence[int] | np.ndarray) -> "Asked":
        """Start reading clips."""
        return Asked(self, np.asarray(rows), self._whole[rows].read())

    def take(self, rows: np.ndarray, reading: Any) -> np.ndarray:
        """What was asked for, [len(rows), ...]. Raises what `damaged` gives."""
        try:
            found: np.ndarray = reading.result()
        except Exception:
            return np.stack([self._alone(int(row)) for row in rows])
        if self._checks is not None:
            for place in np.flatnonzero(~self._held[rows]):
                self._hold(int(rows[place]), found[place])
        return found

    def _alone(self, row: int) -> np.ndarray:
        """One clip of those that could not be read together: to know which, and since older stores
        have no chunks where all is fill value, which its check tells from a loss."""
        try:
            found: np.ndarray = self._filled[row].read().result()
        except Exception as error:  # whatever the codecs say
            reason = " ".join(str(error).split())[:200]
            raise self._damaged(row, f"cannot be read ({reason})") from error
        if self._checks is not None:
            self._hold(row, found)
        return found

    def _hold(self, row: int, clip: np.ndarray) -> None:
        if self._checks is not None and clip_check(clip) != self._checks[row]:
            raise self._damaged(row, "is not what was written")
        self._held[row] = True


@dataclass(frozen=True)
class Asked:
    """Clips that are being read."""

    rows: Rows
    clips: np.ndarray
    reading: Any

    def result(self) -> np.ndarray:
        """[clips, ...]. Raises StoreDamaged."""
        return self.rows.take(self.clips, self.reading)
