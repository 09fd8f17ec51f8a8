"""COMBO (Yang et al., "Cooperation Does Matter", CVPR 2024): the network of Fig. 2.

frames, Maskiges -> siam encoder -> pixel decoder -> bilateral fusion with the sound -> mask
decoder -> classes and masks. Everything is tensors; sound comes as VGGish or other features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Backbone
from .bilateral_fusion import NoFusion
from .clips import ClipLayout
from .fidelity import FIDELITY
from .interface import Network
from .mask_decoder import MaskDecoder
from .pixel_decoder import PixelDecoder
from .positions import sine_positions
from .presets import preset
from .settings import ComboSettings
from .siam_encoder import SiamEncoder
from .transfers import send

MASKS_AT_ONCE = 1 << 28
"""Bytes of masks at full size that are made together on a GPU. A CPU makes those of one frame,
which are more than its caches hold."""


@dataclass(frozen=True)
class Prediction:
    """What the queries say at one depth of the decoder."""

    class_logits: Tensor
    """[B, T, Q, K + 1], "no object" last."""
    mask_logits: Tensor
    """[B, T, Q, ceil(H / 4), ceil(W / 4)]."""


@dataclass(frozen=True)
class ComboOutput:
    """Predictions of one batch of clips; zeros for frames that are not valid.

    L prediction sets: before the first decoder layer and after each one, first to last.
    """

    class_sets: Tensor
    """[B, T, L, Q, K + 1], "no object" last."""
    mask_sets: Tensor
    """Logits with the padding of the image, [B, T, L, Q, ., .]."""
    image_size: tuple[int, int]
    """(H, W) of the frames, pixels."""
    valid: Tensor | None
    """[B, T] bool, or None where every frame exists."""

    @property
    def masks(self) -> Tensor:
        """Logits of all sets, [B, T, L, Q, ceil(H / 4), ceil(W / 4)]."""
        rows, columns = (-(-side // 4) for side in self.image_size)
        if self.mask_sets.shape[-2:] == (rows, columns):
            return self.mask_sets  # the gradient of a cut would be another array of their size
        return self.mask_sets[..., :rows, :columns]

    @property
    def layers(self) -> list[Prediction]:
        """Set after set."""
        both = zip(self.class_sets.unbind(2), self.masks.unbind(2), strict=True)
        return [Prediction(*each) for each in both]

    @property
    def class_logits(self) -> Tensor:
        """[B, T, Q, K + 1] of the last layer."""
        return self.class_sets[:, :, -1]

    @property
    def mask_logits(self) -> Tensor:
        """[B, T, Q, ceil(H / 4), ceil(W / 4)] of the last layer."""
        return self.masks[:, :, -1]

    def clip(self, number: int) -> "ComboOutput":
        """One clip's, as a batch of one."""
        one = slice(number, number + 1)
        valid = None if self.valid is None else self.valid[one]
        return ComboOutput(self.class_sets[one], self.mask_sets[one], self.image_size, valid)


class Combo(Network):
    """The network; build it with `Combo.from_preset` or from settings."""

    pixel_mean: Tensor
    pixel_std: Tensor
    memory_format = torch.channels_last
    """Of pictures, on every device: a pixel's channels side by side, as convolutions keep it.
    Pooling and resizing are many times faster so on a CPU, a forward 3 %, and a GPU's tensor cores
    want it so. Weights stay as they are: that gains nothing, and fused AdamW mixes elements where
    orders differ."""

    def __init__(self, settings: ComboSettings, pretrained: bool = False) -> None:
        """pretrained: timm fetches ImageNet weights for the encoders, and raises if it cannot."""
        super().__init__()
        self.settings = settings
        choices = FIDELITY[settings.fidelity]
        width = settings.width

        def encoder() -> Backbone:
            return Backbone(settings.backbone, settings.image_size, settings.drop_path, pretrained)

        self.siam_encoder = SiamEncoder(
            encoder(),
            encoder() if settings.sem == "separate" else None,
            None if settings.sem == "off" else choices.gate,
            settings.sem_reduction,
        )
        self.pixel_decoder = PixelDecoder(
            self.siam_encoder.channels, width, settings.heads, settings.pixel_layers,
            settings.pixel_ffn, settings.pixel_points,
        )  # fmt: skip
        self.bilateral_fusion = (
            NoFusion() if settings.fusion == "none" else choices.fusion(settings)
        )
        hidden = settings.audio_hidden
        self.audio_mlp = None
        if settings.queries != "none":
            self.audio_mlp = nn.Sequential(
                nn.Linear(settings.audio_dim, hidden), nn.ReLU(),
                nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, width),
            )  # fmt: skip
        self.spread = choices.queries
        self.mask_decoder = MaskDecoder(
            width, settings.heads, settings.decoder_ffn, settings.decoder_layers,
            settings.query_count, settings.classes, settings.queries,
        )  # fmt: skip
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(getattr(settings, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    @property
    def all_learn(self) -> bool:
        # Sound that was fused and then goes into no query is for nothing, as are the names of the
        # levels where no layer looks at them.
        fused = self.settings.fusion in ("bilateral", "audio")
        heard = not fused or self.settings.queries != "none"
        return heard and self.settings.pixel_layers > 0

    @property
    def parts(self) -> list[nn.Module]:
        encoders = [self.siam_encoder.frames, self.siam_encoder.maskiges]
        return [
            *(encoder for encoder in encoders if encoder is not None),
            *self.pixel_decoder.layers,
            self.bilateral_fusion,
            *self.mask_decoder.layers,
        ]

    @classmethod
    def from_preset(cls, name: str, *, pretrained: bool = False, **settings: object) -> "Combo":
        """The network of a named preset; keywords replace single settings.

        Raises ValueError for an unknown preset or setting.
        """
        return cls(preset(name, **settings), pretrained=pretrained)

    def normalise(self, images: Tensor) -> Tensor:
        """[F, 3, H, W] RGB, 0..255 of any dtype -> normalised, padded right and bottom."""
        h, w = images.shape[-2:]
        divisor = self.settings.size_divisor
        images = (images - self.pixel_mean) / self.pixel_std
        images = F.pad(images, (0, -w % divisor, 0, -h % divisor))
        return images.contiguous(memory_format=self.memory_format)

    def forward(
        self,
        frames: Tensor,
        maskige: Tensor | None,
        sound: Tensor,
        valid: Tensor | ClipLayout | None = None,
        *,
        apart: bool = False,
    ) -> ComboOutput:
        """frames, maskige: [B, T, 3, H, W] RGB 0..255; sound: [B, T, D].

        maskige: may be None where the setting `sem` is off, which does not look at it.
        valid: [B, T] bool for clips of different length; the other frames influence nothing. What
        is made of it beforehand, a `ClipLayout`, leaves a forward that compiles into one graph.
        apart: every clip as if it were alone, whose queries hear another one where the public code
        mixes them; of the last layer alone.
        Raises ValueError for arrays that do not fit together.
        """
        _check(frames, maskige, sound, self.settings)
        layout = valid
        if not isinstance(layout, ClipLayout):
            layout = ClipLayout.of(frames.shape[0], frames.shape[1], layout, frames.device)
        images = self.normalise(layout.pack(frames))
        maskiges = None
        if maskige is not None and self.settings.reads_maskige:
            maskiges = self.normalise(layout.pack(maskige))

        features = self.siam_encoder(images, maskiges)
        shapes = [(level.shape[2], level.shape[3]) for level in reversed(features)]
        *positions, of_finest = sine_positions(shapes, self.settings.width, images.device)
        pyramid = self.pixel_decoder.pyramid(shapes[:-1], positions)
        pixels, maps = self.pixel_decoder(features, pyramid)
        pixels, audio = self.bilateral_fusion(pixels, of_finest, layout.pack(sound), layout)
        queries = None
        if self.audio_mlp is not None:
            heard = self.audio_mlp(audio).split(layout.counts if apart else len(audio))
            queries = torch.cat([self.spread(each, self.settings.query_count) for each in heard])
        sets = self.mask_decoder(maps, positions, pixels, shapes[-1], queries, every=not apart)
        classes, masks = (layout.unpack(each) for each in sets)
        return ComboOutput(classes, masks, (frames.shape[3], frames.shape[4]), layout.valid)

    def clip_scores(
        self, frames: Tensor, maskige: Tensor | None, sound: Tensor, valid: Tensor | None = None
    ) -> Iterator[Tensor]:
        """As `Network.clip_scores`: all clips in one forward, then clip after clip at full size."""
        out = self(frames, maskige, sound, valid, apart=True)
        for number in range(len(frames)):
            yield self.scores(out.clip(number))[0]

    def scores(self, out: ComboOutput, at_once: int | None = None) -> Tensor:
        """Semantic inference (section 3.4): the sum over queries of class times mask.

        at_once: frames whose masks at full size, a hundred times the result, are made together; by
        default as many as `MASKS_AT_ONCE` holds.
        Returns [B, T, K, H, W] float32, 0..Q; zeros for frames that are not valid.
        """
        h, w = out.image_size
        last = out.mask_sets[:, :, -1]
        with torch.autocast(last.device.type, enabled=False):
            probability = out.class_logits.float().softmax(dim=-1)[..., :-1].flatten(0, 1)
            masks = last.flatten(0, 1)
            size = (masks.shape[2] * 4, masks.shape[3] * 4)
            if at_once is None:
                of_frame = 4 * masks.shape[1] * size[0] * size[1]
                at_once = 1 if masks.device.type == "cpu" else max(1, MASKS_AT_ONCE // of_frame)
            scores = []
            for of_queries, some in zip(
                probability.split(at_once), masks.split(at_once), strict=True
            ):
                full = F.interpolate(some.float(), size=size, mode="bilinear", align_corners=False)[
                    :, :, :h, :w
                ]
                scores.append(torch.einsum("fqk,fqhw->fkhw", of_queries, full.sigmoid_()))
            whole = torch.cat(scores).unflatten(0, out.class_logits.shape[:2])
        if out.valid is not None:
            whole = whole * send(out.valid, whole.device)[:, :, None, None, None]
        return whole


def _check(frames: Tensor, maskige: Tensor | None, sound: Tensor, settings: ComboSettings) -> None:
    if frames.dim() != 5 or frames.shape[2] != 3:
        raise ValueError(f"frames are {tuple(frames.shape)}, not [B, T, 3, H, W]")
    shape = None if maskige is None else tuple(maskige.shape)
    if settings.reads_maskige and shape != frames.shape:
        raise ValueError(f"maskige is {shape}, not {tuple(frames.shape)} as frames")
    if sound.shape != (*frames.shape[:2], settings.audio_dim):
        expected = (*frames.shape[:2], settings.audio_dim)
        raise ValueError(f"sound is {tuple(sound.shape)}, not {expected}")


torch.export.register_dataclass(ComboOutput)
