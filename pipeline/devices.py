"""Which devices and cores there are for a process that computes."""

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ComboError(
            f"device {wanted} cannot be used ({reason}); give --device cpu or --set device=cpu"
        ) from error
    return device


def devices(wanted: str) -> list[str]:
    """The devices that processes are spread over: for `auto` and `cuda` every GPU, else that one.

    Raises ComboError for a device that is not there.
    """
    import torch

    device = choose_device(wanted)
    if str(device) == "cuda":  # without a number: any
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [str(device)]


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


def cores() -> int:
    """CPU cores that this process may use: on a cluster those of its allocation."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(allowed, int(asked)) if asked.isdigit() and int(asked) > 0 else allowed
