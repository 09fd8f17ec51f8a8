"""Clips of one Zarr array for whoever reads many: never a value that was not written.

Three things stand between a reader and wrong numbers, and cost next to nothing. Chunks carry a
checksum of what is in them, so a flipped byte is an error. A chunk that is not there is an error
too, and not fill value. And before the first clip of a shard is given out, the checksums in the
file are held against those in `finished.json`, which tells the bytes of other clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .clip_checks import checks_in, clip_check


@dataclass(frozen=True)
class Checked:
    """What clips must be. checks: [clips].  per_unit: clips of a shard.  shard: the file of a unit,
    if checksums can be read from there."""

    checks: np.ndarray
    per_unit: int
    shard: Callable[[int], Path] | None


class Rows:
    """Clips of one array, read in tensorstore's own threads.

    whole, filled: the array twice; a missing chunk is an error in the one, fill value in the other.
    checked: None where nothing is known of what clips must be.  damaged: the error for a clip (its
    row, what is wrong).
    """

    def __init__(
        self,
        whole: Any,
        filled: Any,
        checked: Checked | None,
        damaged: Callable[[int, str], Exception],
    ) -> None:
        self._whole, self._filled, self._checked, self._damaged = whole, filled, checked, damaged
        self.held = np.zeros(0 if checked is None else len(checked.checks), bool)
        """[clips], those that are known to be what was written."""

    def ask(self, rows: Sequence[int] | np.ndarray) -> "Asked":
        """Start reading clips. Raises what `damaged` gives."""
        rows = np.asarray(rows)
        if self._checked is not None and self._checked.shard is not None:
            for row in rows[~self.held[rows]].tolist():
                if self._checked.shard(row // self._checked.per_unit).is_fifo():
                    raise self._damaged(row, "lies in a pipe, no regular file")  # it would wait
        return Asked(self, rows, self._whole[rows].read())

    def take(self, rows: np.ndarray, reading: Any) -> np.ndarray:
        """What was asked for, [len(rows), ...]. Raises what `damaged` gives."""
        try:
            found: np.ndarray = reading.result()
        except Exception:
            return np.stack([self._alone(int(row)) for row in rows])
        if self._checked is not None and not self.held[rows].all():
            self._look_at_shards(rows[~self.held[rows]], self._checked)
            for place in np.flatnonzero(~self.held[rows]):
                self._hold(int(rows[place]), found[place], self._checked)
        return found

    def _look_at_shards(self, rows: np.ndarray, checked: Checked) -> None:
        if checked.shard is None:
            return
        for unit in np.unique(rows // checked.per_unit).tolist():
            clips = slice(unit * checked.per_unit, (unit + 1) * checked.per_unit)
            wanted = checked.checks[clips]
            there = checks_in(checked.shard(unit), checked.per_unit)
            self.held[clips] = there[: len(wanted)] == wanted

    def _alone(self, row: int) -> np.ndarray:
        """One clip of those that could not be read together: to know which, and since older stores
        have no chunks where all is fill value, which its check tells from a loss."""
        try:
            found: np.ndarray = self._filled[row].read().result()
        except Exception as error:  # whatever the codecs say
            reason = " ".join(str(error).split())[:200]
            raise self._damaged(row, f"cannot be read ({reason})") from error
        if self._checked is not None:
            self._hold(row, found, self._checked)
        return found

    def _hold(self, row: int, clip: np.ndarray, checked: Checked) -> None:
        """Hold a clip's values themselves against its check."""
        if clip_check(clip) != checked.checks[row]:
            raise self._damaged(row, "is not what was written")
        self.held[row] = True


@dataclass(frozen=True)
class Asked:
    """Clips that are being read."""

    rows: Rows
    clips: np.ndarray
    reading: Any

    def result(self) -> np.ndarray:
        """[clips, ...]. Raises StoreDamaged."""
        return self.rows.take(self.clips, self.reading)
