"""What a stage is: a description, and a function from a unit's clips to arrays.

The description is pure: it follows from settings alone and needs neither data nor weights, so that
whoever trains can ask a store for it. With the digests of the weights it becomes a variant.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..devices import Place
from ..errors import MediaError
from ..identity import fingerprint
from ..layouts import Clip
from ..store import ArraySpec, Variant


@dataclass(frozen=True)
class Outcome:
    """What a stage made of one clip: its arrays by name, or the reason why it could not."""

    arrays: Mapping[str, np.ndarray] | None
    reason: str = ""
    inputs: str = ""
    """SHA-256 over the digests of the files that were read."""


Worker = Callable[[Sequence[Clip]], list[Outcome]]
"""A stage with its networks loaded, in one process: a unit's clips in, one outcome a clip out."""


class Stage(Protocol):
    """A stage for one split; small, picklable, and cheap to make. `open` loads what it needs."""

    @property
    def has_network(self) -> bool:
        """Whether a GPU makes it faster."""
        ...

    def variant(self) -> Variant: ...

    def open(self, place: Place) -> Worker: ...

    def inputs(self, clip: Clip) -> list[Path]:
        """The files whose digests an outcome's `inputs` is made of, in that order."""
        ...


@dataclass(frozen=True)
class Description:
    """What a stage makes.

    label: what the names of its variants begin with.  version: raised whenever the stage's code
    gives other numbers for the same settings.  settings: all that changes what comes out (see
    `identity.recorded`).  weights: catalogue names of those it needs.
    """

    stage: str
    label: str
    version: int
    settings: Mapping[str, Any]
    arrays: tuple[ArraySpec, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weights: tuple[str, ...] = ()

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as a variant has them."""
        return {"version": self.version, **self.settings}

    def variant(self, digests: Mapping[str, str] | None = None) -> Variant:
        """The variant that weights with these digests make, by catalogue name."""
        weights = dict(digests or {})
        digest = fingerprint({"stage": self.stage, "settings": self.recorded, "weights": weights})
        return Variant(
            stage=self.stage,
            name=f"{self.label}-{digest[:8]}",
            fingerprint=digest,
            settings=self.recorded,
            weights=weights,
            arrays=self.arrays,
            attributes=self.attributes,
        )


def read_as(reading: int) -> dict[str, int]:
    """The settings that say how a layout's files are read: none where that never changed."""
    return {"reading": reading} if reading > 1 else {}


def combined_digest(digests: Iterable[str]) -> str:
    """One digest for all the files of a clip, in the order they were read."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def attempt(clip: Clip, process: Callable[[Clip], Outcome]) -> Outcome:
    """What `process` makes of a clip, or why it could not: one bad file costs its clip, no more."""
    if clip.problem is not None:
        return Outcome(None, clip.problem)
    try:
        return process(clip)
    except MediaError as error:
        return Outcome(None, str(error))
