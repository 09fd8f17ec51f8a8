"""Which learning rate and weight decay each parameter has: the public code's rules."""

from typing import Any

from torch import nn

from .backbones import Backbone

_UNDECAYED = (
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
)
_UNDECAYED_NAMES = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")


def parameter_groups(
    net: nn.Module, lr: float, weight_decay: float, backbone_lr_factor: float = 0.1
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, one for each pair of learning rate and weight decay.

    Encoders learn at lr * backbone_lr_factor. Parameters of norms and of `nn.Embedding` (queries,
    levels, sound position) do not decay, nor do position tables of encoders; everything else
    does, biases included. A group has "params", "lr", "weight_decay" and "names".
    """
    in_backbone = {
        id(parameter)
        for module in net.modules()
        if isinstance(module, Backbone)
        for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for module_name, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            rate = lr * backbone_lr_factor if id(parameter) in in_backbone else lr
            undecayed = isinstance(module, _UNDECAYED) or name in _UNDECAYED_NAMES
            decay = 0.0 if undecayed else weight_decay
            group = groups.setdefault(
                (rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []}
            )
            group["params"].append(parameter)
            group["names"].append(f"{module_name}.{name}" if module_name else name)
    return list(groups.values())
