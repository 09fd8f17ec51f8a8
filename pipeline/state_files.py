"""Weights files as dictionaries of tensors, without ever running what a file says.

A pickle is a program. Of PyTorch's files only tensors and plain containers are read
(`weights_only`), of detectron2's bare pickles only numpy arrays of numbers and plain containers;
anything else in a file is an error that names it.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ComboError

if TYPE_CHECKING:
    from torch import Tensor

_ENTRIES = ("model", "state_dict")
"""Under which of a checkpoint's entries the parameters lie, where they are not at the top."""

_TORCH_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch.save begins, since 1.6 and before."""


def load_state(path: Path) -> dict[str, "Tensor"]:
    """The parameters in a weights file, on the CPU, by their published names.

    Reads torch.save's files (both formats), detectron2's pickles of numpy arrays (`.pkl`) and
    `.safetensors`. An entry `model` or `state_dict` is opened; what is no tensor is left out.
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
    import torch

    try:
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            if start.startswith((_TORCH_ZIP, _TORCH_LEGACY)):
                with torch.serialization.safe_globals(_numpy_globals()):
                    return torch.load(path, map_location="cpu", weights_only=True)
            return _ArraysOnly(file, encoding="latin1").load()
    except FileNotFoundError:
        raise ComboError(f"{path}: no such weights file") from None
    except (ComboError, MemoryError):
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


class _ArraysOnly(pickle.Unpickler):
    """Reads numbers, text, containers and numpy arrays; refuses every other thing by name.

    What an array of objects would hold passes through here too, so it cannot smuggle anything in.
    """

    def find_class(self, module: str, name: str) -> Any:
        admitted = _admitted()
        try:
            return admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for global {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to something outside ({pid!r:.40})")


def _admitted() -> dict[tuple[str, str], Any]:
    import collections

    array, scalar = _numpy_rebuilders()
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _encode,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "_reconstruct"] = array
        names[module, "scalar"] = scalar
    return names


def _numpy_rebuilders() -> tuple[Any, Any]:
    """The two functions that numpy's pickles call: for an array and for a single number."""
    array = np.zeros(1).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    return array, scalar


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes. Other codecs than theirs are programs of their own."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


def _numpy_globals() -> list[Any]:
    """What torch may rebuild beside tensors: VGGish's PCA file holds numpy arrays."""
    array, scalar = _numpy_rebuilders()
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(array, f"{m}._reconstruct") for m in modules]
    named += [(scalar, f"{m}.scalar") for m in modules]
    kinds = [type(np.dtype(code)) for code in "?bhilBHILefd"]
    return [*named, np.ndarray, np.dtype, *kinds]
