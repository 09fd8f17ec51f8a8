"""Maskige generators by name: frames in, label maps out.

A generator is made from the manifest once a process. To add one, write a function that makes it and
name it in GENERATORS, with the weights it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...model.granularity import TOKEN_OF_LEVEL
from ..errors import ComboError
from ..images import Pixels
from ..manifest import FelzenszwalbSettings, MaskigeSettings
from .stage import Place

if TYPE_CHECKING:
    from ...model.point_grid import PointGrid

MOST_MASKS = np.iinfo(np.uint8).max
"""As in `combo.model.maskige`, which a process without a network need not import."""


@dataclass(frozen=True)
class LabelMap:
    """One frame's merged masks. label_map: [H,W] uint8.  left_out: masks beyond the 255th."""

    label_map: Pixels
    masks: int
    left_out: int


Generate = Callable[[Sequence[Pixels]], list[LabelMap]]
"""Frames of a clip, each [H,W,3] uint8 RGB -> one label map a frame."""


@dataclass(frozen=True)
class Generator:
    """settings: which of the manifest's settings count (they are part of the fingerprint).
    weights: the catalogue's name of the weights it needs, or None.
    open: (settings, weights file, threads and device) -> the function.
    """

    settings: Callable[[MaskigeSettings], Mapping[str, Any]]
    weights: str | None
    open: Callable[[MaskigeSettings, Path | None, Place], Generate]


def generator(name: str) -> Generator:
    """The generator of that name. Raises ComboError."""
    if name not in GENERATORS:
        raise ComboError(
            f"no Maskige generator {name!r}; the manifest may name {', '.join(GENERATORS)}"
        )
    return GENERATORS[name]


def _felzenszwalb(settings: MaskigeSettings, weights: Path | None, place: Place) -> Generate:
    from skimage.segmentation import felzenszwalb

    del weights, place
    own: FelzenszwalbSettings = settings.felzenszwalb

    def generate(frames: Sequence[Pixels]) -> list[LabelMap]:
        return [
            merge_segments(
                felzenszwalb(frame, scale=own.scale, sigma=own.sigma, min_size=own.min_size)
            )
            for frame in frames
        ]

    return generate


def merge_segments(segments: np.ndarray) -> LabelMap:
    """The Maskige rule for segments that do not overlap: ranks by area, the smallest first.

    segments: [H,W] integers from 0, each value one segment. Gives what
    `combo.model.maskige.merge` gives for the segments' masks, without making them.
    """
    areas = np.bincount(segments.ravel())
    kept = areas.argsort(kind="stable")[:MOST_MASKS]
    ranks = np.zeros(len(areas), np.uint8)
    ranks[kept] = np.arange(1, len(kept) + 1)
    return LabelMap(ranks[segments], len(areas), len(areas) - len(kept))


IMPORTED = (
    "imported Maskiges are not computed; run: combo import-maskige DIR, "
    "or name another generator with --generator"
)


def _imported(settings: MaskigeSettings, weights: Path | None, place: Place) -> Generate:
    del settings, weights, place
    raise ComboError(IMPORTED)


def _network(name: str, settings: MaskigeSettings, weights: Path, device: str) -> "PointGrid":
    """The mask generator of a network with its weights, on a device."""
    import torch

    from ...model.point_grid import PointGrid
    from ...model.semantic_sam import SemanticSam
    from ..weights import load_state

    precision = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.precision]
    if precision is None:
        # PyTorch's own default rounds convolutions to TF32 on recent GPUs.
        torch.backends.cudnn.allow_tf32 = False
    limit = None if settings.memory_limit is None else int(settings.memory_limit)
    state = load_state(weights)
    try:
        if name.startswith("semantic-sam"):
            network = SemanticSam.from_variant(f"swin-{name[-1]}")
            network.load_published(state)
            own = settings.semantic_sam
            levels: tuple[int, ...] | None = (own.level,)
        else:
            from segment_anything import sam_model_registry

            network = sam_model_registry[name.removeprefix("sam-").replace("-", "_")]()
            network.load_state_dict(state)
            own, levels = settings.sam, None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ComboError(f"{weights} does not fit {name}: {reason}") from error
    if settings.compile:
        _check_compiler(device)
    return PointGrid(
        network.to(device).eval(),
        levels=levels,
        memory_limit=limit,
        autocast=precision,
        compile=settings.compile,
        **own.model_dump(exclude={"level"}),
    )


def _check_compiler(device: str) -> None:
    """Raises ComboError where torch.compile lacks what it needs; before any frame is read."""
    import torch

    try:
        torch.compile(torch.sin)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a compiler's absence looks like on this platform
        reason = " ".join(str(error).split())[:200]
        raise ComboError(
            f"stages.maskige.compile: torch.compile does not work here on {device} ({reason});"
            " it needs a C++ compiler, on GPUs also Triton; or set compile: false"
        ) from error


def _point_grid(name: str) -> Generator:
    def settings_of(settings: MaskigeSettings) -> Mapping[str, Any]:
        arithmetic = {"precision": settings.precision, "compile": settings.compile}
        if not name.startswith("semantic-sam"):
            own = settings.sam
            return {**arithmetic, "long_side": SAM_LONG_SIDE, **own.model_dump(mode="json")}
        own = settings.semantic_sam
        return {
            **arithmetic,
            "padded_to": SEMANTIC_SAM_STRIDE,
            **own.model_dump(mode="json"),
            "internal_level": TOKEN_OF_LEVEL[own.level],
        }

    def open_network(settings: MaskigeSettings, weights: Path | None, place: Place) -> Generate:
        import torch

        if weights is None:
            raise ComboError(f"{name} needs weights; run: combo weights fetch {name}")
        torch.set_num_threads(place.threads)
        grid = _network(name, settings, weights, place.device)

        def generate(frames: Sequence[Pixels]) -> list[LabelMap]:
            stack = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
            return [
                LabelMap(m.label_map.cpu().numpy(), len(m.order) + m.left_out, m.left_out)
                for m in grid.merged(stack)
            ]

        return generate

    return Generator(settings_of, name, open_network)


SAM_LONG_SIDE = 1024
SEMANTIC_SAM_STRIDE = 32
"""What becomes of an image before the network: SAM's is resized so that the longer side has this
many pixels, Semantic-SAM's keeps its size and is padded to multiples of this."""

GENERATORS: Mapping[str, Generator] = {
    "imported": Generator(lambda _: {}, None, _imported),
    "felzenszwalb": Generator(
        lambda settings: settings.felzenszwalb.model_dump(mode="json"), None, _felzenszwalb
    ),
    **{
        name: _point_grid(name)
        for name in ("sam-vit-b", "sam-vit-l", "sam-vit-h", "semantic-sam-t", "semantic-sam-l")
    },
}
