"""Weights files as dictionaries of tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ComboError
from .pickles import read_pickle

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = ("model", "state_dict", "averaged", "network")
"""Under which of a checkpoint's entries the parameters lie, where they are not at the top. Of a run
with a mean of its networks, that is what the others are made for."""

_OF_PROCESSES = "module."
"""What PyTorch's wrappers for several processes put before each name."""


def load_state(path: Path) -> dict[str, "Tensor"]:
    """The parameters in a weights file, on the CPU, by their published names.

    Reads torch.save's files (both formats), detectron2's pickles of numpy arrays (`.pkl`) and
    `.safetensors`. The first entry there is of `model`, `state_dict`, `averaged` and `network` is
    opened, `module.` before all names dropped; what is no tensor is left out.
    Raises ComboError naming the file: missing, damaged, no parameters in it, or anything in it that
    reading would have to run.
    """
    value = _read(path)
    for entry in _ENTRIES:
        if isinstance(value, Mapping) and isinstance(value.get(entry), Mapping) and value[entry]:
            value = value[entry]
            break
    tensors = _tensors(value) if isinstance(value, Mapping) else {}
    if not tensors:
        raise ComboError(f"{path}: no parameters in it; is it the right file?")
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ComboError(f"{path}: its parameters have shapes and no numbers; save real ones")
    if all(name.startswith(_OF_PROCESSES) for name in tensors):
        tensors = {name.removeprefix(_OF_PROCESSES): each for name, each in tensors.items()}
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
