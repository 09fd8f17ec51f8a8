"""How long a command will take, over all its stages and splits, from units that were measured.

A stage that works now is measured by what it has done, whatever its units take; one that comes
later by units of the same settings that the store has. What nothing is known of is said.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from .unit import Job


@dataclass
class Share:
    """What a command has to do of a job. units, clips: to do.  seconds: what all of it will take,
    None where no unit of these settings was measured."""

    job: Job
    units: list[int]
    seconds: float | None
    done: int = 0
    """Units."""
    failed: int = 0
    """Clips."""
    began: float | None = None
    moved: float = 0.0

    @property
    def clips(self) -> int:
        return sum(len(self.job.plan.members(unit)) for unit in self.units)

    @property
    def name(self) -> str:
        return f"{self.job.split} {self.job.variant.stage}"

    def begin(self) -> None:
        self.began = self.moved = time.monotonic()

    def unit(self, failed: int) -> None:
        """One more unit is done, of which so many clips failed."""
        self.done, self.failed, self.moved = self.done + 1, self.failed + failed, time.monotonic()

    def left(self) -> float | None:
        """Seconds; None where nothing is known."""
        if self.done >= len(self.units):
            return 0.0
        spent = 0.0 if self.began is None else time.monotonic() - self.began
        whole = self.seconds
        if self.began is not None and self.done:
            whole = (self.moved - self.began) / self.done * len(self.units)
        return None if whole is None else max(0.0, whole - spent)


def seconds_left(shares: Sequence[Share]) -> tuple[float | None, list[Share]]:
    """The time left, of what is known (None: of nothing), and what is not."""
    left = [(share, share.left()) for share in shares]
    known = [seconds for _, seconds in left if seconds is not None]
    unknown = [share for share, seconds in left if seconds is None]
    some = any(known) or not unknown
    return sum(known) if some else None, unknown
