"""Every number of a network and its criterion in one frozen record.

COMBO's defaults are the public COMBO-R50 on S4 (paper, section 4.2, and its settings files for
what the text leaves out). A small network for CPUs is the same record with other values.
"""

from dataclasses import dataclass
from typing import Any, Literal

Fidelity = Literal["reference", "paper"]
Sem = Literal["separate", "shared", "off"]
Fusion = Literal["bilateral", "visual", "audio", "none"]
Queries = Literal["add", "all", "none"]

MAY_BE_NONE = ("pixel_layers",)
"""Whole numbers that may be 0."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What the settings of every network have; the trainer sets it to what its data are."""

    classes: int = 2
    """K: background included, "no object" not."""
    image_size: int = 224
    """Pixels; only backbones with a fixed grid (Swin) need it to be right."""
    audio_dim: int = 128
    """D: numbers of one frame's sound."""
    max_frames: int = 10
    """T at most, for positions that are learned one a frame."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < 1 and name not in MAY_BE_NONE:
                raise ValueError(f"{name} is {value}, but must be at least 1")
            if isinstance(value, int | float) and not 0 <= value < 2**31:
                raise ValueError(f"{name} is {value}, but must be 0 or more, and below 2**31")

    @property
    def reads_maskige(self) -> bool:
        """Whether the network looks at Maskiges. Where not, that stage need not be in the store."""
        return True

    @property
    def noted(self) -> dict[str, Any]:
        """What an evaluation says of the network beside its scores."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ComboSettings(NetworkSettings):
    """What `Combo` and `Criterion` are built from. Raises ValueError for what cannot be built."""

    backbone: str = "resnet50"
    """timm name; needs features at strides 4, 8, 16 and 32."""
    fidelity: Fidelity = "reference"
    """Public code with its quirks, or the paper's text: see `fidelity.py`."""

    sem: Sem = "separate"
    """Siam encoder: two encoders, one for both, or none (Table 4)."""
    fusion: Fusion = "bilateral"
    """Which of pixels and sound the fusion changes (Table 5)."""
    queries: Queries = "add"
    """Sound added to the learned queries, sound alone, learned ones alone (Table 6)."""

    size_divisor: int = 32
    """Images are padded with zeros, right and bottom, to multiples of this many pixels."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from frames and Maskiges: RGB, 0..255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """By which they are then divided."""

    width: int = 256
    """C: channels of the pixel embeddings and queries."""
    heads: int = 8
    """Attention heads of the pixel decoder and the mask decoder."""
    drop_path: float = 0.0
    """Stochastic depth of the backbones, 0 at the first block to this at the last."""
    sem_reduction: int = 16
    """By how much the Siam encoder's channel attention narrows its channels."""
    pixel_layers: int = 6
    """Layers of deformable attention in the pixel decoder."""
    pixel_ffn: int = 1024
    """Hidden channels of their feed-forward parts."""
    pixel_points: int = 4
    """Points that each of their heads samples on a level."""
    audio_hidden: int = 4096
    """Hidden numbers of the projection of the sound."""
    fusion_heads: int = 8
    """Attention heads of the bilateral fusion."""
    fusion_dropout: float = 0.1
    """Dropout of its attention."""
    fusion_scale: float = 1e-4
    """Layer scale of the reference's fusion at the start."""
    query_count: int = 100
    """N: object queries."""
    decoder_layers: int = 9
    """Layers of the mask decoder."""
    decoder_ffn: int = 2048
    """Hidden channels of their feed-forward parts."""

    lambda_cls: float = 2.0
    """Weight of the classification loss."""
    lambda_mask: float = 5.0
    """Weight of the cross-entropy of masks."""
    lambda_dice: float = 5.0
    """Weight of the dice loss of masks."""
    lambda_ada: float | None = None
    """Weight of the inter-frame consistency. None: what the fidelity says for objects (K = 2) or
    semantic classes."""
    no_object_weight: float = 0.1
    """Weight of "no object" in the classification loss."""
    mask_points: int = 12544
    """Points at which the losses of a mask are taken."""
    oversample: float = 3.0
    """How many times as many candidates are drawn for them."""
    importance: float = 0.75
    """Share of them that is taken where the prediction is least certain."""

    @property
    def reads_maskige(self) -> bool:
        return self.sem != "off"

    @property
    def noted(self) -> dict[str, Any]:
        return {"fidelity": self.fidelity}

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "fidelity": ("reference", "paper"),
            "sem": ("separate", "shared", "off"),
            "fusion": ("bilateral", "visual", "audio", "none"),
            "queries": ("add", "all", "none"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {choices}")
        for name in ("drop_path", "fusion_dropout", "importance"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but is a share, from 0 to 1")
        if not all(each > 0 for each in self.pixel_std):
            raise ValueError(f"pixel_std is {self.pixel_std}, but is divided by: above 0 each")
        if self.oversample < 1:
            raise ValueError(f"oversample is {self.oversample}, but must be at least 1")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of 4 and of {self.heads} heads")
        if self.width % self.fusion_heads:
            raise ValueError(f"width {self.width} is not a multiple of fusion_heads")
        if self.size_divisor % 32:
            raise ValueError(f"size_divisor {self.size_divisor} is not a multiple of 32")
