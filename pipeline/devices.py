"""Which devices and cores there are for a process that computes."""

import ctypes
import errno
import os
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from .errors import ComboError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """Where one process computes. device: as PyTorch names it; networks go there."""

    threads: int = 1
    device: str = "cpu"


def choose_device(wanted: str) -> "torch.device":
    """`auto` is a GPU where there is one. Raises ComboError for a device that is not there."""
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("its tensors have no numbers")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ComboError(
            f"device {wanted} cannot be used ({reason}); give --device cpu or --set device=cpu"
        ) from error
    return device


def has_bf16(wanted: str) -> bool:
    """Whether `choose_device(wanted)` is a GPU that computes in bfloat16. Raises ComboError."""
    import torch

    if choose_device(wanted).type != "cuda":
        return False
    return torch.cuda.is_bf16_supported(including_emulation=False)


def devices(wanted: str) -> list[str]:
    """The devices that processes are spread over: for `auto` and `cuda` every GPU, else that one.

    Raises ComboError for a device that is not there.
    """
    import torch

    device = choose_device(wanted)
    if str(device) == "cuda":  # without a number: any
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]


@contextmanager
def claimed_device(wanted: str) -> Generator[str]:
    """Of `devices(wanted)` one that the fewest processes of this host have claimed, while the block
    runs; for processes that come and go and do not know of each other.  Raises ComboError.
    """
    import torch

    there = devices(wanted)
    if len(there) == 1:
        yield there[0]
        return
    # Jobs on one host may see other devices under the same number.
    names = [str(torch.cuda.get_device_properties(device).uuid) for device in there]
    with claimed(names) as position:
        yield there[position]


@contextmanager
def claimed(names: Sequence[str]) -> Generator[int]:
    """The position of a name that the fewest processes of this host have claimed, the first of
    such, claimed while the block runs.

    A claim is a bound name in the kernel's table of sockets (Linux): whoever runs on the host sees
    the same table, whatever its temporary folder is, and a name is free again when its holder dies.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        yield next(
            position
            for turn in count()
            for position, name in enumerate(names)
            if _bound(claim, f"\0combo-device-{name}-{turn}")
        )


def _bound(claim: socket.socket, name: str) -> bool:
    """Whether the name was free, and is now the socket's."""
    try:
        claim.bind(name)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@cache
def keep_freed_memory() -> None:
    """Lets this process keep what it frees, for as long as it lives; for training and evaluation.

    Every step asks for the same gigabyte of feature maps, every batch for the same pictures. glibc
    gives freed memory back to the system and fetches it again page by page, each page cleared
    first: a twentieth of a step on a CPU, and half of what it costs to read and decode a clip.
    The peak is the same. Arrays above 32 MiB stay outside the heap, where they would leave holes
    that the next array of their size just does not fit. C libraries without this switch stay as
    they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # as in <malloc.h>
        library.mallopt(trim_threshold, -1)  # never
        library.mallopt(mmap_threshold, 32 << 20)


def set_threads(wanted: int = 0) -> None:
    """PyTorch's CPU threads in this process; 0: one a core, or what OMP_NUM_THREADS says below."""
    import torch

    torch.set_num_threads(wanted or min(torch.get_num_threads(), cores()))


@contextmanager
def threads(wanted: int = 0) -> Generator[None]:
    """`set_threads`, within the block: the process may be another's, which calls combo."""
    import torch

    before = torch.get_num_threads()
    set_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def float32_products() -> Generator[None]:
    """Within the block, products and convolutions of a GPU are those of float32: PyTorch's own
    default rounds convolutions to TF32 on recent ones."""
    import torch

    backends: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in backends]
    try:
        for each in backends:
            each.allow_tf32 = False
        yield
    finally:
        for each, allowed in zip(backends, before, strict=True):
            each.allow_tf32 = allowed


def cores() -> int:
    """CPU cores that the system lets this process use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
