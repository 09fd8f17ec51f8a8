"""Named settings: the networks of the paper, and small ones for CPUs."""

from dataclasses import fields, replace

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
