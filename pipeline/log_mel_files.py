"""AVSBench's stored log-mels, for users who have only these files.

A pickle is a program; here it may put a tensor together from its bytes and nothing else.
"""

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import MediaError, reason_of
from .limits import USUAL, Limits
from .regular_files import read_whole

if TYPE_CHECKING:
    from torch import Tensor


def read_log_mel_pickle(
    path: Path, limits: Limits = USUAL, digests: dict[Path, str] | None = None
) -> "Tensor":
    """The patches in one of AVSBench's `audio_log_mel/*.pkl`: [P, 1, 96, 64] float32, on the CPU.

    Reads `pickle.dump` and both formats of `torch.save`, tensors saved from a GPU included.
    digests: receives the SHA-256 of the file's bytes. Raises MediaError for anything else.
    """
    import torch

    content = read_whole(path, int(limits.bytes))
    if digests is not None:
        digests[path] = hashlib.sha256(content).hexdigest()
    try:
        if content[:4] == b"PK\x03\x04" or content[2:3] == b"\x8a":  # torch.save, new and old
            patches = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            patches = _tensor(_TensorUnpickler(io.BytesIO(content)).load())
    except Exception as error:
        # Damaged bytes make the readers raise whatever they lead them into.
        raise MediaError(path, f"not a pickled tensor ({reason_of(error)[:120]})") from error
    if not isinstance(patches, torch.Tensor) or patches.ndim != 4 or patches.shape[0] == 0:
        raise MediaError(path, "not a tensor of log-mel patches [P, 1, 96, 64]")
    if tuple(patches.shape[1:]) != (1, 96, 64) or not patches.is_floating_point():
        found = f"{list(patches.shape)} {patches.dtype}"
        raise MediaError(path, f"log-mel patches are [P, 1, 96, 64] floating point, not {found}")
    if not bool(patches.isfinite().all()):
        raise MediaError(path, "NaN or infinite numbers in the log-mel patches")
    return patches.detach().float().contiguous()


class _Strided(NamedTuple):
    """A tensor as a pickle describes it."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Storage(NamedTuple):
    """A tensor's numbers as torch.save wrote them."""

    content: bytes


class _TensorUnpickler(pickle.Unpickler):
    """Admits the four names that `pickle.dump(tensor)` uses, and makes nothing but tuples of them.

    A tensor is put together only afterwards: a pickle may set the state of every object it has
    made, and a tensor's state is an address.
    """

    def find_class(self, module: str, name: str) -> Any:
        admitted = {
            ("torch._utils", "_rebuild_tensor_v2"): _strided,
            ("torch.storage", "_load_from_bytes"): _Storage,
            ("collections", "OrderedDict"): dict,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to {pid!r:.40} outside the file")


def _strided(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _Strided:
    return _Strided(storage, offset, size, stride)  # what follows: requires_grad, hooks


def _latin1(text: str, encoding: str) -> bytes:
    # Protocol 2 has no bytes and writes them as text.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


def _tensor(described: Any) -> "Tensor":
    import torch

    if not isinstance(described, _Strided) or not isinstance(described.storage, _Storage):
        raise pickle.UnpicklingError("something else than a tensor")
    content = io.BytesIO(described.storage.content)
    storage = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("numbers that are not a tensor's")
    with warnings.catch_warnings():  # the old files hold what PyTorch now calls deprecated
        warnings.simplefilter("ignore", UserWarning)
        numbers = torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    # as_strided refuses what reaches beyond the numbers that are there.
    return numbers.as_strided(described.size, described.stride, described.offset)
