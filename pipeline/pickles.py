"""Pickles of numbers, read without ever running what a file says.

A pickle is a program. Of PyTorch's own files only tensors and plain containers are read
(`weights_only`, which admits numpy arrays here: VGGish's PCA file holds some); of bare pickles
numbers, text, plain containers, numpy arrays and one tensor. Anything else is refused by its name.
"""

import collections
import io
import pickle
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_TORCH_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch.save begins, since 1.6 and before."""


def read_pickle(file: BinaryIO) -> Any:
    """What torch.save (both formats) or pickle.dump wrote; tensors on the CPU, also a GPU's.

    Raises, for damaged bytes and all that is not admitted, whatever they lead the readers into.
    """
    import torch

    start = file.read(len(_TORCH_LEGACY))
    file.seek(0)
    if start.startswith((_TORCH_ZIP, _TORCH_LEGACY)):
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(file, map_location="cpu", weights_only=True)
    value = _ArraysOnly(file, encoding="latin1").load()
    return _tensor(value) if isinstance(value, _Strided) else value


class _Strided(NamedTuple):
    """A tensor as a pickle describes it."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Storage(NamedTuple):
    """A tensor's numbers as torch.save wrote them."""

    content: bytes


class _ArraysOnly(pickle.Unpickler):
    """Reads numbers, text, containers and numpy arrays, and describes tensors.

    What an array of objects would hold passes through here too, so it cannot smuggle anything in.
    A tensor is put together only afterwards: a pickle may set the state of every object it has
    made, and a tensor's state is an address.
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
    array, scalar = _numpy_rebuilders()
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _encode,
        ("torch._utils", "_rebuild_tensor_v2"): _strided,
        ("torch.storage", "_load_from_bytes"): _Storage,
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


def _numpy_globals() -> list[Any]:
    """What torch may rebuild beside tensors."""
    array, scalar = _numpy_rebuilders()
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(array, f"{m}._reconstruct") for m in modules]
    named += [(scalar, f"{m}.scalar") for m in modules]
    kinds = [type(np.dtype(code)) for code in "?bhilBHILefd"]
    return [*named, np.ndarray, np.dtype, *kinds]


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes. Other codecs than theirs are programs of their own."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _Strided:
    return _Strided(storage, offset, size, stride)  # what follows: requires_grad, hooks


def _tensor(described: _Strided) -> "Tensor":
    import torch

    if not isinstance(described.storage, _Storage):
        raise pickle.UnpicklingError("a tensor without numbers")
    content = io.BytesIO(described.storage.content)
    storage = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("numbers that are not a tensor's")
    with warnings.catch_warnings():  # the old files hold what PyTorch now calls deprecated
        warnings.simplefilter("ignore", UserWarning)
        numbers = torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    # as_strided refuses what reaches beyond the numbers that are there.
    return numbers.as_strided(described.size, described.stride, described.offset)
