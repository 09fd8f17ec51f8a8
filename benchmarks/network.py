"""Time and memory of the network: one 5-frame clip, forward, and forward + loss + step.

    python benchmarks/network.py                 # ResNet-50, 2 threads, beside the public code
    python benchmarks/network.py --backbone pvt
    python benchmarks/network.py --backbone swin_base_patch4_window12_384 --size 384 --repeats 1
    python benchmarks/network.py --device cuda --batch 8 --precision bf16 --compile
    python benchmarks/network.py --batch 8 --size 64 --count    # operators of a step

Each row is measured in a process of its own, so that its peak memory is its own. The public
implementation's numbers (golden README: 2-core CPU, 2 threads, float32) have the sound encoder
inside; here its embeddings are given, so a row with it is printed too. Random weights: they cost
what trained ones cost. A step is one as `combo train` does it, freed memory kept.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from combo.model import Combo, ComboSettings, Criterion, parameter_groups, preset
from combo.model.deformable_attention import sample_levels
from combo.model.levels import Levels
from combo.model.vggish import VGGish
from combo.pipeline.devices import keep_freed_memory

PUBLIC = {"forward": (2.3, 2.5), "step": (6.3, 5.2)}
"""Seconds and GB of the public ResNet-50 on S4."""
GOAL = {"forward": (0.6, 0.7), "step": (0.6, 0.7)}
GIGABYTE = 1e9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--backbone", default="r50", help="r50, pvt, or a network of timm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1, help="clips")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--count", action="store_true", help="operators of a step, no times")
    parser.add_argument("--only", choices=("forward", "step"), help=argparse.SUPPRESS)
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> ComboSettings:
    """The S4 preset, with another encoder if its name is one of timm's."""
    if options.backbone in ("r50", "pvt"):
        return preset(f"combo-{options.backbone}-s4", image_size=options.size)
    return preset("combo-r50-s4", backbone=options.backbone, image_size=options.size)


def prepare(options: argparse.Namespace, part: str) -> Callable[[], None]:
    """One measurement of `part` as a function."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    settings = settings_of(options)
    net = Combo(settings).to(device)
    if options.channels_last:
        net = net.to(memory_format=torch.channels_last)
    run = torch.compile(net) if options.compile else net
    shape = (options.batch, options.frames, 3, options.size, options.size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    sound = torch.randn(options.batch, options.frames, 128, device=device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    cast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    if part == "forward":
        net.eval()

        @torch.inference_mode()
        def forward() -> None:
            with cast:
                out = run(frames, frames, sound, apart=True)
            net.scores(out)

        return forward

    if device.type == "cpu":
        keep_freed_memory()
    net.train()
    criterion = Criterion(settings)
    optimiser = torch.optim.AdamW(parameter_groups(net, 1e-4, 0.05), fused=True)
    labels = torch.zeros(options.batch, 1, *shape[3:], dtype=torch.uint8)  # S4: of the first frame
    labels[..., options.size // 4 : options.size // 2, options.size // 3 :] = 1

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with cast:
            losses = criterion(run(frames, frames, sound), labels)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        optimiser.step()

    return step


class Operators(TorchDispatchMode):
    """Counts the operators that touch data: no views, nothing that only makes room."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        room = name.startswith(("empty", "new_empty")) or name == "_unsafe_view"
        if func.namespace != "prim" and not func.is_view and not room:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count(options: argparse.Namespace) -> None:
    """Prints the operators of a step; their number depends neither on the size nor on threads."""
    torch.manual_seed(0)
    once = prepare(options, "step")
    once()
    with Operators() as operators:
        once()
    settings = settings_of(options)
    layers, total = settings.pixel_layers, operators.counts.total()
    sampled = layers * of_sampling(settings)
    print(f"{total} operators a step; {sampled} of them are {layers} layers' sampling, which")
    print(f"takes {3 * layers} where there are kernels for it: {total - sampled + 3 * layers} then")
    print(", ".join(f"{name} {number}" for name, number in operators.counts.most_common(20)))


def of_sampling(settings: ComboSettings) -> int:
    """Operators of one layer's `sample_levels` in plain PyTorch, forward and backward."""
    levels = Levels.of([(2, 2), (4, 4), (8, 8)], settings.heads, settings.pixel_points)
    grid = (1, levels.pixels, settings.heads, 3, settings.pixel_points)
    value = torch.rand(1, levels.pixels, settings.heads, 8, requires_grad=True)
    places, weights = torch.rand(*grid, 2, requires_grad=True), torch.rand(grid, requires_grad=True)
    with Operators() as operators:
        out = sample_levels(value, levels, places, weights)
        torch.autograd.grad(out, (value, places, weights), out.detach())
    return operators.counts.total()


def measure(options: argparse.Namespace, part: str) -> None:
    """Prints seconds (median, best) and peak GB of one part, for the parent process."""
    once = prepare(options, part)
    cuda = options.device.startswith("cuda")
    times = []
    for number in range(options.repeats + 2):
        started = time.perf_counter()
        once()
        if cuda:
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - started)
    if cuda:
        peak = torch.cuda.max_memory_allocated() / GIGABYTE
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE
    print(statistics.median(times), min(times), peak)


def vggish_seconds(options: argparse.Namespace) -> float:
    """The sound encoder alone, for what the public numbers have inside."""
    torch.set_num_threads(options.threads)
    network = VGGish().eval().to(options.device)
    patches = torch.randn(options.batch * options.frames, 1, 96, 64, device=options.device)
    times = []
    with torch.inference_mode():
        for _ in range(options.repeats):
            started = time.perf_counter()
            network(patches)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    options = arguments()
    if options.only:
        measure(options, options.only)
        return
    if options.count:
        count(options)
        return
    compared = options.backbone == "r50" and options.device == "cpu" and options.size == 224
    compared = compared and options.batch == 1 and options.frames == 5
    print(f"{options.backbone}, S4, {options.batch} clip(s) of {options.frames} frames at")
    print(f"{options.size}, {options.device}, {options.precision}, {options.threads} threads")
    print(f"{'part':10} {'median s':>9} {'best s':>8} {'clips/s':>8} {'peak GB':>8}"
          f" {'s / public':>11} {'GB / public':>12}  goal")  # fmt: skip
    for part in ("forward", "step"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", part]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        median, best, peak = map(float, printed.split()[-3:])
        row = f"{part:10} {median:9.2f} {best:8.2f} {options.batch / median:8.2f} {peak:8.2f}"
        if compared:
            seconds, memory = PUBLIC[part]
            goal = GOAL[part]
            row += f" {median / seconds:11.2f} {peak / memory:12.2f}  {goal[0]}, {goal[1]}"
        print(row, flush=True)
    print(f"sound encoder alone, inside the public numbers: {vggish_seconds(options):.2f} s")


if __name__ == "__main__":
    main()
