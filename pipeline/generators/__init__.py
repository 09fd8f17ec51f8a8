"""Maskige generators by name.

To add one, write a module that makes its `Generator`, import it here and name it in GENERATORS. The
manifest takes its settings from there; modules import what is heavy where they compute.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import unknown
from ..imports import IMPORTED
from .felzenszwalb import FELZENSZWALB
from .generator import Generator
from .sam import SAM
from .semantic_sam import SEMANTIC_SAM

GENERATORS: Mapping[str, Generator] = {
    "felzenszwalb": FELZENSZWALB,
    **SAM,
    **SEMANTIC_SAM,
}

SECTIONS: Mapping[str, type[Any]] = {each.section: each.settings for each in GENERATORS.values()}
"""Section of `stages.maskige` in the manifest -> the record of its settings."""


def generator(name: str) -> Generator:
    """The generator of that name. Raises ComboError."""
    if name not in GENERATORS:
        known = (*GENERATORS, IMPORTED)
        raise unknown(f"no Maskige generator {name!r}", name, known, "the manifest may name")
    return GENERATORS[name]
