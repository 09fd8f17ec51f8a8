"""The public COMBO's golden numbers: the weights that belong to them, and our network's answer.

tests/data/network/README.md says what lies there and what a comparison may ask for.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from combo.model import Combo, ComboOutput

DATA = Path(__file__).parent.parent / "data" / "network"
SETS = 10
"""Prediction sets: before the first layer of the decoder and after each of its nine."""

Arrays = dict[str, np.ndarray]


def offset_grid() -> Tensor:
    """Eight directions, three levels, four points; a head's point p at distance p + 1."""
    angle = torch.arange(8, dtype=torch.float32) * (2 * math.pi / 8)
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    direction = direction / direction.abs().max(dim=1, keepdim=True).values
    distance = torch.arange(1, 5, dtype=torch.float32)
    return (direction[:, None, None] * distance[:, None]).expand(8, 3, 4, 2).flatten()


def deterministic_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The README's rule: the tensor follows from its published name and shape alone."""
    last = name.rsplit(".", 1)[-1]
    if name == "criterion.empty_weight":
        return torch.tensor([1.0] * (shape[0] - 1) + [0.1])
    if name.endswith("sampling_offsets.bias"):
        return offset_grid()
    seed = zlib.crc32(name.encode())
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)
    if "gamma_v_list" in name or name.endswith("gamma_a"):
        value = np.float32(0.5) + np.float32(0.05) * z
    elif last == "running_var":
        value = np.float32(1) + np.float32(0.05) * np.abs(z)
    elif len(shape) == 1:
        value = np.float32(0.05) * z + np.float32(last == "weight")
    elif name.endswith(("query_feat.weight", "query_embed.weight")):
        value = z
    elif name.endswith(("level_embed.weight", "audio_pos.weight", "level_embed")):
        value = np.float32(0.5) * z
    else:
        n = math.prod(shape[1:])
        d = np.rint(z.astype(np.float64) * 2**20) / 2**20
        if shape[1] > 1:
            d -= d.sum(axis=tuple(range(1, len(shape))), keepdims=True) / n
        gain = 1.0
        if name.endswith("out_v_proj.weight"):
            gain = 64.0
        elif "scale_factor_module" in name:
            gain = 4.0
        elif "audio_backbone" in name:
            gain = 1.5
        value = (d * (gain / math.sqrt(n))).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(value))


def golden_batch(case: str, inputs: Arrays, labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """The batch of a golden case: one clip, or it and its mirror image in reversed order."""
    images, maskige, sound = (
        torch.from_numpy(inputs[name])[None] for name in ("images", "maskige_rgb", "vggish")
    )
    if case == "fully_annotated":
        return [images, maskige, sound], labels[None]
    mirrored = [images.flip(1).flip(-1), maskige.flip(1).flip(-1), sound.flip(1)]
    pairs = zip((images, maskige, sound), mirrored, strict=True)
    return [torch.cat(pair) for pair in pairs], labels[:, None]


def key_side(of_set: int) -> int:
    """Height and width of the map whose keys this prediction set's masks block."""
    return (7, 14, 28)[of_set % 3]


def golden_arrays(net: Combo, inputs: Arrays) -> Arrays:
    """Every array of r50_s4_outputs.npz, as this network makes it of r50_s4_inputs.npz."""
    clip = {name: torch.from_numpy(a)[None] for name, a in inputs.items()}
    seen: dict[str, object] = {}

    def watch(name: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_hook(lambda _m, _i, out: seen.update({name: out})))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    encoder = net.siam_encoder
    watch("image", encoder.frames)
    watch("maskige", encoder.maskiges)
    watch("sem_fused", encoder)
    for number, gate in enumerate(encoder.gates):
        watch(f"sem_scale.res{number + 2}", gate)
    watch("pixels", net.pixel_decoder)
    watch("attention", net.bilateral_fusion.attention)
    watch("bfm", net.bilateral_fusion)
    watch("audio_query", net.audio_mlp)
    with torch.inference_mode():
        out = net(clip["images"], clip["maskige_rgb"], clip["vggish"])
        scores = net.scores(out)
        named = {name: a.numpy() for name, a in _named_arrays(seen, out, scores)}
    for hook in hooks:
        hook.remove()
    return named


def _named_arrays(
    seen: dict[str, object], out: ComboOutput, scores: Tensor
) -> Iterator[tuple[str, Tensor]]:
    for encoder in ("image", "maskige", "sem_fused"):
        for number, feature in enumerate(seen[encoder]):
            yield from _mean_and_crop(f"{encoder}.res{number + 2}", feature)
    for level in range(2, 6):
        yield f"sem_scale.res{level}", seen[f"sem_scale.res{level}"]
    mask_features, maps = seen["pixels"]
    yield from _mean_and_crop("pixel_decoder.mask_features", mask_features)
    for number, level in enumerate(maps):
        yield from _mean_and_crop(f"pixel_decoder.multi_scale.{number}", level)
    to_pixels, to_sound = seen["attention"]
    yield "bfm.attn_out_visual.crop", to_pixels[:, ::64, :32]
    yield "bfm.attn_out_audio", to_sound
    visual, audio = seen["bfm"]
    yield from _mean_and_crop("bfm.visual", visual.transpose(1, 2).unflatten(2, (56, 56)))
    yield "bfm.audio", audio
    yield "audio_query", seen["audio_query"]
    masks = torch.stack([layer.mask_logits[0] for layer in out.layers])
    yield "pred_logits", torch.stack([layer.class_logits[0] for layer in out.layers])
    yield "pred_masks.last", masks[-1]
    yield "pred_masks.last.crop", masks[-1][:, ::10, 20:36, 20:36]
    yield "pred_masks.aux.mean", masks[:-1].mean(dim=(3, 4))
    yield "pred_masks.aux.crop", masks[:-1, :, ::10, 20:36, 20:36]
    yield "sem_seg", scores[0]
    yield "sem_seg.crop", scores[0, :, :, ::8, ::8]
    for number, of_layer in enumerate(masks):
        size = key_side(number)
        resized = nn.functional.interpolate(of_layer, size=(size, size), mode="bilinear")
        packed = np.packbits(resized.flatten(2).numpy() < 0, axis=-1)
        yield f"attn_mask_blocked_packed.{number}", torch.from_numpy(packed)


def _mean_and_crop(name: str, feature: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.mean", feature.mean(dim=(2, 3))
    start = max((feature.shape[2] - 8) // 2, 0)
    yield f"{name}.crop", feature[:, :16, start : start + 8, start : start + 8]
