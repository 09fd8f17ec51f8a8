"""Clips of different length in one batch.

The per-frame parts of the network see the valid frames only, one after another in clip order (F
of them), as the public code stacks them; arrays of clips [B, T, ...] hold zeros elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .transfers import send


@dataclass(frozen=True)
class ClipLayout:
    """Which frames of [B, T] exist."""

    clips: int
    frames: int
    valid: Tensor | None = None
    """[B, T] bool, or None where every frame exists."""
    index: Tensor | None = None
    """[F] int64, on the clips' device: places of the valid frames in the flattened [B * T]."""

    @classmethod
    def of(
        cls, clips: int, frames: int, valid: Tensor | None, device: torch.device
    ) -> "ClipLayout":
        """valid: [B, T] bool or None. Kept on the CPU it costs no wait for a GPU.

        Raises ValueError for another shape or dtype, or a clip without a valid frame.
        """
        if valid is None:
            return cls(clips, frames)
        if valid.shape != (clips, frames) or valid.dtype != torch.bool:
            raise ValueError(
                f"valid is {valid.dtype} {tuple(valid.shape)}, not bool {(clips, frames)}"
            )
        # NumPy: numbers of the host, whatever traces or counts what tensors do.
        exists = valid.cpu().numpy()
        if exists.all():
            return cls(clips, frames)
        if not exists.any(axis=1).all():
            raise ValueError("a clip has no valid frame")
        index = torch.from_numpy(exists.reshape(-1).nonzero()[0])
        return cls(clips, frames, valid, send(index, device))

    @property
    def counts(self) -> list[int]:
        """How many frames each clip has."""
        if self.valid is None:
            return [self.frames] * self.clips
        return self.valid.sum(dim=1).tolist()

    def pack(self, clips: Tensor) -> Tensor:
        """[B, T, ...] -> [F, ...], valid frames only."""
        flat = clips.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unpack(self, flat: Tensor) -> Tensor:
        """[F, ...] -> [B, T, ...], zeros where no frame is."""
        if self.index is not None:
            whole = flat.new_zeros((self.clips * self.frames, *flat.shape[1:]))
            flat = whole.index_copy(0, self.index, flat)
        return flat.unflatten(0, (self.clips, self.frames))


torch.export.register_dataclass(ClipLayout)
