"""Siam-Encoder Module: what the Maskige knows joins the frame's features (Eq. 1-3)."""

from collections.abc import Callable

from torch import Tensor, nn

from .backbones import Backbone

GateOf = Callable[[int, int], nn.Module]


class SqueezeGate(nn.Module):
    """One factor a channel, 0..1, from the mean of the Maskige feature (public code)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, feature: Tensor) -> Tensor:
        """[F, C, H, W] -> [F, C]."""
        return self.fc2(self.fc1(feature.mean(dim=(2, 3))).relu()).sigmoid()


class LinearGate(nn.Module):
    """GAP(F_m) W of Eq. 3, whose text leaves out the bias "for simplicity"; any real factor."""

    def __init__(self, channels: int, reduction: int) -> None:  # noqa: ARG002 - one signature
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, feature: Tensor) -> Tensor:
        """[F, C, H, W] -> [F, C]."""
        return self.fc(feature.mean(dim=(2, 3)))


class SiamEncoder(nn.Module):
    """F_v <- F_m * gate(F_m) + F_v on four levels; two encoders, one for both, or frames only."""

    def __init__(
        self, frames: Backbone, maskiges: Backbone | None, gate: GateOf | None, reduction: int
    ) -> None:
        """maskiges: None shares the frames' encoder. gate: None leaves the Maskige out."""
        super().__init__()
        self.frames = frames
        self.maskiges = maskiges
        self.channels = frames.channels
        self.gates = (
            None if gate is None else nn.ModuleList(gate(c, reduction) for c in frames.channels)
        )

    def forward(self, frames: Tensor, maskiges: Tensor | None) -> list[Tensor]:
        """[F, 3, H, W] normalised, twice -> four maps [F, C_i, H / s, W / s], finest first.

        maskiges: None where they are left out.
        """
        features = self.frames(frames)
        if self.gates is None or maskiges is None:
            return features
        encoder = self.frames if self.maskiges is None else self.maskiges
        return [
            visual + gate(maskige)[:, :, None, None] * maskige
            for visual, maskige, gate in zip(features, encoder(maskiges), self.gates, strict=True)
        ]
