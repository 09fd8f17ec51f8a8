"""A run's folder: what it was trained with, how it went, and its networks.

settings.json   which network, and resolved settings of it and of its training
data.json       data set, store, variants and their fingerprints, clips used and left out
versions.json   combo, Python, torch, ... and the machine
metrics.jsonl   one line a log entry, also in tensorboard/
last.pt, best.pt  checkpoints; each is whole or not there
"""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import durable, remedies
from ..errors import ComboError
from .presets import RunSettings, restore

PACKAGES = ("combo-avs", "torch", "torchvision", "timm", "numpy", "zarr", "tensorstore")


class RunFolder:
    """Paths and small files of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.last, self.best = root / "last.pt", root / "best.pt"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"

    @classmethod
    def create(cls, root: Path, settings: RunSettings, data: dict[str, Any]) -> "RunFolder":
        """A new run. Raises ComboError when the folder holds something."""
        if root.exists() and any(root.iterdir()):
            raise ComboError(
                f"{root} is not empty; go on with it: {remedies.resume(root)}, "
                f"or give another folder with --out"
            )
        run = cls(root)
        durable.write_json(root / "settings.json", settings.as_dict())
        durable.write_json(root / "data.json", data)
        durable.write_json(root / "versions.json", versions())
        return run

    def settings(self) -> RunSettings:
        return restore(self._read("settings.json"))

    def data(self) -> dict[str, Any]:
        return self._read("data.json")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.root / name
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ComboError(
                f"{self.root} is no run folder: {name} is missing; make one with combo train"
            ) from None
        except ValueError as error:
            raise ComboError(f"{path} is damaged ({error}); train again") from None

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def truncate_log(self, iteration: int) -> None:
        """Drop log entries after an iteration: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept: list[str] = []
        for line in self.metrics.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the line that a kill cut off
            if entry["iteration"] <= iteration:
                kept.append(line + "\n")
        durable.write_bytes(self.metrics, "".join(kept).encode())


def versions() -> dict[str, Any]:
    """What a run's numbers may depend on beside its settings and data."""
    import torch

    return {
        **{name: metadata.version(name) for name in PACKAGES},
        "torch": str(torch.__version__),  # which build it is, too
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
