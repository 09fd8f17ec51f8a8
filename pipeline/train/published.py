"""A published COMBO checkpoint as a run's folder, which every command takes like one of our own."""

import dataclasses
import math
from pathlib import Path

from ...model.state_dicts import StateDictError, published_combo, published_preset
from .. import remedies
from ..errors import ComboError
from ..jobs.plan import stage_settings
from ..manifest import Manifest
from ..source import choose_variants, sources_in
from ..store import Plan
from ..weights import load_state
from . import checkpoint
from .presets import RunSettings, resolve
from .run_folder import RunData, RunFolder


def make_run(
    source: Path, folder: Path, manifest: Manifest, preset: str | None = None
) -> tuple[RunFolder, RunSettings]:
    """Write a run folder with a published checkpoint as its best network.

    preset: says what it was trained on, where its classes do not (MS3, say); by default S4 or AVSS.
    manifest: whose store has that data set, made as the network is to read it.
    Raises ComboError: no such checkpoint, another network than the preset's, a folder that holds
    something, or nothing of that data set in the store.
    """
    state = load_state(source)
    try:
        found, own = published_preset(state)
        network, _ = published_combo(state)
    except StateDictError as error:
        raise ComboError(f"{source}: not a published COMBO checkpoint: {error}") from error
    settings = resolve(preset or found, [f"sem={own['sem']}", f"initialisation={source}"])
    changed = dataclasses.replace(settings.network, classes=own["classes"])
    settings = dataclasses.replace(settings, network=changed)
    fits = preset is None or preset.rsplit("-", 1)[0] == found.rsplit("-", 1)[0]
    if not fits or resolve(preset or found).network.classes != own["classes"]:
        raise ComboError(
            f"{source} has the network of {found} with {own['classes']} classes, not of {preset}; "
            f"leave --preset out, or give another one"
        )
    data_set = settings.train.data
    manifest.choose([data_set])
    wanted: dict[str, dict[str, dict[str, object]]] = {}
    weights: dict[str, dict[str, str]] = {}
    plan: Plan | None = None
    for each in sources_in(manifest.store_path, [data_set]):
        wanted[each.split] = stage_settings(manifest, data_set, each.split)
        if not settings.network.reads_maskige:
            del wanted[each.split]["maskige"]
        choice = choose_variants(each, wanted[each.split])
        weights = {v.stage: dict(v.weights) for v in choice.variants}
        plan = each.plan()
    if plan is None:
        raise ComboError(
            f"{manifest.store_path} holds nothing of data set {data_set!r}; "
            f"run: {remedies.make(remedies.ALL, data_set)}"
        )
    data: RunData = {
        "data_set": data_set,
        "store": str(manifest.store_path.resolve()),
        "manifest": str(manifest.file.absolute()),
        "frames_per_clip": plan.frames_per_clip,
        "classes": list(plan.classes),
        "settings": wanted,
        "weights": weights,
        "splits": {},
    }
    run = RunFolder.create(folder, settings, data)
    with run.claimed(), run.writing():
        own = settings.as_dict()
        checkpoint.save_network(run.best, network, 0, -math.inf, run.identity or "", own)
    return run, settings
