"""What a stage is: a variant (name, fingerprint, arrays) and a function from clips to arrays."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import MediaError
from ..layouts import Clip
from ..store import ArraySpec, Variant, fingerprint


@dataclass(frozen=True)
class Outcome:
    """What a stage made of one clip: its arrays by name, or the reason why it could not."""

    arrays: Mapping[str, np.ndarray] | None
    reason: str = ""
    inputs: str = ""
    """SHA-256 over the digests of the files that were read."""


@dataclass(frozen=True)
class Place:
    """Where one process computes. device: as PyTorch names it; networks go there."""

    threads: int = 1
    device: str = "cpu"


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


def make_variant(
    stage: str,
    label: str,
    version: int,
    settings: Mapping[str, Any],
    arrays: tuple[ArraySpec, ...],
    weights: Mapping[str, str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Variant:
    """A variant named after what it is and its fingerprint.

    version: raised whenever the stage's code gives other numbers for the same settings.
    weights: digest of each weights file by name.
    """
    settings = {"version": version, **settings}
    digest = fingerprint({"stage": stage, "settings": settings, "weights": weights or {}})
    return Variant(
        stage=stage,
        name=f"{label}-{digest[:8]}",
        fingerprint=digest,
        settings=settings,
        weights=weights or {},
        arrays=arrays,
        attributes=attributes or {},
    )


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
