"""AVSBench's stored log-mels, for users who have only these files."""

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MediaError, reason_of
from ..pickles import read_pickle
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
        patches = read_pickle(io.BytesIO(content))
    except Exception as error:
        # Damaged bytes make the readers raise whatever they lead them into.
        raise MediaError(path, f"not a pickled tensor ({reason_of(error)[:120]})") from error
    if not isinstance(patches, torch.Tensor):
        raise MediaError(path, "not a pickled tensor, but something else")
    if patches.ndim != 4 or patches.shape[0] == 0:
        raise MediaError(path, "not a tensor of log-mel patches [P, 1, 96, 64]")
    if tuple(patches.shape[1:]) != (1, 96, 64) or not patches.is_floating_point():
        found = f"{list(patches.shape)} {patches.dtype}"
        raise MediaError(path, f"log-mel patches are [P, 1, 96, 64] floating point, not {found}")
    if not bool(patches.isfinite().all()):
        raise MediaError(path, "NaN or infinite numbers in the log-mel patches")
    return patches.detach().float().contiguous()
