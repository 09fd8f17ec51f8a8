"""Which entry of a published Semantic-SAM checkpoint belongs to which tensor of the network.

The network's own names are the published ones, so what is left is the prefix, the names under
which shared modules are stored again, and a loud error where the published loader would silently
keep an initial value.
"""

import re
from collections.abc import Mapping
from typing import cast

from torch import Tensor

PREFIX = "model."

_SHARED = (
    (re.compile(r"\.predictor\.decoder\.norm\."), ".predictor.decoder_norm."),
    (
        re.compile(r"\.predictor\.(decoder\.bbox_embed\.\d+|bbox_embed\.\d+|_bbox_embed)\."),
        ".predictor.decoder.bbox_embed.0.",
    ),
)


def matching_entries(
    wanted: Mapping[str, Tensor], published: Mapping[str, object]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Entries of a checkpoint for every tensor of a network.

    wanted: the network's state dictionary.
    published: a checkpoint's state dictionary, or a dictionary that holds it under "model". Where
    any name starts with `model.`, only such names count, without the prefix.

    Returns the entries under the network's names, and the published names that found no place.
    Raises ValueError naming all tensors that are missing or of another shape, and the tensors
    that are stored under several names with different values.
    """
    inner = published.get("model")
    if isinstance(inner, Mapping):
        published = cast("Mapping[str, object]", inner)
    if any(name.startswith(PREFIX) for name in published):
        published = {
            name.removeprefix(PREFIX): value
            for name, value in published.items()
            if name.startswith(PREFIX)
        }
    entries: dict[str, Tensor] = {}
    left_out: list[str] = []
    faults: list[str] = []
    for name, value in published.items():
        ours = _own_name(name)
        if ours not in wanted or not isinstance(value, Tensor):
            left_out.append(name)
        elif value.shape != wanted[ours].shape:
            shapes = f"{list(value.shape)}, not {list(wanted[ours].shape)}"
            faults.append(f"{name} is {shapes}")
            entries[ours] = value
        elif ours not in entries:
            entries[ours] = value
        elif entries[ours].shape == value.shape and not bool((entries[ours] == value).all()):
            faults.append(f"{name} differs from {ours}, which it shares")
    faults.extend(f"{name} is missing" for name in wanted if name not in entries)
    if faults:
        raise ValueError("the checkpoint does not fit: " + "; ".join(faults))
    return entries, tuple(left_out)


def _own_name(name: str) -> str:
    for pattern, own in _SHARED:
        name = pattern.sub(own, name)
    return name
