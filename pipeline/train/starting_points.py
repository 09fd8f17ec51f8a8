"""What a run's network is before its first step: random numbers, ImageNet weights, the network of
another run, a published checkpoint, or weights of its encoders alone.

Everything that is given must be used, and everything that is not stays random by a rule that is
said: nothing is left out in silence.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...model.backbones import Backbone
from ...model.interface import Network
from ...model.networks import NETWORKS
from ...model.state_dicts import (
    StateDictError,
    backbone_state,
    backbone_state_in_order,
    is_published,
    published_combo,
)
from ..errors import ComboError
from ..manifest import Manifest
from ..weights import load_state, resolve
from ..weights_catalogue import CATALOGUE
from . import checkpoint
from .presets import RunSettings, train_settings
from .run_folder import RunFolder

IMAGENET = {"resnet50": "resnet50", "pvt_v2_b5": "pvt-v2-b5"}
"""timm's name of a backbone -> the catalogue's name of its ImageNet weights."""

FRAMES = "audio_pos"
"""In the name of what has a row for each frame of a clip; see `Network`."""

RANDOM = "train without: --set initialisation=random"


def backbone_weights(data_sets: Collection[str]) -> dict[str, list[str]]:
    """Weights that presets for these data sets start from, by the catalogue's name -> presets."""
    found: dict[str, list[str]] = {}
    for kind in NETWORKS.values():
        for preset, network in kind.presets.items():
            name = IMAGENET.get(getattr(network, "backbone", ""))
            train = train_settings(preset)
            if name and train.data in data_sets and train.initialisation == "imagenet":
                found.setdefault(name, []).append(preset)
    return found


def first_network(settings: RunSettings, manifest: Manifest) -> Network:
    """The network that the setting `initialisation` asks for.

    Raises ComboError for what cannot be read or does not fit, and ValueError for settings that no
    network has.
    """
    start_from = settings.train.initialisation
    if start_from == "imagenet":
        return _imagenet(settings, manifest)
    network = _seeded(settings)
    if start_from == "random":
        return network
    path = Path(start_from)
    if start_from in CATALOGUE and not path.exists():
        path, _ = resolve(start_from, manifest)
    state, mine = _state_of(path), network.state_dict()
    if is_published(state):
        try:
            state, _ = published_combo(state)
        except StateDictError as error:
            raise ComboError(f"{path}: not a published COMBO checkpoint: {error}") from error
    if not state.keys() & mine.keys():
        _fill_encoders(network, state, path)
        return network
    # Another number of classes: its classifier starts anew, all else must fit. Of longer clips the
    # further frames' positions do.
    of_frames = [name for name in state.keys() & mine.keys() if FRAMES in name]
    state = {**state, **{k: _as_many_frames(state[k], mine[k]) for k in of_frames}}
    fits = {k: v for k, v in state.items() if k in mine and v.shape == mine[k].shape}
    strange = set(state.keys() ^ mine.keys()) | {
        k for k in state.keys() & mine.keys() if k not in fits and "class" not in k
    }
    if strange:
        raise ComboError(
            f"{start_from} has another network ({min(strange)} does not fit); give the same "
            f"settings with --set"
        )
    network.load_state_dict({**mine, **fits})
    return network


def _as_many_frames(given: Tensor, mine: Tensor) -> Tensor:
    """The rows of `given`, cut or filled up with those of `mine`, where both have one a frame."""
    of_frames = min(len(given), len(mine)) > 1  # the public code has one for all
    if given.shape[1:] != mine.shape[1:] or not of_frames:
        return given
    return torch.cat([given[: len(mine)], mine[len(given) :]])


def _state_of(path: Path) -> Mapping[str, Tensor]:
    """What a file holds, or the best network of a run."""
    if path.is_file():
        return load_state(path)
    run = RunFolder(path)
    run.settings()  # says so when it is no run
    return checkpoint.network_of(run.of_worth)


def _seeded(settings: RunSettings, pretrained: bool = False) -> Network:
    torch.manual_seed(settings.train.seed)
    return settings.build(pretrained)


def _encoders(network: Network) -> list[Backbone]:
    return [module for module in network.modules() if isinstance(module, Backbone)]


def _fill_encoders(network: Network, state: Mapping[str, Tensor], path: Path) -> None:
    """Weights of a backbone for each encoder of a network; all else stays random."""
    encoders = _encoders(network)
    if not encoders:
        raise ComboError(f"{path} does not fit: the network has no encoder; {RANDOM}")
    for encoder in encoders:
        reasons: list[str] = []
        for names in (
            lambda e: backbone_state(state, "timm", e),
            lambda e: backbone_state(state, "detectron2", e),
            lambda e: backbone_state_in_order(state, e),
        ):
            try:
                encoder.load_state_dict(names(encoder))
                break
            except StateDictError as error:
                reasons.append(str(error))
        else:
            raise ComboError(
                f"{path} fits neither the network nor its encoder {encoder.name} (by names: "
                f"{reasons[0]}; in their order: {reasons[-1]}); give other weights, or "
                f"--set backbone=NAME of theirs"
            )


def _imagenet(settings: RunSettings, manifest: Manifest) -> Network:
    network = _seeded(settings)
    encoders = _encoders(network)
    if not encoders:
        raise ComboError(
            f"network {settings.kind} has no encoder that ImageNet weights are for; {RANDOM}"
        )
    names = {encoder.name for encoder in encoders}
    if names - IMAGENET.keys():
        try:
            return _seeded(settings, pretrained=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ComboError(
                f"timm cannot give ImageNet weights of {', '.join(sorted(names))} ({reason}); "
                f"{RANDOM}"
            ) from error
    for name in names:
        path, _ = resolve(IMAGENET[name], manifest)
        state = load_state(path)
        kind = "detectron2" if path.suffix == ".pkl" else "timm"
        try:
            for encoder in encoders:
                if encoder.name == name:
                    encoder.load_state_dict(backbone_state(state, kind, encoder))
        except ValueError as error:
            raise ComboError(f"{path} does not fit {name}: {error}") from error
    return network
