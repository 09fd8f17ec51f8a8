"""Checkpoints: everything a run needs to go on as if it had not stopped, in one whole file; and
networks alone, for use elsewhere."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from .. import durable
from ..errors import ComboError
from .run_folder import DATA, RunFolder

Value = TypeVar("Value")

SAFETENSORS = ".safetensors"
"""What the name of a network ends with that no checkpoint is around."""


@dataclass
class Checkpoint:
    """network, optimiser, scaler: state dictionaries.  iteration: batches seen.
    best: highest M_J on the val split so far.
    evaluated: iteration of the last evaluation, -1 where it is not known.  skipped: steps that were
    not taken, and how many of them in a row just now.  averaged: the mean of the networks so far,
    where the run has one.  run: which it is of (`RunFolder.identity`), "" in older ones.
    settings: of the run, as its settings.json has them, for files that are taken elsewhere; older
    ones say none.
    No state of a random generator: see `draws`.
    """

    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    iteration: int
    best: float
    evaluated: int = -1
    skipped: int = 0
    in_a_row: int = 0
    averaged: dict[str, Tensor] = field(default_factory=dict)
    run: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def save(path: Path, value: Checkpoint | dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint, or other tensors, whole or not at all. Raises OSError.

    keep: where the file that was there goes.
    """
    with durable.replacing(path, keep=keep) as file:
        torch.save(value if isinstance(value, dict) else vars(value), file)


def save_network(
    path: Path,
    network: dict[str, Tensor],
    iteration: int,
    best: float,
    run: str,
    settings: dict[str, Any],
) -> None:
    """Write a network alone, and the same beside it as `.safetensors`. Raises OSError.

    iteration, best, run, settings: as in a `Checkpoint`.
    """
    from safetensors.torch import save as as_bytes

    told = {"iteration": str(iteration), "M_J": str(best), "run": run}
    told["settings"] = json.dumps(settings)
    plain = {name: value.contiguous() for name, value in network.items()}
    durable.write_bytes(path.with_suffix(SAFETENSORS), as_bytes(plain, told))
    others = {"iteration": iteration, "best": best, "run": run, "settings": settings}
    save(path, {"network": network, **others})


def settings_in(path: Path) -> dict[str, Any]:
    """The settings that a file of ours, wherever it lies, says its network has; else none."""
    with contextlib.suppress(Exception):  # whatever another program's file leads PyTorch into
        if path.suffix == SAFETENSORS:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return json.loads(file.metadata()["settings"])
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return dict(value["settings"])
    return {}


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises ComboError for a file that is missing, not one, or of another run than the folder it lies
    in; it names the run's other checkpoint.
    """
    return _told(path, _read)


def network_of(path: Path) -> dict[str, Tensor]:
    """The network that a checkpoint, or a file of `save_network`, is worth most for: the mean of
    many where there is one. Raises ComboError as `load`."""

    def read(path: Path) -> dict[str, Tensor]:
        value = _opened(path)
        return value.get("averaged") or value["network"]

    return _told(path, read)


def _told(path: Path, read: Callable[[Path], Value]) -> Value:
    try:
        return read(path)
    except PermissionError as error:
        raise ComboError(f"{path} cannot be read ({error.strerror})") from None
    except FileNotFoundError as error:
        raise ComboError(f"no checkpoint {path}; {_mend(path)}") from error
    except _OfAnotherRun as error:
        raise ComboError(
            f"{path} is of another run than {path.with_name(DATA)}; put back the run's own, "
            f"or {_mend(path)}"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ComboError(
            f"{path} is cut short or no checkpoint ({reason}); {_mend(path)}"
        ) from error


def load_network(path: Path, network: nn.Module) -> None:
    """Give a network the parameters of a checkpoint. Raises ComboError."""
    state = network_of(path)
    try:
        network.load_state_dict(state)
    except Exception as error:
        raise misfit(path, error) from error


def misfit(path: Path, error: Exception) -> ComboError:
    """What is said of a checkpoint that is one, but not of this run."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ComboError(
        f"{path} does not fit {path.with_name('settings.json')} ({reason}); {_mend(path)}"
    )


class _OfAnotherRun(Exception):
    pass


def _opened(path: Path) -> dict[str, Any]:
    """What a file holds. One that names no run is of an older combo, and is taken as it is."""
    durable.open_regular(path).close()
    if path.suffix == SAFETENSORS:
        value = _opened_alone(path)
    else:
        value = torch.load(path, map_location="cpu", weights_only=True)
    if (of := value.get("run")) and RunFolder(path.parent).identity not in (None, of):
        raise _OfAnotherRun
    return value


def _opened_alone(path: Path) -> dict[str, Any]:
    """What `save_network` wrote beside its checkpoint, told as there, but for numbers as text."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {
            **(file.metadata() or {}),
            "network": {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
        }


def _read(path: Path) -> Checkpoint:
    value = _opened(path)
    if "optimiser" not in value:
        raise TypeError("a network alone")
    value.pop("random", None)  # of older runs
    found = Checkpoint(**value)
    kinds = get_type_hints(Checkpoint)
    for name, value in vars(found).items():
        if not isinstance(value, get_origin(kinds[name]) or kinds[name]):
            raise TypeError(f"{name} is {type(value).__name__}")
    return found


def _mend(path: Path) -> str:
    """What can take a checkpoint's place: the run's newest other one that is whole, or the file of
    the same network."""
    if path.suffix == SAFETENSORS:
        with contextlib.suppress(Exception):
            same = path.with_suffix(".pt")
            _opened(same)
            return f"the same network is in {same}"
        return "give a checkpoint of the run"
    whole: list[tuple[int, Path]] = []
    for name in ("best.pt", "last.pt", "previous.pt"):  # best.pt of older runs is a checkpoint
        other = path.with_name(name)
        with contextlib.suppress(Exception):
            if other != path:
                whole.append((_read(other).iteration, other))
    if not whole:
        return "train one with combo train"
    iteration, other = max(whole)
    away = f"mv {path} {path}.old; " if path.is_dir() else ""
    return f"{other} (iteration {iteration}) can take its place: {away}cp {other} {path}"
