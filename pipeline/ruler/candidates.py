"""What can be evaluated: a run, a checkpoint in its folder, or a file that stands alone; each with
its network and the clips that it is measured on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...model.interface import Network
from .. import remedies
from ..errors import ComboError
from ..jobs.plan import layout_of, stage_settings
from ..manifest import Manifest, load_manifest
from ..report.files import files_of
from ..source import choose_variants, sources_in
from ..train import checkpoint
from ..train.elsewhere import Elsewhere, clips_of, in_windows, length_for, open_elsewhere
from ..train.evaluate import open_split
from ..train.loader import ClipReader
from ..train.run_folder import SETTINGS, checkpoint_of
from .recognised import recognise


@dataclass(frozen=True)
class Where:
    """What is measured on, as options say it; None where a run says so itself.

    data: data set of the manifest.  store: where it lies now, or a file packed from it.
    variants: stage -> name of the variant to take.  preset: of a file that fits several.
    """

    split: str = "test"
    data: str | None = None
    manifest: Path | None = None
    store: Path | None = None
    variants: Mapping[str, str] | None = None
    preset: str | None = None

    @property
    def store_named(self) -> Path | None:
        """The store, or that of the manifest, where one of them was named; else the run's."""
        if self.store is not None or self.manifest is None:
            return self.store
        return load_manifest(self.manifest).store_path


@dataclass(frozen=True)
class Candidate:
    """A network to be evaluated.

    name: as it was given.  build: makes the network.  like: the same for those that differ in the
    seed alone.  noted: what is told beside its scores.  categories: clip -> category.
    """

    name: str
    build: Callable[[], Network]
    reader: ClipReader
    like: str
    seed: int | None
    noted: Mapping[str, Any]
    categories: Mapping[str, str]

    def network(self, device: torch.device) -> Network:
        """In eval mode. Raises ComboError for a damaged file."""
        return self.build().to(device).eval()


def candidate(path: Path, where: Where) -> Candidate:
    """What is at a path. Raises ComboError: nothing that can be evaluated, or no such clips."""
    in_run = path.is_file() and (path.parent / SETTINGS).exists()
    return _alone(path, where) if path.is_file() and not in_run else _of_run(path, where)


def _of_run(path: Path, where: Where) -> Candidate:
    run, file = checkpoint_of(path)
    settings, data, naming = run.settings(), run.data(), None
    if where.data in (None, data["data_set"]):
        reader = open_split(run, where.split, where.store_named, where.variants)
        length = length_for(data, reader)
    else:
        length, _ = clips_of(run, data)
        store = where.store_named
        reader, naming = open_elsewhere(run, where.data, where.split, store, where.variants)
    classes = len(reader.plan.classes) if naming else settings.network.classes
    _demand_fit(path, classes, settings.network.audio_dim, reader)

    def build() -> Network:
        network = settings.build()
        checkpoint.load_network(file, network)
        if naming is not None or reader.plan.frames_per_clip > length:
            return Elsewhere(network, length, naming)
        return network

    told = settings.as_dict()
    seed = told["train"].pop("seed")
    like = json.dumps([told, data["data_set"], data["settings"], file.name], sort_keys=True)
    noted = _noted(reader, settings.train.initialisation, settings.network.noted)
    if naming is not None:
        noted["classes"] = naming.said
    also = Path(data["manifest"]) if "manifest" in data else None
    categories = _categories(reader, where.manifest, also)
    return Candidate(str(path), build, reader, like, seed, noted, categories)


def _alone(path: Path, where: Where) -> Candidate:
    found = recognise(path, where.preset)
    data = where.data or (where.preset and where.preset.rsplit("-", 1)[-1])
    if not data:
        raise ComboError(f"{path} does not say what it was trained on; say so: --data s4")
    manifest = load_manifest(where.manifest).with_store(where.store)
    reader = _by_manifest(manifest, where, data, found.settings.reads_maskige)
    _demand_fit(path, found.settings.classes, found.settings.audio_dim, reader)
    length = found.clip_length(layout_of(manifest, data))

    def build() -> Network:
        return in_windows(found.build(), reader, length)

    noted = _noted(reader, str(path), found.settings.noted)
    categories = _categories(reader, where.manifest)
    return Candidate(str(path), build, reader, str(path), None, noted, categories)


def _by_manifest(manifest: Manifest, where: Where, data: str, reads_maskige: bool) -> ClipReader:
    """A split of a data set of the manifest, as its stages make it."""
    manifest.choose([data])
    store = manifest.store_path
    sources = {each.split: each for each in sources_in(store, [data])}
    if where.split not in sources:
        raise ComboError(
            f"{store} holds no split {where.split!r} of data set {data!r}; "
            f"run: {remedies.make(remedies.ALL, data, where.split)}"
        )
    source, settings = sources[where.split], stage_settings(manifest, data, where.split)
    if not reads_maskige:
        del settings["maskige"]
    return ClipReader(source, choose_variants(source, settings, where.variants))


def _demand_fit(path: Path, classes: int, sound: int, reader: ClipReader) -> None:
    if classes != len(reader.plan.classes):
        raise ComboError(
            f"{path} tells {classes} classes apart, and {reader.split} has "
            f"{len(reader.plan.classes)}; name another data set with --data"
        )
    if sound != reader.sound_width:
        raise ComboError(
            f"{path} hears {sound} numbers a frame, and {reader.choice.audio.name} of "
            f"{reader.split} has {reader.sound_width}; take another with --variant audio=NAME"
        )


def _categories(
    reader: ClipReader, manifest: Path | None, also: Path | None = None
) -> dict[str, str]:
    """The category of each clip, where the data set can be listed and has any."""
    files = files_of(reader.split, manifest, also)
    clips = {name: files.clip(name) for name in reader.plan.clips}
    return {name: clip.category for name, clip in clips.items() if clip and clip.category}


def _noted(reader: ClipReader, initialisation: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size": list(reader.choice.frames.settings["size"]),
        "initialisation": initialisation,
        **more,
        "labels": reader.plan.layout,
        "clips_per_batch": 1,
    }
