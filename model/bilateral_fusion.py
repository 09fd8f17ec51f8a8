"""Bilateral-Fusion Module: pixels and sound look at each other once (Eq. 4-5).

There are a few sounds for thousands of pixels. The pixels' projections (query, value, output) are
therefore applied on the sounds' side, where Q K^T = X (W_Q^T K^T) and P V = (P X) W_V: the same
numbers, without three more feature maps of C channels.
"""

import torch
from torch import Tensor, nn

from .clips import ClipLayout
from .settings import ComboSettings
from .transfers import send

SCORE_LIMIT = 50000.0
"""Scores are clamped here, for half precision's sake, as in the public code."""


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class BilateralAttention(nn.Module):
    """Multi-head attention between one frame's pixels and its one sound, as in the public code.

    Both softmaxes run over the pixels, so a pixel receives about 1 / 3136 of the sound; both
    probabilities are thus the same numbers, apart from dropout.
    """

    def __init__(
        self, width: int, audio_dim: int, heads: int, dropout: float, to_v: bool, to_a: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj = _linear(width, width)
        self.a_proj = _linear(audio_dim, width)
        self.values_a_proj = _linear(audio_dim, width) if to_v else None
        self.out_v_proj = _linear(width, width) if to_v else None
        self.values_v_proj = _linear(width, width) if to_a else None
        self.out_a_proj = _linear(width, audio_dim) if to_a else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, pixels: Tensor, positions: Tensor, sound: Tensor, sound_position: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """pixels: [F, P, C]; positions: [P, C]; sound: [F, D]; sound_position: [D].

        Returns what to add to pixels, [F, P, C], and to sound, [F, D]; None for a direction
        that is switched off.
        """
        split = (self.heads, -1)
        key = self.a_proj(sound + sound_position).unflatten(1, split)
        key = key * key.shape[2] ** -0.5
        query = torch.einsum("fhd,hdc->fhc", key, self.v_proj.weight.unflatten(0, split))
        constant = (key * self.v_proj.bias.unflatten(0, split)).sum(dim=2)
        scores = query @ pixels.transpose(1, 2) + query @ positions.T + constant[:, :, None]
        scores = scores.clamp(-SCORE_LIMIT, SCORE_LIMIT)
        probability = scores.softmax(dim=2)

        to_pixels = to_sound = None
        if self.values_a_proj is not None and self.out_v_proj is not None:
            value = self.values_a_proj(sound).unflatten(1, split)
            output = self.out_v_proj.weight.unflatten(1, split)
            value = torch.einsum("fhd,chd->fhc", value, output)
            to_pixels = torch.einsum("fhp,fhc->fpc", self.dropout(probability), value)
            to_pixels = to_pixels + self.out_v_proj.bias
        if self.values_v_proj is not None and self.out_a_proj is not None:
            probability = self.dropout(probability)
            seen = torch.einsum("fhp,fpc->fhc", probability, pixels)
            heard = torch.einsum(
                "fhc,hdc->fhd", seen, self.values_v_proj.weight.unflatten(0, split)
            )
            # Dropped probabilities no longer sum to one, so the bias counts by their sum.
            bias = self.values_v_proj.bias.unflatten(0, split)
            heard = heard + probability.sum(dim=2)[:, :, None] * bias
            to_sound = self.out_a_proj(heard.flatten(1))
        return to_pixels, to_sound


class ReferenceFusion(nn.Module):
    """The public code's fusion: frame by frame, residuals from the normalised inputs."""

    def __init__(self, settings: ComboSettings) -> None:
        super().__init__()
        width, audio_dim = settings.width, settings.audio_dim
        to_v = settings.fusion in ("bilateral", "visual")
        to_a = settings.fusion in ("bilateral", "audio")
        self.level_embed = nn.Embedding(1, width)
        self.audio_pos = nn.Embedding(1, audio_dim)
        self.norm_v = nn.LayerNorm(width)
        self.norm_a = nn.LayerNorm(audio_dim)
        self.attention = BilateralAttention(
            width, audio_dim, settings.fusion_heads, settings.fusion_dropout, to_v, to_a
        )
        scale = settings.fusion_scale
        self.gamma_v = nn.Parameter(torch.full((width,), scale)) if to_v else None
        self.gamma_a = nn.Parameter(torch.full((audio_dim,), scale)) if to_a else None

    def forward(
        self, pixels: Tensor, positions: Tensor, sound: Tensor, layout: ClipLayout
    ) -> tuple[Tensor, Tensor]:
        """pixels: P_1 [F, C, H, W]; positions: [H * W, C]; sound: F_a [F, D]; layout is not looked
        at.

        Returns the fused pixels as rows [F, H * W, C], and the fused sound [F, D].
        """
        del layout
        rows = pixels.flatten(2).transpose(1, 2) + self.level_embed.weight
        v, a = self.norm_v(rows), self.norm_a(sound)
        to_v, to_a = self.attention(v, positions.to(v.dtype), a, self.audio_pos.weight[0])
        fused = rows if to_v is None or self.gamma_v is None else v + self.gamma_v * to_v
        heard = sound if to_a is None or self.gamma_a is None else a + self.gamma_a * to_a
        return fused, heard


class PaperFusion(nn.Module):
    """Eq. 4-5 as printed: the pixels of all frames attend over the clip's T sounds, each sound
    over the pixels of all frames; four linear layers, one head, residuals from the inputs.

    Values take the width of what they are added to, since there is no output layer. One learned
    position a frame number stands for the "learnable positional encodings" of F_a.
    """

    def __init__(self, settings: ComboSettings) -> None:
        super().__init__()
        width, audio_dim = settings.width, settings.audio_dim
        self.audio_pos = nn.Embedding(settings.max_frames, audio_dim)
        self.query = _linear(width, width)
        self.key = _linear(audio_dim, width)
        bilateral = settings.fusion == "bilateral"
        to_v = bilateral or settings.fusion == "visual"
        to_a = bilateral or settings.fusion == "audio"
        self.audio_value = _linear(audio_dim, width) if to_v else None
        self.visual_value = _linear(width, audio_dim) if to_a else None

    def forward(
        self, pixels: Tensor, positions: Tensor, sound: Tensor, layout: ClipLayout
    ) -> tuple[Tensor, Tensor]:
        """pixels: P_1 [F, C, H, W]; positions: [H * W, C]; sound: F_a [F, D].

        Returns the fused pixels as rows [F, H * W, C], and the fused sound [F, D].
        Raises ValueError for clips longer than `max_frames`.
        """
        frames = layout.frames
        if frames > self.audio_pos.num_embeddings:
            raise ValueError(
                f"clips of {frames} frames, but sound positions for {self.audio_pos.num_embeddings}"
                " (setting max_frames)"
            )
        _, width, h, w = pixels.shape
        rows = pixels.flatten(2).transpose(1, 2)
        placed = layout.unpack(rows + positions).flatten(1, 2)
        heard = layout.unpack(sound) + self.audio_pos.weight[:frames]

        key = self.key(heard) * width**-0.5
        scores = placed @ (key @ self.query.weight).transpose(1, 2)
        scores = scores + (key @ self.query.bias)[:, None, :]
        absent = None if layout.valid is None else ~send(layout.valid, scores.device)

        fused_rows, fused_sound = rows, sound
        if self.audio_value is not None:
            over = scores if absent is None else scores.masked_fill(absent[:, None, :], -torch.inf)
            added = over.softmax(dim=2) @ self.audio_value(heard)
            fused_rows = layout.pack(added.unflatten(1, (frames, h * w))) + rows
        if self.visual_value is not None:
            if absent is not None:
                gone = absent.repeat_interleave(h * w, dim=1)[:, :, None]
                scores = scores.masked_fill(gone, -torch.inf)
            seen = scores.softmax(dim=1).transpose(1, 2) @ placed
            fused_sound = layout.pack(self.visual_value(seen)) + sound
        return fused_rows, fused_sound


class NoFusion(nn.Module):
    """Table 5, without fusion: pixels and sound as they come."""

    def forward(
        self, pixels: Tensor, positions: Tensor, sound: Tensor, layout: ClipLayout
    ) -> tuple[Tensor, Tensor]:
        """[F, C, H, W] and [F, D] -> [F, H * W, C] and [F, D]."""
        del positions, layout
        return pixels.flatten(2).transpose(1, 2), sound
