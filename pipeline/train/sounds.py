"""Which sound each clip is given, right or wrong on purpose.

As AVSBench-Robust means it, with one difference: every wrong sound comes through the same front-end
as the right one, so that no network can tell it by that alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ComboError, WrongUsage, unknown
from .loader import ClipReader

MEANINGS = {
    "right": "each clip's own sound",
    "swapped": "another clip's, half the split further on; everybody's once",
    "silent": "embeddings of zeros",
    "noise": "random numbers with the mean and deviation of the split's embeddings",
    "same-class": "another clip's of the same category; clips alone in theirs are left out",
    "other-class": "another clip's of another category",
}
"""Every sound by name, and what it is."""

FITTING = ("right", "same-class")
"""Sounds of something in sight; with all others nothing that is heard is seen."""

BY_CATEGORY = ("same-class", "other-class")


def parse(text: str) -> list[str]:
    """`right,silent` -> names. Raises ComboError for one that is none, or is named twice."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MEANINGS:
            raise unknown(f"--sound {text}: {name!r} is none", name, MEANINGS)
        if names.count(name) > 1:
            there = ", ".join(MEANINGS)
            raise WrongUsage(f"--sound {text}: {name!r} is named twice; there are {there}")
    return names


class Sounds:
    """The sounds that the clips of a split are given.

    categories: of every clip of `reader.rows`, in their order, where they are known.
    Raises ComboError where a sound cannot be had in this split.
    """

    def __init__(
        self, reader: ClipReader, names: Sequence[str], categories: Sequence[str] = ()
    ) -> None:
        self._reader = reader
        self._others: Mapping[str, np.ndarray] = {
            name: _others(name, reader, categories)
            for name in names
            if name in ("swapped", *BY_CATEGORY)
        }
        self._noise = _noise(reader) if "noise" in names else None

    def of(self, name: str, number: int) -> Tensor | None:
        """The sound of the number-th labelled clip, [1, T, D]; None where there is none."""
        place = self._reader.labelled[number]
        if name in self._others:
            other = int(self._others[name][place])
            return None if other < 0 else self._reader.sound([other])
        if name == "noise" and self._noise is not None:
            return self._noise[number]
        own = self._reader.sound([place])
        return torch.zeros_like(own) if name == "silent" else own


def _noise(reader: ClipReader) -> list[Tensor]:
    """For each labelled clip normal numbers with the mean and deviation of the split's embeddings,
    [1, T, D]."""
    mean, deviation = reader.sound_statistics()
    generator, shape = torch.Generator().manual_seed(0), reader.sound([0]).shape
    return [mean + deviation * torch.randn(shape, generator=generator) for _ in reader.labelled]


def _others(name: str, reader: ClipReader, categories: Sequence[str]) -> np.ndarray:
    if name == "swapped":
        return other_clips(len(reader))
    if not categories or not all(categories):
        raise ComboError(
            f"--sound {name}: the categories of {reader.split}'s clips are not known; "
            f"leave it out, or name a manifest with a data set that has them: --manifest"
        )
    if name == "same-class":
        found = same_class(categories)
        if (found[reader.labelled] < 0).all():
            raise ComboError(
                f"--sound same-class: every clip of {reader.split} is alone in its category; "
                f"leave it out"
            )
        return found
    if len(set(categories)) == 1:
        raise ComboError(
            f"--sound other-class: all clips of {reader.split} are {categories[0]}; "
            f"use --sound same-class"
        )
    return other_class(categories)


def other_clips(count: int) -> np.ndarray:
    """Whose sound each clip gets when sounds are swapped: nobody's own, everybody's once. [N]

    Half the split further on, since neighbours in a list are often of one category.
    Raises ComboError for a split of one clip.
    """
    if count < 2:
        raise ComboError("sounds cannot be swapped in a split of one clip; use --sound silent")
    return (np.arange(count) + count // 2) % count


def same_class(categories: Sequence[str]) -> np.ndarray:
    """For each clip another of its category, the next one; -1 where there is none. [N]"""
    found = np.full(len(categories), -1)
    named = np.array(categories)
    for name in set(categories):
        places = np.flatnonzero(named == name)
        if len(places) > 1:
            found[places] = np.roll(places, -1)
    return found


def other_class(categories: Sequence[str]) -> np.ndarray:
    """For each clip one of another category, everybody's once where no category has more than half
    of the clips. Two categories at least. [N]"""
    named = np.array(categories)
    order = np.argsort(named, kind="stable")
    _, counts = np.unique(named, return_counts=True)
    found = np.empty(len(named), int)
    # Side by side a category is at most so long: whoever is that far on is of another one, ...
    found[order] = np.roll(order, -counts.max())
    for place in np.flatnonzero(named[found] == named):
        # ... unless that leads round into the same one, which then has more than half.
        others = np.flatnonzero(named != named[place])
        found[place] = others[place % len(others)]
    return found
