"""Names that a shell completes. Imports nothing heavy; what cannot be read completes nothing."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import ComboError

if TYPE_CHECKING:
    from ..manifest import Manifest


def presets() -> list[str]:
    from ...model.presets import PRESETS

    return list(PRESETS)


def generators() -> list[str]:
    from ..generators import GENERATORS
    from ..imports import IMPORTED

    return [*GENERATORS, IMPORTED]


def encoders() -> list[str]:
    from ..encoders import ENCODERS

    return list(ENCODERS)


def weights() -> list[str]:
    from ..weights_catalogue import CATALOGUE

    return list(CATALOGUE)


def data_sets(context: typer.Context) -> list[str]:
    return _of_manifest(context, lambda manifest: manifest.data_sets)


def splits(context: typer.Context) -> list[str]:
    from ..jobs.plan import splits_of

    named: list[str] = context.params.get("data") or []

    def of(manifest: "Manifest") -> Iterable[str]:
        chosen = manifest.choose(named)
        return dict.fromkeys(split for name in chosen for split in splits_of(manifest, name))

    return _of_manifest(context, of)


def _of_manifest(context: typer.Context, names: "Callable[[Manifest], Iterable[str]]") -> list[str]:
    from ..manifest import load_manifest

    given = context.params.get("manifest")
    try:
        return list(names(load_manifest(Path(given) if given else None)))
    except (ComboError, OSError):
        return []
