"""Named settings: the networks of the paper, and small ones for CPUs."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .settings import ComboSettings

_RESNET = ComboSettings()
_PVT = ComboSettings(backbone="pvt_v2_b5", drop_path=0.1)
# Learns from scratch on two cores: an encoder of 0.35 M parameters without batch norm, and each
# frame's own sound in its queries.
_SMALL = ComboSettings(
    backbone="test_convnext2",
    fidelity="paper",
    image_size=128,
    width=64,
    heads=4,
    pixel_layers=2,
    pixel_ffn=128,
    audio_hidden=128,
    query_count=20,
    decoder_layers=3,
    decoder_ffn=128,
    mask_points=1024,
)
_NETWORKS = {"r50": _RESNET, "pvt": _PVT, "small": _SMALL}
_CLASSES = {"s4": 2, "ms3": 2, "avss": 71}

PRESETS: dict[str, ComboSettings] = {
    f"combo-{network}-{data}": replace(settings, classes=classes)
    for network, settings in _NETWORKS.items()
    for data, classes in _CLASSES.items()
}
"""combo-{r50,pvt,small}-{s4,ms3,avss}."""

# One thread: two are half as fast again on cores of their own, and ten times slower when they wait
# for one another on cores that others use too.
_SMALL_TRAINING: Mapping[str, Any] = {
    "threads": 1,
    "initialisation": "random",
    "iterations": 700,
    "batch_size": 2,
    "micro_batch": 2,
    "learning_rate": 1e-3,
    "backbone_lr_factor": 1.0,
    "clip_norm": 1.0,
    "warmup": 20,
    "precision": "fp32",
    "augment": "none",
    "evaluate_every": 350,
}
TRAINING = {f"combo-small-{data}": _SMALL_TRAINING for data in _CLASSES}
"""What training with a preset does otherwise than the paper with its networks."""


def preset(name: str, **settings: object) -> ComboSettings:
    """Settings of a named network; keywords replace single ones.

    Raises ValueError for an unknown preset or setting, naming those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    known = {field.name for field in fields(ComboSettings)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"no setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return replace(PRESETS[name], **settings)
