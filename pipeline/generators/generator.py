"""What a Maskige generator is: frames in, label maps out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..devices import Place
from ..media.images import Pixels

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class LabelMap:
    """One frame's merged masks. label_map: [H,W] uint8.  left_out: masks beyond the 255th."""

    label_map: Pixels
    masks: int
    left_out: int


Generate = Callable[[Sequence[Pixels]], list[LabelMap]]
"""Frames of a clip, each [H,W,3] uint8 RGB -> one label map a frame."""


class Arithmetic(Protocol):
    """How a generator's network computes; `MaskigeSettings` is one."""

    @property
    def precision(self) -> Precision: ...

    @property
    def compile(self) -> bool: ...

    @property
    def memory_limit(self) -> int | None:
        """Bytes, or None for what the device has."""
        ...


def no_facts(_settings: Any, _arithmetic: Arithmetic) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Generator:
    """A generator, made once a process.

    section: what the manifest calls its settings.  settings: their record, with defaults.
    open: (settings, arithmetic, weights file or None, threads and device) -> the function.
    facts: what changes the result beside the settings.  weights: the catalogue's name of the
    weights it needs, or None.
    """

    section: str
    settings: type[Any]
    open: Callable[[Any, Arithmetic, Path | None, Place], Generate]
    facts: Callable[[Any, Arithmetic], Mapping[str, Any]] = no_facts
    weights: str | None = None
