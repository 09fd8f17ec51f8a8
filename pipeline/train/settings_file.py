"""A run's settings as a YAML file: what `combo train --print-settings` writes, `--config` takes."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import WrongUsage, readable
from .presets import RunSettings


def text_of(settings: RunSettings) -> str:
    """YAML: the preset, then every setting of training and network by its `--set` key."""
    value = settings.as_dict()
    train: dict[str, Any] = value["train"]
    parts = [
        yaml.safe_dump(part, sort_keys=False, default_flow_style=False)
        for part in (train, {k: v for k, v in _plain(value["network"]).items() if k not in train})
    ]
    return f"{parts[0]}\n# the network, {settings.kind}\n{parts[1]}"


def read_settings(file: Path) -> tuple[str | None, list[str]]:
    """The preset that a YAML file names, or None, and its settings as `key=value`.

    Raises ComboError for what is no mapping of settings.
    """
    try:
        value = yaml.safe_load(file.read_text())
        json.dumps(value, default=str)  # an alias may stand in what it stands for
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise WrongUsage(readable(f"--config {file}: cannot be read ({reason})")) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise WrongUsage(
            f"--config {file}: no mapping of settings; write lines such as iterations: 1000"
        )
    preset = value.pop("preset", None)
    if not isinstance(preset, str | None):
        raise WrongUsage(f"--config {file}: preset {preset!r} is no name")
    return preset, [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]


def _plain(network: dict[str, Any]) -> dict[str, Any]:
    """Without tuples, which YAML has none of."""
    return json.loads(json.dumps(network))
