"""What somebody else has computed: how a manifest asks for it and how a variant says so.

The stages that take it into the store are in `preprocess`, where it lies is known to
`layouts.published`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import ComboError

if TYPE_CHECKING:
    from .manifest import Stages

IMPORTED = "imported"
"""Stands in the place of a generator's name, or of the media that frames are from."""

_KEYS = {"frames": "source", "maskige": "generator"}
"""Stage -> the setting in which that stands, in a manifest as in a variant."""

_OTHERWISE = {
    "frames": "leave stages.frames.source out of the manifest",
    "maskige": "name another generator with --generator",
}


def is_imported(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a variant, of any stage, say that it was imported."""
    return IMPORTED in (settings.get(key) for key in _KEYS.values())


def stages_asked(stages: "Stages") -> list[str]:
    """The stages that a manifest wants to be imported."""
    return [name for name, key in _KEYS.items() if getattr(getattr(stages, name), key) == IMPORTED]


def settings_of(stage: str, tree: str, note: str) -> dict[str, str]:
    """What a variant's settings say of where it is from. tree: its kind.  note: its owner's."""
    return {_KEYS[stage]: IMPORTED, "tree": tree, "note": note}


def not_computed(stage: str) -> ComboError:
    """What is said when a stage that is to be imported is to be computed."""
    what = {"frames": "frames", "maskige": "Maskiges"}[stage]
    return ComboError(
        f"imported {what} are not computed; run: combo import-{stage} DIR, or {_OTHERWISE[stage]}"
    )
