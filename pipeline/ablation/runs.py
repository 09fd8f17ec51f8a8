"""The runs of a table: a folder each, named by what it was trained with, so that what is there is
not trained again, in this table or another.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ComboError
from ..train.presets import RunSettings, resolve
from ..train.run_folder import RunFolder
from .table import Table

if TYPE_CHECKING:
    from ..manifest import Manifest
    from ..train.trainer import Trainer


LONGEST = 150
"""Characters of a folder's name, before what is said in short and the seed."""


@dataclass(frozen=True)
class Begin:
    """What runs begin with. manifest: opens it.  variants: stage -> name in the store.  store:
    where it lies now, for those that go on."""

    manifest: Callable[[], "Manifest"]
    variants: Mapping[str, str]
    store: Path | None


@dataclass(frozen=True)
class Run:
    """A run that a table asks for. changes: `key=value`, the seed among them."""

    folder: Path
    preset: str
    changes: tuple[str, ...]

    @cached_property
    def settings(self) -> RunSettings:
        return resolve(self.preset, self.changes)

    @property
    def done(self) -> bool:
        """Whether it was trained to its end. Raises ComboError for another run in its folder."""
        from ..train import checkpoint

        run = RunFolder(self.folder)
        if not run.begun:
            return False
        self._demand_ours(run.settings())
        reached = checkpoint.load(run.last).iteration
        return reached >= self.settings.train.iterations

    def demand_same_data(self, manifest: "Manifest", begin: Begin) -> None:
        """Raises ComboError where what is there was trained on other data than is asked for."""
        from ..train import start

        run = RunFolder(self.folder)
        if run.begun:
            start.demand_same_data(run, manifest, begin.variants)

    def trainer(self, begin: Begin) -> "Trainer":
        """Begins it, or goes on with it."""
        from ..train import start

        if RunFolder(self.folder).begun:
            return start.resume(self.folder, begin.store)
        named = begin.variants
        return start.start(begin.manifest(), self.preset, self.changes, self.folder, named)

    @property
    def parameters(self) -> int:
        """Numbers that its network learns."""
        import torch

        with torch.device("meta"):
            network = RunFolder(self.folder).settings().build()
        return sum(each.numel() for each in network.parameters())

    def _demand_ours(self, there: RunSettings) -> None:
        wanted, found = _flat(self.settings), _flat(there)
        for change in self.changes:
            key = change.partition("=")[0]
            if found.get(key) != wanted.get(key):
                raise ComboError(
                    f"{self.folder} was trained with {key}={found.get(key)}, not "
                    f"{wanted.get(key)}; give another folder with --out"
                )


def _flat(settings: RunSettings) -> dict[str, Any]:
    told = settings.as_dict()
    return {**told["network"], **told["train"]}


def runs_of(
    table: Table, seeds: int, common: Sequence[str], out: Path
) -> dict[tuple[str, str], list[Run]]:
    """The runs of each cell: (row, preset) -> one a seed. common: `key=value` of every run.

    Raises ComboError for one of them that a row sets itself, or the seeds do: one of the two would
    not be what it says.
    """
    asked = {change.partition("=")[0] for change in common}
    if "seed" in asked:
        raise ComboError(
            f"the {seeds} seeds of each row are 0 to {seeds - 1}; leave out --set seed"
        )
    for name, row in table.rows.items():
        for key in (own.partition("=")[0] for own in row.set):
            if key in asked:
                raise ComboError(f"row {name!r} sets {key} itself; leave out --set {key}")
    return {
        (name, preset): [_run(preset, row.set, common, seed, out) for seed in range(seeds)]
        for name, row in table.rows.items()
        for preset in table.presets
    }


def _run(preset: str, own: Sequence[str], common: Sequence[str], seed: int, out: Path) -> Run:
    """The row's settings are in the folder's name; those of all runs in short, if there are any."""
    said = [preset, *(re.sub(r"[^\w.+-]+", "-", change) for change in own)]
    if common or len("_".join(said)) > LONGEST:
        text = " ".join([*own, *common])
        said = ["_".join(said)[:LONGEST], hashlib.sha256(text.encode()).hexdigest()[:6]]
    return Run(out / "_".join([*said, f"seed-{seed}"]), preset, (*own, *common, f"seed={seed}"))


def distinct(cells: Mapping[tuple[str, str], Sequence[Run]]) -> list[Run]:
    """Every run once."""
    return list({run.folder: run for runs in cells.values() for run in runs}.values())
