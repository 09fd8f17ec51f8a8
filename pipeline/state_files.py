"""Weights files as dictionaries of tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ComboError
from .pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = ("model", "state_dict", "network")
"""Under which of a checkpoint's entries the parameters lie, where they are not at the top."""


def load_state(path: Path) -> dict[str, "Tensor"]:
    """The parameters in a weights file, on the CPU, by their published names.

    Reads torch.save's files (both formats), detectron2's pickles of numpy arrays (`.pkl`) and
    `.safetensors`. An entry `model`, `state_dict` or `network` is opened; what is no tensor is left
    out.
    Raises ComboError naming the file: missing, damaged, no parameters in it, or anything in it that
    reading would have to run.
    """
    value = _read(path)
    for entry in _ENTRIES:
        if isinstance(value, Mapping) and isinstance(value.get(entry), Mapping):
            value = value[entry]
            break
    tensors = _tensors(value) if isinstance(value, Mapping) else {}
    if not tensors:
        raise ComboError(f"{path}: no parameters in it; is it the right file?")
    return tensors


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:
            return read_pickle(file)
    except FileNotFoundError:
        raise ComboError(f"{path}: no such weights file") from None
    except MemoryError:
        raise
    except Exception as error:
        # The readers raise whatever damaged bytes lead them into.
        text = str(error)
        refused = [line for line in text.splitlines() if "GLOBAL" in line or "global" in line]
        reason = " ".join((refused or text.splitlines() or [type(error).__name__])[0].split())
        raise ComboError(
            f"{path}: damaged, or not a weights file that is safe to read ({reason[:200]}); get it "
            "again from where it is published"
        ) from error


def _tensors(entries: Mapping[Any, Any]) -> dict[str, "Tensor"]:
    import torch

    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            found[name] = value
    return found
