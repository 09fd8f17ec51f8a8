"""From a manifest and a preset to a trainer that is ready to go."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import remedies
from ..devices import has_bf16
from ..errors import ComboError, WrongUsage
from ..jobs.plan import stage_settings
from ..manifest import Manifest, load_manifest
from ..source import Choice, choose_variants, demand_usable, open_source, sources_in
from .loader import ClipReader
from .presets import RunSettings, amend, prefer_bf16
from .presets import resolve as resolve_settings
from .processes import ALONE, Processes
from .run_folder import RunData, RunFolder, SplitData, run_of
from .starting_points import first_network
from .trainer import Trainer


def free_folder(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ... when it is taken."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def start(
    manifest: Manifest,
    preset: str,
    changes: Sequence[str],
    folder: Path,
    named: Mapping[str, str] | None = None,
    together: Processes = ALONE,
) -> Trainer:
    """A new run. changes: `key=value` of the settings.  named: stage -> variant in the store.
    together: the processes of the run.

    Reads the store, or the packed file, only. Raises ComboError for unknown settings, stages that
    are not finished, missing weights.
    """
    settings = resolve_settings(preset, changes)
    data_set = settings.train.data
    manifest.choose([data_set])
    store = manifest.store_path
    if not store.exists():
        make = remedies.make(remedies.ALL, data_set)
        raise ComboError(f"the store {store} is not there; run: {make}")
    sources = {each.split: each for each in sources_in(store, [data_set])}
    if "train" not in sources:
        _refuse_undivided(manifest, data_set, list(sources))
        pack = f"combo pack STORE --to FILE --data {data_set}"
        run = pack if store.is_file() else remedies.make(remedies.ALL, data_set)
        raise ComboError(f"{store} holds no split 'train' of data set {data_set!r}; run: {run}")
    asked = {split: stage_settings(manifest, data_set, split) for split in sources}
    if not settings.network.reads_maskige:
        for stages in asked.values():
            del stages["maskige"]
    choice = choose_variants(sources["train"], asked["train"], named)
    wanted = {split: _like(choice, asked["train"], own) for split, own in asked.items()}
    weights = {v.stage: dict(v.weights) for v in choice.variants}
    readers = {"train": ClipReader(sources["train"], choice)}
    if not readers["train"].labelled:
        raise ComboError(
            f"no frame of {sources['train']} has a label, so there is nothing to learn; put label "
            f"images where docs/data.md says and run: {remedies.make_again('frames', data_set)}"
        )
    if val := sources.get("val"):
        readers["val"] = ClipReader(val, choose_variants(val, wanted["val"], weights=weights))
    settings = _fit_to_data(settings, readers["train"])
    settings = prefer_bf16(settings, changes, has_bf16(settings.train.device))
    try:
        network = first_network(settings, manifest)
    except ValueError as error:
        raise ComboError(f"no network has these settings ({error}); change --set") from error
    data: RunData = {
        "data_set": data_set,
        "store": str(store.resolve()),
        "manifest": str(manifest.file.absolute()),
        "frames_per_clip": readers["train"].plan.frames_per_clip,
        "classes": list(readers["train"].plan.classes),
        "settings": wanted,
        "weights": weights,
        "splits": {name: _described(reader) for name, reader in readers.items()},
    }
    run = RunFolder.create(folder, settings, data) if together.first else RunFolder(folder)
    return Trainer(run, settings, network, readers, together)


def demand_same_data(
    run: RunFolder, manifest: Manifest, named: Mapping[str, str] | None = None
) -> None:
    """Raises ComboError where `start` would have trained a run on other data than it was.

    manifest, named: as `start` takes them. A store without a train split has no other data.
    """
    data, settings = run.data(), run.settings()
    known, data_set = data["splits"].get("train"), data["data_set"]
    manifest.choose([data_set])
    store = manifest.store_path
    sources = {each.split: each for each in sources_in(store, [data_set])} if store.exists() else {}
    if known is None or "train" not in sources:
        return
    source, wanted = sources["train"], stage_settings(manifest, data_set, "train")
    if not settings.network.reads_maskige:
        del wanted["maskige"]
    named = {stage: name for stage, name in (named or {}).items() if stage in wanted}
    there = f"{run.root} was trained on other data than is asked for"
    other = "give another folder with --out"
    if source.plan().fingerprint != known["plan"]:
        raise ComboError(f"{there}: the clips of {source} are others now; {other}")
    for stage, asked in wanted.items():
        its, name = known["variants"][stage], named.get(stage)
        fits = [v for v in source.variants(stage) if (v.name == name if name else v.is_what(asked))]
        own = [v for v in fits if v.fingerprint == its["fingerprint"]]
        if not own:
            chosen = choose_variants(source, wanted, named)
            (wants,) = (v.name for v in chosen.variants if v.stage == stage)
            raise ComboError(f"{there}: {stage} {its['name']}, not {wants}; {other}")
        if demand_usable(source, own[0]).outputs != known["outputs"][stage]:
            raise ComboError(f"{there}: {own[0].key} of {source} was made again since; {other}")


def resume(
    folder: Path,
    store: Path | None = None,
    together: Processes = ALONE,
    changes: Sequence[str] = (),
) -> Trainer:
    """A run that goes on from its last checkpoint, or begins again where it had none.

    store: where the store lies now, if it moved, or a file packed from it.
    changes: `key=value` of settings that may change; the run notes them when it trains.
    Raises ComboError when the store is no longer what the run was started on, or for other changes.
    """
    run = RunFolder(run_of(folder))
    if folder.is_file() and run.root != folder and folder != run.last:
        raise WrongUsage(
            f"{folder} is a checkpoint of a run, which goes on from its last.pt: "
            f"{remedies.resume(run.root)}; to begin a run with this one: "
            f"combo train --preset PRESET --set initialisation={folder}"
        )
    settings, data = amend(run.settings(), changes), run.data()
    readers: dict[str, ClipReader] = {}
    for name, known in data["splits"].items():
        split = open_source(store or Path(data["store"]), data["data_set"], name)
        named = {stage: variant["name"] for stage, variant in known["variants"].items()}
        wanted = dict[str, dict[str, Any]].fromkeys(named, {})
        readers[name] = ClipReader(split, choose_variants(split, wanted, named))
        if _described(readers[name]) != known:
            raise ComboError(
                f"{split} in {split.store} has changed since {folder} was started; "
                f"begin a new run: combo train --preset {settings.train.preset}"
            )
    if not readers:
        raise ComboError(
            f"{folder} was not trained here; begin a run with it: combo train --preset "
            f"{settings.train.preset} --set initialisation={folder}"
        )
    of_run = settings.train.data == data["data_set"] and "train" in readers
    if not of_run or _fit_to_data(settings, readers["train"]) != settings:
        raise run.mixed()
    if not run.begun:
        manifest = load_manifest(Path(data["manifest"]) if "manifest" in data else None)
        return Trainer(run, settings, first_network(settings, manifest), readers, together)
    trainer = Trainer(run, settings, settings.build(), readers, together)
    trainer.resume()
    return trainer


def _refuse_undivided(manifest: Manifest, data_set: str, splits: Sequence[str]) -> None:
    """Raise ComboError for a data set of clips straight in the root, which are no train split."""
    entry = manifest.data_sets[data_set]
    if entry.layout == "folders" and not entry.split and "all" in splits:
        raise ComboError(
            f"{manifest.store_path} holds data set {data_set!r} as one split, 'all', and training "
            f"needs 'train'; write `split: {{train: 0.8, val: 0.1, test: 0.1}}` into its entry in "
            f"{manifest.file} and run: {remedies.make(remedies.ALL, data_set)}"
        )


def _like(
    choice: Choice, train: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The settings of a split beside the train split, whose variants were chosen.

    They are the chosen ones but for what a manifest says of each split apart (how frames are
    fitted), and for the folders that an import came from.
    """
    return {
        variant.stage: {
            **{k: v for k, v in variant.settings.items() if k != "tree"},
            **{k: v for k, v in own[variant.stage].items() if train[variant.stage].get(k) != v},
        }
        for variant in choice.variants
    }


OF_THE_DATA = ("classes", "image_size", "audio_dim", "max_frames")
"""Settings of the network that the data overrules."""


def _fit_to_data(settings: RunSettings, reader: ClipReader) -> RunSettings:
    """Classes, sizes and widths are the data's."""
    network = dataclasses.replace(
        settings.network,
        classes=len(reader.plan.classes),
        image_size=reader.choice.frames.settings["size"][0],
        audio_dim=reader.sound_width,
        max_frames=max(settings.network.max_frames, reader.plan.frames_per_clip),
    )
    return dataclasses.replace(settings, network=network)


def _described(reader: ClipReader) -> SplitData:
    """What a run notes of a split, and holds against it when it is resumed."""
    choice = reader.choice
    return {
        "plan": reader.plan.fingerprint,
        "clips": len(reader),
        "left_out": reader.left_out,
        "outputs": reader.outputs,
        "variants": {
            v.stage: {"name": v.name, "fingerprint": v.fingerprint} for v in choice.variants
        },
    }
