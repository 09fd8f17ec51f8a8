"""The stages that a network was trained with, made ready for media that no data set holds.

Everything comes from the run's record: sizes and fits, the sound encoder, the Maskige generator,
their settings and their weights' digests. A stage that this combo would compute otherwise than the
one that was trained with is refused, since its numbers would mean something else to the network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import remedies
from ..errors import ComboError
from ..generators import generator
from ..imports import is_imported
from ..manifest import AudioSettings, MaskigeSettings
from ..media.pictures import Fit
from ..preprocess import audio, maskige
from ..preprocess.stage import Description
from ..weights import resolve
from .trained import Trained


@dataclass(frozen=True)
class RunStages:
    """What makes a network's input. maskige: None for a network that reads none."""

    size: tuple[int, int]
    fit: Fit
    sound: audio.AudioStage
    maskige: maskige.MaskigeStage | None
    palette: list[list[int]]
    described: dict[str, Any]
    """Stage -> settings and weights' digests: what a prediction depends on."""


def stages_of(of: Trained, instead: str | None = None) -> RunStages:
    """The stages of a network. instead: the generator, where its Maskiges were imported.

    Raises ComboError: weights that are missing or others, imported Maskiges and no `instead`, a
    stage that this combo has in another version.
    """
    settings = of.settings
    frames = settings["frames"]
    size, fit = (frames["size"][0], frames["size"][1]), frames["fit"]
    sound = _sound(of, settings["audio"])
    masks = None
    if "maskige" in settings:
        masks = _maskige(of, settings["maskige"], (size, fit), instead)
    elif instead is not None:
        raise ComboError(f"{of.name} reads no Maskiges; leave --generator out")
    described: dict[str, Any] = {"frames": {"size": list(size), "fit": fit}}
    digests = {name: digest for name, (_, digest) in sound.weights.items()}
    described["audio"] = {"settings": dict(settings["audio"]), "weights": digests}
    palette: list[list[int]] = []
    if masks is not None:
        variant = masks.variant()
        described["maskige"] = {
            "settings": dict(variant.settings),
            "weights": dict(variant.weights),
        }
        palette = variant.attributes["palette"]
    return RunStages(size, fit, sound, masks, palette, described)


def _sound(of: Trained, trained: Mapping[str, Any]) -> audio.AudioStage:
    """The encoder, on windows around frames: the one rule that knows no end of a clip."""
    own = {k: v for k, v in trained.items() if k in AudioSettings.model_fields and k != "windows"}
    settings = AudioSettings(**own)
    described = audio.describe(settings, trained["windows"], of.length, trained.get("reading", 1))
    _demand_alike(of, described, trained)
    files = _weights(of, described)
    heard = settings.model_copy(update={"source": "sound"})
    return audio.AudioStage(heard, "centred", of.length, files, of.manifest.limits)


def _maskige(
    of: Trained,
    trained: Mapping[str, Any],
    fitted: tuple[tuple[int, int], Fit],
    instead: str | None,
) -> maskige.MaskigeStage:
    was_imported = is_imported(trained)
    if was_imported and instead is None:
        raise ComboError(
            f"{of.name} was trained on imported Maskiges, which say not what made them; "
            "name the generator with --generator, as --generator semantic-sam-l"
        )
    if not was_imported and instead is not None:
        raise ComboError(
            f"{of.name} was trained on Maskiges of {trained['generator']}; leave --generator out"
        )
    if instead is not None:
        settings = of.manifest.stages.maskige.model_copy(update={"generator": instead})
        described = maskige.describe(settings, *fitted, 1)
        files = _weights(of, described, any_will_do=True)
    else:
        settings = _maskige_settings(trained)
        described = maskige.describe(settings, *fitted, 1, trained.get("reading", 1))
        _demand_alike(of, described, trained)
        files = _weights(of, described)
    return maskige.MaskigeStage(settings, *fitted, 1, files, of.manifest.limits)


def _maskige_settings(trained: Mapping[str, Any]) -> MaskigeSettings:
    made = generator(trained["generator"])
    own = {f.name: trained[f.name] for f in fields(made.settings) if f.name in trained}
    shared = {k: trained[k] for k in ("generator", "at", "precision", "compile") if k in trained}
    return MaskigeSettings.model_validate({**shared, made.section: own})


def _demand_alike(of: Trained, described: Description, trained: Mapping[str, Any]) -> None:
    """Raise ComboError where the stage of today is not the one that was trained with."""
    now = json.loads(json.dumps(described.recorded, default=str))  # as the run noted it
    unlike = [name for name in now.keys() | trained.keys() if now.get(name) != trained.get(name)]
    if unlike:
        name = min(unlike)
        raise ComboError(
            f"{of.name} was trained with {described.stage} {name} {trained.get(name)!r}, and this "
            f"combo has {now.get(name)!r}; use the combo that it was trained with"
        )


def _weights(
    of: Trained, described: Description, any_will_do: bool = False
) -> dict[str, tuple[Path, str]]:
    files = {name: resolve(name, of.manifest) for name in described.weights}
    if of.weights is None or any_will_do:
        return files
    for name, (path, sha256) in files.items():
        known = of.weights[described.stage].get(name, "")
        if known != sha256:
            raise ComboError(
                f"{path} has SHA-256 {sha256[:16]}, and {of.name} was trained with weights {name} "
                f"of {known[:16]}; put those back, or: {remedies.add(name)}"
            )
    return files
