"""Checkpoints: everything a run needs to go on as if it had not stopped, in one whole file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import durable, remedies
from ..errors import ComboError


@dataclass
class Checkpoint:
    """network, optimiser, scaler: state dictionaries.  iteration: optimiser steps taken.
    best: highest M_J on the val split so far.  random: states of the random generators.
    """

    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    iteration: int
    best: float
    random: dict[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all. Raises ComboError when it cannot be written."""
    try:
        with durable.replacing(path) as file:
            torch.save(vars(checkpoint), file)
    except OSError as error:
        raise ComboError(
            f"cannot write {path}: {error.strerror or error}; "
            f"free space and go on with: {remedies.resume(path.parent)}"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU.

    Raises ComboError for a file that is missing or not one; it names the run's other checkpoint.
    """
    other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
    mend = "train one with combo train"
    if other != path and other.exists():
        mend = f"{other} is there, and can take its place: cp {other} {path}"
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ComboError(f"no checkpoint {path}; {mend}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ComboError(f"{path} is cut short or no checkpoint ({reason}); {mend}") from error


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
