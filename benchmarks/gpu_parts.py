"""What `gpu.py` measures: one function a part, which yields rows of a table."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from combo.model import Combo, Criterion, parameter_groups, preset
from combo.model.deformable_attention import sample_levels
from combo.model.interface import label_values
from combo.model.levels import Levels
from combo.model.vggish import VGGish
from combo.pipeline.devices import float32_products
from combo.pipeline.train.evaluate import AT_ONCE
from combo.pipeline.train.pace import PEAK

HOME = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is measured with: on a GPU what users train, on a CPU what shows that this runs."""

    device: torch.device
    batch: int
    frames: int
    pixels: int
    repeats: int
    backbones: tuple[str, ...]

    @property
    def small(self) -> bool:
        return self.device.type == "cpu"


def size_of(device: str) -> Size:
    where = torch.device(device)
    if where.type == "cpu":
        return Size(where, 1, 2, 64, 2, ("r50",))
    return Size(where, 8, 5, 224, 10, ("r50", "pvt"))


def timed(once: Callable[[], object], size: Size, warm: int = 3) -> tuple[float, Row]:
    """Median seconds; of a GPU also the peak of memory beyond what was taken before."""
    cuda = size.device.type == "cuda"
    for _ in range(1 if size.small else warm):
        once()
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds: list[float] = []
    for _ in range(size.repeats):
        started = time.perf_counter()
        once()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = {"MiB": (torch.cuda.max_memory_allocated() - before) / 2**20} if cuda else {}
    return statistics.median(seconds), peak


def kernels(once: Callable[[], object], size: Size) -> Row:
    """Of one call on a GPU: the time of its kernels, how many they are, and which take longest.

    Less than the time by the clock is what the GPU waits for the host that launches them.
    """
    if size.small:
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        once()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            times[event.name] += event.device_time_total / 1e3
            launches[event.name] += 1
    longest = (f"{ms:8.2f} ms {launches[name]:5} x {name:.90}" for name, ms in times.most_common(5))
    return {
        "kernels ms": times.total(),
        "launches": launches.total(),
        "printed": "\n".join(longest),
    }


def peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK.items() if part in name), None)


def a_step(
    size: Size,
    name: str,
    precision: str,
    *,
    frames: int = 0,
    compiled: bool = False,
    layout: torch.memory_format = Combo.memory_format,
    checkpointing: str = "none",
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward alone, and a training step, of a batch of S4 or of AVSS."""
    torch.manual_seed(0)
    frames = frames or size.frames
    settings = preset(name, image_size=size.pixels)
    net = Combo(settings).to(size.device).train()
    net.memory_format = layout
    if checkpointing != "none":
        net.recompute(everything=checkpointing == "all")
    criterion = Criterion(settings)
    if compiled:
        net.compile_parts()
    optimiser = torch.optim.AdamW(parameter_groups(net, 1e-4, 0.05), fused=True)
    shape = (size.batch, frames, 3, size.pixels, size.pixels)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, device=size.device)
    sound = torch.randn(size.batch, frames, 128, device=size.device)
    labels = torch.zeros(size.batch, frames, *shape[3:], dtype=torch.uint8)
    labels[..., size.pixels // 4 : size.pixels // 2, size.pixels // 3 :] = 1
    values, labels = label_values(labels), labels.to(size.device)
    annotated = torch.zeros(size.batch, frames, dtype=torch.bool)
    annotated[:, : 1 if settings.classes == 2 else frames] = True
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def cast() -> torch.autocast:
        return torch.autocast(size.device.type, dtype=dtype, enabled=dtype is not None)

    def forward() -> None:
        with torch.no_grad(), cast():
            net(pictures, pictures, sound)

    def step() -> None:
        with cast():
            out = net(pictures, pictures, sound)
        criterion(out, labels, annotated=annotated, values=values).total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return forward, step


def steps(size: Size) -> Iterator[Row]:
    """Forward and training step of S4, by backbone and precision."""
    for backbone in size.backbones:
        for precision in ("fp32", "bf16")[: 1 if size.small else None]:
            yield from _forward_and_step(size, backbone, precision)


def _forward_and_step(
    size: Size, backbone: str, precision: str, compiled: bool = False
) -> Iterator[Row]:
    both = a_step(size, f"combo-{backbone}-s4", precision, compiled=compiled)
    with FlopCounterMode(display=False) as counter:
        both[1]()
    flops = counter.get_total_flops()
    for part, once in zip(("forward", "step"), both, strict=True):
        seconds, memory = timed(once, size)
        row: Row = {
            "what": f"{backbone} {part}, {precision}{' compiled' if compiled else ''}",
            "ms": seconds * 1e3,
            "clips/s": size.batch / seconds,
            **memory,
        }
        peak = peak_flops(size.device)
        if part == "step" and peak and not compiled:
            row["MFU %"] = 100 * flops / seconds / peak
        yield {**row, **kernels(once, size)}


def layout(size: Size) -> Iterator[Row]:
    """A step of S4 with a pixel's channels side by side, as they are, and plane after plane."""
    ways = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
    for backbone in size.backbones:
        for precision in ("fp32", "bf16")[: 1 if size.small else None]:
            steps = {
                name: a_step(size, f"combo-{backbone}-s4", precision, layout=way)[1]
                for name, way in ways.items()
            }
            rounds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(1 if size.small else 3):  # in turn: the host is not always as fast
                for name, step in steps.items():
                    rounds[name].append(timed(step, size)[0])
            for name, step in steps.items():
                what = f"{backbone} step, {precision}, {name}"
                yield {"what": what, "ms": min(rounds[name]) * 1e3, **kernels(step, size)}


def avss(size: Size) -> Iterator[Row]:
    """Ten frames, 71 classes, all annotated: speed and memory by setting."""
    for precision in ("bf16", "fp16", "fp32") if not size.small else ("fp32",):
        yield _avss_step(size, precision)
    for checkpointing in ("encoder", "all"):
        precision = "fp32" if size.small else "bf16"
        yield _avss_step(
            size, precision, f"checkpointing={checkpointing}", checkpointing=checkpointing
        )


def _avss_step(size: Size, precision: str, setting: str = "", **settings: Any) -> Row:
    frames = size.frames if size.small else 10
    _, step = a_step(size, "combo-r50-avss", precision, frames=frames, **settings)
    seconds, memory = timed(step, size)
    row: Row = {
        "what": f"R50 AVSS step, {precision} {setting}".rstrip(),
        "ms": seconds * 1e3,
        "clips/s": size.batch / seconds,
        **memory,
    }
    return {**row, **kernels(step, size)}


def compiled(size: Size) -> Iterator[Row]:
    """The bf16 steps of R50 again, with parts made by torch.compile."""
    if size.small:
        yield {"what": "compiled parts: on a GPU only"}
        return
    yield _avss_step(size, "bf16", "compiled", compiled=True)
    yield from _forward_and_step(size, "r50", "bf16", compiled=True)


def compiled_pvt(size: Size) -> Iterator[Row]:
    """The same of PVT, which takes minutes to compile."""
    if size.small:
        yield {"what": "compiled parts of PVT: on a GPU only"}
        return
    yield first_step(size, "combo-pvt-s4")
    yield from _forward_and_step(size, "pvt", "bf16", compiled=True)


def compiling(size: Size) -> Iterator[Row]:
    """What is timed in `compiled`, each in a process, all at once: until its first step is over."""
    if size.small:
        yield {"what": "compiling: on a GPU only"}
        return
    command = [sys.executable, HOME / "benchmarks" / "gpu.py", "--device", str(size.device)]
    running = [
        subprocess.Popen([*command, "--first-step", name], stdout=subprocess.PIPE)
        for name in ("combo-r50-avss", "combo-r50-s4")
    ]
    for each in running:
        printed, _ = each.communicate()
        if each.returncode:
            raise subprocess.CalledProcessError(each.returncode, each.args)
        yield json.loads(printed)


def first_step(size: Size, name: str) -> Row:
    started = time.perf_counter()
    forward, step = a_step(
        size, name, "bf16", frames=10 if name.endswith("avss") else 0, compiled=True
    )
    step()
    torch.cuda.synchronize()
    row = {
        "what": f"{name}, compiling",
        "ms": (time.perf_counter() - started) * 1e3,
    }
    forward()
    return row


def by_grid_sample(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """As `sample_levels`: one `grid_sample` a level."""
    batch, queries, heads = locations.shape[:3]
    total, first = 0, 0
    for level, (h, w) in enumerate(levels.shapes):
        maps = value[:, first : first + h * w].permute(0, 2, 3, 1).reshape(batch * heads, -1, h, w)
        first += h * w
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(maps, grid, align_corners=False)
        total = total + (
            sampled * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        ).sum(3)
    assert isinstance(total, Tensor)
    return total.reshape(batch, -1, queries).transpose(1, 2)


def kernel(size: Size) -> Iterator[Row]:
    """The sampling of six encoder layers, forward and backward: of a clip of AVSS, of a batch."""
    coarse = size.pixels // 32
    shapes = [(coarse, coarse), (2 * coarse, 2 * coarse), (4 * coarse, 4 * coarse)]
    levels = Levels.of(shapes, 8, 4, size.device)

    def plain(*given: Any) -> Tensor:
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return sample_levels(*given)
        finally:
            torch.use_deterministic_algorithms(False)

    ways = {"plain PyTorch": plain, "grid_sample": by_grid_sample}
    if size.device.type == "cuda":
        ways = {"Triton": sample_levels, **ways}
    for frames in (2 * size.frames, size.batch * size.frames):
        torch.manual_seed(0)
        grid = (frames, levels.pixels, 8, 3, 4)
        value = torch.randn(frames, levels.pixels, 8, 32, device=size.device, requires_grad=True)
        locations = torch.rand(*grid, 2, device=size.device, requires_grad=True)
        weights = torch.rand(grid, device=size.device).flatten(3).softmax(-1).view(grid)
        given = (value, locations, weights.detach().requires_grad_())
        gradient = torch.randn(frames, levels.pixels, 256, device=size.device)
        for name, way in ways.items():

            def once(
                way: Callable[..., Tensor] = way,
                given: tuple[Tensor, ...] = given,
                gradient: Tensor = gradient,
            ) -> None:
                for _ in range(6):
                    out = way(given[0], levels, *given[1:])
                    torch.autograd.grad(out, given, gradient)

            seconds, memory = timed(once, size)
            yield {"what": f"sampling x 6, {frames} frames, {name}", "ms": seconds * 1e3, **memory}


def evaluation(size: Size) -> Iterator[Row]:
    """Forward and full-size scores, a clip at a time and several at once."""
    for name, frames in (("combo-r50-s4", size.frames), ("combo-r50-avss", 2 * size.frames)):
        net = Combo(preset(name, image_size=size.pixels)).to(size.device).eval()
        for clips in (1, AT_ONCE["cuda"]):
            shape = (clips, frames, 3, size.pixels, size.pixels)
            pictures = torch.randint(0, 256, shape, dtype=torch.uint8, device=size.device)
            sound = torch.randn(clips, frames, 128, device=size.device)

            @torch.inference_mode()
            @float32_products()
            def once(net: Combo = net, pictures: Tensor = pictures, sound: Tensor = sound) -> None:
                for _ in net.clip_scores(pictures, pictures, sound):
                    pass

            seconds, memory = timed(once, size)
            yield {
                "what": f"evaluation, {name}, {clips} at once",
                "ms": seconds * 1e3,
                "clips/s": clips / seconds,
                **memory,
            }


def sound(size: Size) -> Iterator[Row]:
    """VGGish on one-second patches."""
    net, patches = VGGish().eval().to(size.device), 2 if size.small else 256
    given = torch.randn(patches, 1, 96, 64, device=size.device)
    with torch.inference_mode(), float32_products():
        seconds, memory = timed(lambda: net(given), size)
    yield {"what": "VGGish", "ms": seconds * 1e3, "patches/s": patches / seconds, **memory}


MANIFEST = """\
store: store
data_sets:
  s4: {{layout: avsbench-s4, root: sample/AVSBench_object/Single-source}}
stages:
  frames: {{size: {size}}}
  audio: {{encoder: mel-stats}}
  maskige: {{generator: felzenszwalb, at: stored}}
"""


def cache(size: Size) -> Iterator[Row]:
    """`combo train` itself, with each `cache`: clips/s and the share of time waited for data."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def combo(*words: object) -> None:
            command = [sys.executable, "-m", "combo", *map(str, words)]
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)

        combo("sample", "sample", "-q")
        (root / "data_manifest.yaml").write_text(MANIFEST.format(size=size.pixels))
        combo("preprocess", "all", "-q", "--split", "train", "--workers", os.cpu_count())
        preset_name = "combo-small-s4" if size.small else "combo-r50-s4"
        for place in ("device", "host", "none"):
            iterations = 4 if size.small else 60
            changes = {
                "initialisation": "random",
                "iterations": iterations,
                "log_every": iterations // 2,
                "evaluate_every": 10**6,
                "batch_size": size.batch,
                "cache": place,
                "device": size.device,
                "precision": "fp32" if size.small else "bf16",
            }
            words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
            combo("train", "-q", "--preset", preset_name, "--out", place, *words)
            lines = (root / place / "metrics.jsonl").read_text().splitlines()
            last = [entry for line in lines if "clips_per_second" in (entry := json.loads(line))][
                -1
            ]
            yield {
                "what": f"combo train {preset_name}, cache={place}",
                "clips/s": last["clips_per_second"],
                "waited %": 100 * last["waited"],
                **({"MFU %": 100 * last["mfu"]} if "mfu" in last else {}),
            }


def masks(size: Size) -> Iterator[Row]:
    """SAM and Semantic-SAM, images a second, beside the package where it can be had."""
    small = ["--size", "224", "--points-per-side", "4", "--images", "1"]
    for name, words in (
        ("SAM ViT-B", []),
        ("Semantic-SAM Swin-T", ["--semantic", "swin-t"]),
    ):
        command = [sys.executable, HOME / "benchmarks" / "mask_generation.py", *words]
        command += small if size.small else ["--device", "cuda"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        yield {"what": name, "printed": done.stdout}


def tests(size: Size) -> Iterator[Row]:
    """The tests that need a GPU; without one they are skipped, each with its reason."""
    workers = "0" if size.small else "4"
    chosen = ["tests/train/test_gpu.py", "-q", "-p", "no:cacheprovider", "-rs", "-n", workers]
    chosen += ["--durations", "5", "--show-capture", "no"]  # a compiler's log has 2,000 lines
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=False,
    )
    yield {"what": "tests", "printed": done.stdout, "passed": done.returncode == 0}


PARTS: dict[str, Callable[[Size], Iterator[Row]]] = {
    part.__name__: part
    for part in (
        tests, compiling, kernel, avss, steps, cache, evaluation, sound, compiled, masks, layout,
        compiled_pvt,
    )
}  # fmt: skip
SIDE_BY_SIDE = ("tests", "compiling")
"""Parts of which no time is compared with another's, which run at once."""
BY_NAME_ONLY = ("layout", "compiled_pvt")
"""Parts that nine minutes have no room for."""
