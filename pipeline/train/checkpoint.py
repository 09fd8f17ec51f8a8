"""Checkpoints: everything a run needs to go on as if it had not stopped, in one whole file."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from .. import durable
from ..errors import ComboError


@dataclass
class Checkpoint:
    """network, optimiser, scaler: state dictionaries.  iteration: batches seen.
    best: highest M_J on the val split so far.  random: states of the random generators.
    evaluated: iteration of the last evaluation, -1 where it is not known.  skipped: steps that were
    not taken, and how many of them in a row just now.
    """

    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    iteration: int
    best: float
    random: dict[str, Tensor]
    evaluated: int = -1
    skipped: int = 0
    in_a_row: int = 0


def save(path: Path, value: Checkpoint | dict[str, Any], keep: Path | None = None) -> None:
    """Write a checkpoint, or other tensors, whole or not at all. Raises OSError.

    keep: where the file that was there goes.
    """
    try:
        with durable.replacing(path, keep=keep) as file:
            torch.save(value if isinstance(value, dict) else vars(value), file)
    except RuntimeError as error:
        # What torch makes of a write that failed in the middle.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises ComboError for a file that is missing or not one; it names the run's other checkpoint.
    """
    try:
        return _read(path)
    except PermissionError as error:
        raise ComboError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        missing = isinstance(error, FileNotFoundError)
        what = (
            f"no checkpoint {path}"
            if missing
            else f"{path} is cut short or no checkpoint ({reason})"
        )
        raise ComboError(f"{what}; {_mend(path)}") from error


def load_network(path: Path, network: nn.Module) -> None:
    """Give a network the parameters of a checkpoint. Raises ComboError."""
    state = load(path).network
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


def _read(path: Path) -> Checkpoint:
    found = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    kinds = get_type_hints(Checkpoint)
    for name, value in vars(found).items():
        if not isinstance(value, get_origin(kinds[name]) or kinds[name]):
            raise TypeError(f"{name} is {type(value).__name__}")
    return found


def _mend(path: Path) -> str:
    """What can take a checkpoint's place: the run's newest other one that is whole."""
    whole: list[tuple[int, Path]] = []
    for name in ("best.pt", "last.pt", "previous.pt"):
        other = path.with_name(name)
        with contextlib.suppress(Exception):
            if other != path:
                whole.append((_read(other).iteration, other))
    if not whole:
        return "train one with combo train"
    iteration, other = max(whole)
    return f"{other} (iteration {iteration}) can take its place: cp {other} {path}"


def random_states(augment: torch.Generator) -> dict[str, Tensor]:
    """States of all generators that training draws from."""
    states = {"augment": augment.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random(states: dict[str, Tensor], augment: torch.Generator) -> None:
    augment.set_state(states["augment"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
