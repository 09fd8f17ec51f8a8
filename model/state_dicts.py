"""Published checkpoints' key names -> ours: dict in, dict out, complete both ways.

Every key that comes in is renamed, or left out by a rule below that says why; every key the
network needs comes out, with its shape. What does not fit is a StateDictError naming the key.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .backbones import Backbone
from .combo import Combo
from .presets import preset
from .settings import ComboSettings

State = Mapping[str, Tensor]
Rename = Callable[[str], str | None]
Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
BackboneKind = Literal["torchvision", "timm", "detectron2"]


class StateDictError(ValueError):
    """A state dict has keys too many or too few, or of another shape."""


def _names(keys: Iterable[str]) -> str:
    listed = sorted(keys)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more


def _rename(state: State, rename: Rename) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Renamed state and, for messages, each new name's old one. None from `rename` drops a key."""
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for old, value in state.items():
        new = rename(old)
        if new is None:
            continue
        if new in renamed:
            raise StateDictError(f"{old} and {origin[new]} are both {new}")
        renamed[new], origin[new] = value, old
    return renamed, origin


def _fit(renamed: dict[str, Tensor], origin: Mapping[str, str], wanted: State) -> dict[str, Tensor]:
    """`renamed` in the order of `wanted`, every key and shape as there."""
    unknown = [origin[key] for key in renamed if key not in wanted]
    if unknown:
        raise StateDictError(f"not part of the network: {_names(unknown)}")
    missing = [key for key in wanted if key not in renamed]
    if missing:
        raise StateDictError(f"missing from the state: {_names(missing)}")
    for key, value in renamed.items():
        if value.shape != wanted[key].shape:
            raise StateDictError(
                f"{origin[key]} has shape {tuple(value.shape)}, not {tuple(wanted[key].shape)}"
            )
    return {key: renamed[key] for key in wanted}


def _substitute(rules: Rules, key: str) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


# --- backbones -----------------------------------------------------------------------------------


def _earlier(name: str) -> Callable[[re.Match[str]], str]:
    """Stage numbers that start one lower in timm's names."""
    return lambda found: name.format(int(found[1]) - 1)


_DETECTRON2_RESNET: Rules = (
    (r"^stem\.conv1\b", "conv1"),
    (r"^res(\d)\.", _earlier("layer{}.")),
    (r"\.shortcut\.", ".downsample.0."),
)
_TORCHVISION_RESNET: Rules = (
    (r"\bbn(\d)\.", r"conv\1.norm."),
    # After one convolution, or, in ResNet-D, after pooling and one.
    (r"\.downsample\.(\d)\.", _earlier(".downsample.{}.norm.")),
)
_PUBLISHED_PVT: Rules = (
    (r"^patch_embed1\.", "patch_embed."),
    (r"^patch_embed(\d)\.", _earlier("stages_{}.downsample.")),
    (r"^block(\d)\.", _earlier("stages_{}.blocks.")),
    (r"^norm(\d)\.", _earlier("stages_{}.norm.")),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)
# A classifier is not part of the encoder, a frozen norm counts no batches.
_DEAD = re.compile(r"^(stem\.)?(fc|head|linear|classifier)\.|\.num_batches_tracked$")


def _detectron2_key(key: str) -> str | None:
    if _DEAD.search(key):
        return None
    return _substitute((*_DETECTRON2_RESNET, *_PUBLISHED_PVT), key)


def _timm_key(key: str, wanted: State) -> str | None:
    """timm cuts sequences open (stages.0 -> stages_0) where features are taken between."""
    opened = re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
    for candidate in (opened, _substitute(_TORCHVISION_RESNET, key)):
        if candidate in wanted:
            return candidate
    # The norm after the last stage is the classifier's.
    if _DEAD.search(key) or (key not in wanted and re.match(r"norm\.", key)):
        return None
    return key


def backbone_state(state: State, kind: BackboneKind, backbone: Backbone) -> dict[str, Tensor]:
    """ImageNet weights -> the state of a `Backbone`.

    state: of a torchvision ResNet, of a timm network (whole or `features_only`), or of a
    detectron2 ResNet or PVT (arrays as tensors). kind: which of them.
    backbone: the network the state is for. Raises StateDictError.
    """
    wanted = backbone.body.state_dict()

    def rename(key: str) -> str | None:
        return _detectron2_key(key) if kind == "detectron2" else _timm_key(key, wanted)

    renamed, origin = _rename(state, rename)
    return {f"body.{key}": value for key, value in _fit(renamed, origin, wanted).items()}


_KINDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
          "moving_variance": "running_var"}  # fmt: skip
"""What others call a norm's tensors, which have one shape."""


def _kind(key: str) -> str:
    last = key.rpartition(".")[2]
    return _KINDS.get(last, last)


def backbone_state_in_order(state: State, backbone: Backbone) -> dict[str, Tensor]:
    """Weights of a network that calls its layers otherwise, but has the same in the same order.

    Each of the backbone's tensors must have the shape of the one at its place in `state`, and be
    of its kind where that is a norm's; a classifier and last layers may follow. Raises
    StateDictError, also for names in alphabetical order: whoever sorted them took the layers'
    order away, as files of `safetensors` do.
    """
    wanted = backbone.body.state_dict()
    given = [(k, v) for k, v in state.items() if not k.endswith("num_batches_tracked")]
    if len(given) < len(wanted):
        raise StateDictError(f"{len(given)} tensors, and the network has {len(wanted)}")
    names = [name for name, _ in given]
    if names == sorted(names):
        raise StateDictError("its names are sorted, which says nothing of the layers' order")
    norms = {"weight", "bias", "running_mean", "running_var"}
    for (old, value), (new, like) in zip(given, wanted.items(), strict=False):
        if {_kind(old), _kind(new)} <= norms and _kind(old) != _kind(new):
            raise StateDictError(f"{old} stands at the place of {new}")
        if value.shape != like.shape:
            raise StateDictError(
                f"{old} has shape {tuple(value.shape)}, and at its place {new} {tuple(like.shape)}"
            )
    values = [value for _, value in given]
    return {f"body.{key}": value for key, value in zip(wanted, values, strict=False)}


# --- published COMBO checkpoints -----------------------------------------------------------------

_FUSION = "sem_seg_head.fusion_module."
_PREDICTOR = "sem_seg_head.predictor."
_COMBO: Rules = (
    (r"^scale_factor_module\.", "siam_encoder.gates."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.encoder\.", "pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.transformer\.", "pixel_decoder."),
    (r"^sem_seg_head\.pixel_decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.adapter_1\.(?!norm)", "pixel_decoder.lateral.0."),
    (r"^pixel_decoder\.adapter_1\.norm\.", "pixel_decoder.lateral.1."),
    (r"^pixel_decoder\.layer_1\.(?!norm)", "pixel_decoder.joined.0."),
    (r"^pixel_decoder\.layer_1\.norm\.", "pixel_decoder.joined.1."),
    (rf"^{_FUSION}b_attn\.layer_norm_([va])_list\.0\.", r"bilateral_fusion.norm_\1."),
    (rf"^{_FUSION}b_attn\.attn_list\.0\.", "bilateral_fusion.attention."),
    (rf"^{_FUSION}b_attn\.gamma_v_list\.0$", "bilateral_fusion.gamma_v"),
    (rf"^{_FUSION}b_attn\.gamma_a$", "bilateral_fusion.gamma_a"),
    (rf"^{_FUSION}", "bilateral_fusion."),
    (r"^sem_seg_head\.audio_transformation\.embeddings\.", "audio_mlp."),
    (
        rf"^{_PREDICTOR}transformer_self_attention_layers\.(\d+)\.self_attn\.",
        r"mask_decoder.layers.\1.self_attention.",
    ),
    (
        rf"^{_PREDICTOR}transformer_self_attention_layers\.(\d+)\.norm\.",
        r"mask_decoder.layers.\1.self_norm.",
    ),
    (
        rf"^{_PREDICTOR}transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        r"mask_decoder.layers.\1.cross_attention.",
    ),
    (
        rf"^{_PREDICTOR}transformer_cross_attention_layers\.(\d+)\.norm\.",
        r"mask_decoder.layers.\1.cross_norm.",
    ),
    (
        rf"^{_PREDICTOR}transformer_ffn_layers\.(\d+)\.norm\.",
        r"mask_decoder.layers.\1.ffn_norm.",
    ),
    (rf"^{_PREDICTOR}transformer_ffn_layers\.(\d+)\.", r"mask_decoder.layers.\1."),
    (rf"^{_PREDICTOR}static_query\.", "mask_decoder.query_feat."),
    (rf"^{_PREDICTOR}", "mask_decoder."),
)
_ENCODERS = (
    ("backbone.", "siam_encoder.frames.body."),
    ("pre_sam_backbone.", "siam_encoder.maskiges.body."),
)
_SOUND = "audio_backbone."
# The class weights are the criterion's setting, the pixel statistics the network's.
_CONSTANTS = ("criterion.empty_weight", "pixel_mean", "pixel_std")


def combo_key(key: str) -> str | None:
    """Our name of a published COMBO key; None for constants and the sound encoder's keys."""
    if key in _CONSTANTS or key.startswith(_SOUND):
        return None
    for prefix, ours in _ENCODERS:
        if key.startswith(prefix):
            inner = _detectron2_key(key.removeprefix(prefix))
            return None if inner is None else ours + inner
    return _substitute(_COMBO, key)


def is_published(state: State) -> bool:
    """Whether these are keys of a published COMBO checkpoint."""
    return any(key.startswith(("sem_seg_head.", "pre_sam_backbone.")) for key in state)


def settings_of(state: State, settings: ComboSettings) -> ComboSettings:
    """Settings with what a network's state, in our names, says of itself: its classes, the sound's
    width, the longest clip, and which encoders there are."""
    found: dict[str, Any] = {"sem": "separate"}
    if not any(key.startswith("siam_encoder.maskiges.") for key in state):
        gated = any(key.startswith("siam_encoder.gates.") for key in state)
        found["sem"] = "shared" if gated else "off"
    for name, key, axis, beside in (
        ("classes", "mask_decoder.class_embed.weight", 0, 1),
        ("audio_dim", "audio_mlp.0.weight", 1, 0),
        ("max_frames", "bilateral_fusion.audio_pos.weight", 0, 0),
    ):
        if key in state:
            found[name] = state[key].shape[axis] - beside
    return replace(settings, **found)


def fitting(state: State, network: nn.Module) -> dict[str, Tensor]:
    """A state in our names, in the network's order. Raises StateDictError naming what is not."""
    return _fit(dict(state), {key: key for key in state}, network.state_dict())


_CLASSES = f"{_PREDICTOR}class_embed.bias"


def published_preset(state: State) -> tuple[str, dict[str, Any]]:
    """A preset of the same backbone, and what must be set otherwise for a published checkpoint.

    Raises StateDictError when it is none.
    """
    if _CLASSES not in state:
        raise StateDictError(f"missing from the state: {_CLASSES}; this is no COMBO checkpoint")
    classes = state[_CLASSES].shape[0] - 1
    resnet = any(key.startswith("backbone.stem.") for key in state)
    sem = "separate"
    if not any(key.startswith("pre_sam_backbone.") for key in state):
        sem = "shared" if any(key.startswith("scale_factor_module.") for key in state) else "off"
    name = f"combo-{'r50' if resnet else 'pvt'}-{'s4' if classes == 2 else 'avss'}"
    return name, {"classes": classes, "sem": sem}


def published_combo(
    state: State | Mapping[str, State],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A published COMBO checkpoint's state -> (network, vggish).

    state: all keys of the public `.pth`, or that dict's `model` entry. The backbone and the
    number of classes are read from it.
    network: loads strictly into `Combo.from_preset` of the same backbone and classes.
    vggish: names as in `VGGish`, empty when the checkpoint carries no sound encoder.
    Raises StateDictError naming what is unknown, missing or of another shape.
    """
    whole: Mapping[str, Any] = state
    state = cast("State", whole.get("model", whole))
    name, settings = published_preset(state)
    with torch.device("meta"):
        network = Combo(preset(name, **settings))
    renamed, origin = _rename(state, combo_key)
    vggish = {k.removeprefix(_SOUND): v for k, v in state.items() if k.startswith(_SOUND)}
    return _fit(renamed, origin, network.state_dict()), vggish
