"""Automatic masks: seconds an image and peak memory, ours beside segment-anything's generator.

Both run in this one call, each in a fresh process, with the same seeded random weights, images and
settings; the masks are compared. Encode is the image encoder with what prepares its input, decode
everything from points to low-resolution logits, masks all the rest;
"after it" is everything after encoding.

Random weights are moved so that the filters keep a part, as with trained ones: about half of the
predicted IoUs pass. Their masks are rougher than a trained network's, which makes run-length
coding (the package's; we have none) slow, so its share is shown apart and a second ratio leaves
it out. Semantic-SAM (level 3, default settings) has nothing beside it, as its public code cannot be
installed from wheels.

    python benchmarks/mask_generation.py                          # ViT-B, 32 x 32 points, minutes
    python benchmarks/mask_generation.py --points-per-side 8 --size 224 --images 1
    python benchmarks/mask_generation.py --files photo.jpg another.png
    python benchmarks/mask_generation.py --semantic swin-t        # Semantic-SAM, ours alone
    python benchmarks/mask_generation.py --device cuda --autocast bf16
"""

import argparse
import multiprocessing
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from combo.model.mask_settings import GridSettings, SemanticSamSettings
from combo.model.point_grid import PointGrid
from combo.model.point_prompts import DecodedPoints, EncodedImage, PointPromptable
from combo.model.semantic_sam import VARIANTS, SemanticSam

BACKGROUNDS = Path(__file__).parents[2] / "shared" / "real" / "backgrounds"
T = TypeVar("T")
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Job:
    """What both sides are asked to do."""

    model: str
    points_per_side: int
    size: int | None
    files: tuple[Path, ...]
    device: str
    autocast: str
    threads: int
    compile: bool = False
    iou_head: tuple[Tensor, Tensor] | None = None
    """Weight and bias of the last layer that predicts IoUs; of a random start if None."""


@dataclass
class Cost:
    """Seconds by phase, summed over images, and the masks; peaks in MiB above the idle process."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    cpu_seconds: dict[str, float] = field(default_factory=dict[str, float])
    peak: float = 0.0
    peak_after_encoder: float = 0.0
    masks: list[tuple[tuple[int, ...], bytes]] = field(default_factory=list[Any])

    def reset(self) -> None:
        """Forget the seconds and the memory of a first round: a network is compiled in it, a GPU
        made ready."""
        self.seconds.clear()
        self.cpu_seconds.clear()
        self.peak = 0.0

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        start, cpu = now(device), time.process_time()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now(device) - start
        self.cpu_seconds[phase] = self.cpu_seconds.get(phase, 0.0) + time.process_time() - cpu


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Memory:
    """Peak memory since the last reset; of the process, or of the GPU where one is used."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.idle = 0.0
        self.reset()
        self.idle = self.peak()

    def reset(self) -> None:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        if self.gpu:
            return torch.cuda.max_memory_allocated() / 2**20 - self.idle
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024 - self.idle


def pictures(job: Job) -> list[Tensor]:
    """[3, H, W] uint8: the photographs of the job, soft noise where it has none."""
    opened = [Image.open(file).convert("RGB") for file in job.files]
    if not opened:
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        opened = [Image.fromarray(noise).resize((1024, 768))]
    if job.size:
        opened = [image.resize((job.size, job.size)) for image in opened]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in opened]


def one_of_each_size(images: Sequence[Tensor]) -> list[Tensor]:
    return [*{image.shape: image for image in images}.values()]


def seeded_sam(job: Job) -> Any:
    """The package's network with random weights whose mask logits scatter by hundreds."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    sam = sam_model_registry[job.model]().to(job.device)
    decoder: Any = sam.mask_decoder
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        # One channel of the upscaled embedding becomes a constant that lowers all logits, so that
        # masks are blobs with boxes of their own.
        decoder.output_upscaling[3].bias[0] += 3
        for network in decoder.output_hypernetworks_mlps:
            network.layers[2].weight.mul_(3000)
            network.layers[2].weight[0] = 0
            network.layers[2].bias[0] = -150
        if job.iou_head is not None:
            head = decoder.iou_prediction_head.layers[2]
            head.weight.copy_(job.iou_head[0])
            head.bias.copy_(job.iou_head[1])
    return sam


def scattered_iou_head(job: Job) -> tuple[Tensor, Tensor]:
    """An `iou_head` for which predicted IoUs scatter around the threshold of 0.88."""
    from segment_anything import SamPredictor

    sam = seeded_sam(job)
    predictor = SamPredictor(sam)
    predictor.set_image(pictures(job)[0].permute(1, 2, 0).numpy())
    somewhere = torch.rand(32, 1, 2, device=job.device) * sam.image_encoder.img_size
    _, ious, _ = predictor.predict_torch(somewhere, torch.ones(32, 1, device=job.device))
    decoder: Any = sam.mask_decoder
    head = decoder.iou_prediction_head.layers[2]
    with torch.no_grad():
        larger = 0.1 / ious.std(dim=0)
        head.bias[1:] = 0.88 + larger * (head.bias[1:] - ious.mean(dim=0))
        head.weight[1:] *= larger[:, None]
    return head.weight.detach().cpu(), head.bias.detach().cpu()


CORRECTIONS = (
    (r"decoder\.bbox_embed\.0\.layers\.2\.weight$", 0.1, 0.0),
    (r"mask_tokens\.weight$", 8, 0.0),
    (r"decoder\.layers\.\d+\.cross_attn\.value_proj\.weight$", 1.25, 0.0),
    (r"decoder\.layers\.\d+\.(linear2|self_attn\.out_proj)\.weight$", 0.25, 0.0),
    (r"pixel_decoder\.layer_1\.norm\.bias$", 1, -2.0),
    (r"pixel_decoder\.mask_features\.bias$", 10, 0.0),
    (r"predictor\.mask_embed\.layers\.2\.weight$", 64, 0.0),
    (r"iou_prediction_head\.layers\.2\.bias$", 1, 0.8),
)
"""Times and plus for random weights, so that the default filters keep a part of the masks."""


def seeded_semantic_sam(variant: str) -> SemanticSam:
    """Semantic-SAM with random numbers that follow from each tensor's name and shape."""
    net = SemanticSam.from_variant(variant)
    for name, tensor in net.state_dict().items():
        if name.endswith("sampling_offsets.bias"):
            continue
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        value = torch.from_numpy(generator.standard_normal(tensor.shape).astype(np.float32))
        if name.endswith("relative_position_bias_table"):
            value *= 0.05
        elif re.search(r"(level_embed|mask_tokens\.\w+|pb_embedding\.\w+|label_enc\.\w+)$", name):
            value *= 0.5
        elif tensor.ndim == 1:
            value = 0.05 * value + name.endswith("weight")
        else:
            value /= tensor[0].numel() ** 0.5
        for pattern, times, plus in CORRECTIONS:
            if re.search(pattern, name):
                value = times * value + plus
        tensor.copy_(value)
    return net


class Timed:
    """A network for `PointGrid` whose phases are timed."""

    def __init__(self, net: PointPromptable, cost: Cost, memory: Memory) -> None:
        self.net, self.cost, self.memory = net, cost, memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def encode(self, images: Tensor) -> Sequence["TimedImage"]:
        with self.cost.timed("encode", self.net.device):
            encoded = self.net.encode(images)
        self.cost.peak = max(self.cost.peak, self.memory.peak())
        self.memory.reset()
        return [TimedImage(image, self) for image in encoded]


class TimedImage:
    def __init__(self, image: EncodedImage, net: Timed) -> None:
        self.image, self.net = image, net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image, name)

    def decode(self, points: Tensor, levels: Sequence[int]) -> "TimedPoints":
        with self.net.cost.timed("decode", points.device):
            return TimedPoints(self.image.decode(points, levels), self.net)


class TimedPoints:
    def __init__(self, points: DecodedPoints, net: Timed) -> None:
        self.points, self.net = points, net
        self.ious = points.ious

    def logits(self, chosen: Tensor) -> Tensor:
        with self.net.cost.timed("decode", chosen.device):
            return self.points.logits(chosen)


def kept(masks: Sequence[NDArray[np.bool_]], cost: Cost) -> None:
    cost.masks += [(mask.shape, np.packbits(mask).tobytes()) for mask in masks]


def ours(job: Job) -> Cost:
    """Our generator on SAM or Semantic-SAM."""
    images = pictures(job)
    if job.model in VARIANTS:
        net: Any = seeded_semantic_sam(job.model).to(job.device)
        settings, levels = SemanticSamSettings(points_per_side=job.points_per_side), (3,)
    else:
        from combo.model.sam_points import SamPoints

        net = SamPoints(seeded_sam(job))
        settings, levels = GridSettings(points_per_side=job.points_per_side), ()
    cost = Cost()
    device = torch.device(job.device)
    memory = Memory(device)
    timed: Any = Timed(net, cost, memory)
    grid = PointGrid(
        timed,
        settings,
        levels=levels,
        autocast=AUTOCAST[job.autocast],
        compile=job.compile,
    )
    if job.compile or device.type == "cuda":
        for image in one_of_each_size(images):
            list(grid.found(image[None]))
        cost.reset()
    for image in images:
        with cost.timed("total", device):
            (found,) = grid.found(image[None])
            masks = found.masks.cpu().numpy()
        cost.peak_after_encoder = max(cost.peak_after_encoder, memory.peak())
        kept(list(masks), cost)
    return cost


def theirs(job: Job) -> Cost:
    """segment-anything's generator, its functions timed from outside."""
    from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator

    images = pictures(job)
    sam = seeded_sam(job)
    cost = Cost()
    device = torch.device(job.device)
    memory = Memory(device)
    generator = SamAutomaticMaskGenerator(sam, points_per_side=job.points_per_side)

    def timing(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def called(*args: Any, **named: Any) -> Any:
            with cost.timed(phase, device):
                return function(*args, **named)

        return called

    set_image = timing(generator.predictor.set_image, "encode")

    def encode(image: NDArray[np.uint8]) -> None:
        set_image(image)
        cost.peak = max(cost.peak, memory.peak())
        memory.reset()

    generator.predictor.set_image = encode
    sam.mask_decoder.forward = timing(sam.mask_decoder.forward, "decode")
    codes: Any = automatic_mask_generator
    for name in ("mask_to_rle_pytorch", "rle_to_mask", "area_from_rle"):
        setattr(codes, name, timing(getattr(codes, name), "run lengths"))
    if device.type == "cuda":
        for image in one_of_each_size(images):
            generator.generate(image.permute(1, 2, 0).numpy())
        cost.reset()
    for image in images:
        with cost.timed("total", device):
            records = generator.generate(image.permute(1, 2, 0).numpy())
        cost.peak_after_encoder = max(cost.peak_after_encoder, memory.peak())
        kept([record["segmentation"] for record in records], cost)
    return cost


def in_a_fresh_process(side: Callable[[Job], T], job: Job) -> T:
    # Threads are set before torch starts in there.
    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(side, (job,))


def phases(seconds: dict[str, float], images: int) -> list[float]:
    """encode, decode, masks, everything after encoding, total: seconds an image."""
    total, encode = seconds["total"] / images, seconds["encode"] / images
    decode = seconds["decode"] / images
    return [encode, decode, total - encode - decode, total - encode, total]


def row(name: str, values: Sequence[float], peaks: Sequence[float] = ()) -> None:
    print(f"{name:22}" + "".join(f"{value:10.2f}" for value in values), end="")
    print("".join(f"{peak:11.0f}" for peak in peaks))


def rows(name: str, cost: Cost, job: Job, images: int) -> tuple[list[float], list[float]]:
    """Prints and returns seconds by phase, by the clock and on the cores."""
    clock, cores = phases(cost.seconds, images), phases(cost.cpu_seconds, images)
    peaks = (max(cost.peak, cost.peak_after_encoder), cost.peak_after_encoder)
    row(name, clock, peaks)
    if job.device == "cpu":
        # What other programs do to the clock they hardly do to the time on the cores.
        row("  of the cores", cores)
    return clock, cores


def report(job: Job) -> None:
    images = [f"{image.shape[2]}x{image.shape[1]}" for image in pictures(job)]
    print(f"{job.model}, {job.points_per_side} x {job.points_per_side} points, ", end="")
    print(f"{job.threads} threads on {job.device}, autocast {job.autocast}: {', '.join(images)}")
    heads = ("encode s", "decode s", "masks s", "after it", "total s", "peak MiB", "after it")
    print(" " * 22 + "".join(f"{head:>10}" for head in heads[:5]), end="")
    print("".join(f"{head:>11}" for head in heads[5:]))
    if job.model not in VARIANTS:
        job = replace(job, iou_head=in_a_fresh_process(scattered_iou_head, job))
    mine = in_a_fresh_process(ours, job)
    fast = rows("combo", mine, job, len(images))
    if job.model in VARIANTS:
        print(f"{len(mine.masks)} masks; {1 / fast[0][-1]:.3f} images/s")
        return
    other = in_a_fresh_process(theirs, job)
    slow = rows("segment-anything", other, job, len(images))
    row("times faster", [b / a for a, b in zip(fast[0], slow[0], strict=True)])
    if job.device == "cpu":
        row("  of the cores", [b / a for a, b in zip(fast[1], slow[1], strict=True)])
    codes = other.seconds.get("run lengths", 0.0) / len(images)
    print(f"run-length codes take {codes:.2f} s of the package's masks; ", end="")
    without = (slow[0][3] - codes) / fast[0][3]
    print(f"without them we are {without:.2f} times faster after the encoder")
    print(compared(mine, other))


def compared(mine: Cost, other: Cost) -> str:
    if len(mine.masks) != len(other.masks):
        return f"masks DIFFER: {len(mine.masks)} and {len(other.masks)}"
    differing = [
        int(np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())
        for (_, a), (_, b) in zip(mine.masks, other.masks, strict=True)
    ]
    same = sum(pixels == 0 for pixels in differing)
    return f"{len(differing)} masks, {same} equal bit by bit, at most {max(differing)} pixels apart"


def main() -> None:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--semantic", choices=list(VARIANTS), help="Semantic-SAM instead of SAM")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--size", type=int, help="resize images to this square; default: native")
    parser.add_argument("--images", type=int, default=2, help="how many of the photographs")
    parser.add_argument("--files", type=Path, nargs="+", help="your own images instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", default="no", choices=list(AUTOCAST))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile, timed once it is done"
    )
    chosen = parser.parse_args()
    report(
        Job(
            model=chosen.semantic or chosen.model,
            points_per_side=chosen.points_per_side,
            size=chosen.size,
            files=tuple(chosen.files or sorted(BACKGROUNDS.glob("*.jpg"))[: chosen.images]),
            device=chosen.device,
            autocast=chosen.autocast,
            threads=chosen.threads,
            compile=chosen.compile,
        )
    )


if __name__ == "__main__":
    main()
