"""Networks in files that stand alone: published checkpoints, and those of runs that moved.

Our own files say with which settings they were trained. Of others, and of those of an older combo,
names and shapes of the parameters do: they are a preset's, or what does not fit is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...model.interface import Network
from ...model.networks import NETWORKS
from ...model.settings import ComboSettings, NetworkSettings
from ...model.state_dicts import (
    StateDictError,
    fitting,
    is_published,
    published_combo,
    settings_of,
)
from ..errors import ComboError
from ..layouts.avsbench import AVSS
from ..layouts.layout import Layout
from ..state_files import load_state
from ..train import checkpoint
from ..train.presets import kind_of, restore

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recognised:
    """A network from a file. preset: the first whose shapes fit.  kind: its name in `NETWORKS`."""

    path: Path
    preset: str
    kind: str
    settings: NetworkSettings
    state: State

    def clip_length(self, rules: Layout) -> int:
        """Frames of the longest clips that it was trained with, as far as the rules of their data
        set say, or it does itself."""
        known = rules.frames_per_clip or AVSS.frames_per_clip
        if not isinstance(self.settings, ComboSettings):
            return known
        most = self.settings.max_frames
        return min(rules.frames_per_clip or most, most)

    def build(self) -> Network:
        """The network with the file's parameters."""
        network = NETWORKS[self.kind].build(self.settings, False)
        network.load_state_dict(dict(self.state))
        return network


def recognise(path: Path, preset: str | None = None) -> Recognised:
    """The network in a file, in the public code's names or ours.

    preset: whose settings it has, where several have its shapes and it does not say itself. Raises
    ComboError naming what does not fit.
    """
    state = load_state(path)
    if is_published(state):
        try:
            state, _ = published_combo(state)
        except StateDictError as error:
            raise ComboError(f"{path} is not COMBO as it was published: {error}") from error
    fits: list[Recognised] = []
    misfits: list[tuple[int, str]] = []
    told = _told(path, preset)
    for settings, (name, kind) in (told or _possible(state, preset)).items():
        with torch.device("meta"):
            network = NETWORKS[kind].build(settings, False)
        try:
            own = fitting(state, network)
        except StateDictError as error:
            strange = len(state.keys() ^ network.state_dict().keys())
            misfits.append((strange, f"{name}: {error}"))
        else:
            fits.append(Recognised(path, name, kind, settings, own))
    if not fits:
        raise ComboError(
            f"{path} is no network of a preset; the nearest is {min(misfits)[1]}; "
            f"evaluate it in its run's folder, whose settings.json says what it is"
        )
    if len(fits) > 1:
        names = ", ".join(each.preset for each in fits)
        raise ComboError(f"{path} fits several presets ({names}); say which with --preset")
    return fits[0]


Possible = dict[NetworkSettings, tuple[str, str]]
"""Settings -> a preset that has them, and its kind of network."""


def _told(path: Path, preset: str | None) -> Possible:
    """What the file says itself, but for another preset that was asked for."""
    saved = checkpoint.settings_in(path)
    if not {"train", "network"} <= saved.keys():
        return {}
    try:
        settings = restore(saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ComboError(f"{path}: the settings in it are damaged ({reason})") from error
    own = settings.train.preset
    return {settings.network: (own, settings.kind)} if preset in (None, own) else {}


def _possible(state: State, preset: str | None) -> Possible:
    """The settings that are tried, each once."""
    names = [preset] if preset else [name for kind in NETWORKS.values() for name in kind.presets]
    found: Possible = {}
    for name in names:
        kind = kind_of(name)
        settings = NETWORKS[kind].presets[name]
        if isinstance(settings, ComboSettings):
            settings = settings_of(state, settings)
        found.setdefault(settings, (name, kind))
    return found
