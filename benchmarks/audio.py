"""Sound: front-end and network, apart, against torchvggish's own functions in the same process.

    python benchmarks/audio.py [--clips 200] [--network-clips 20] [--threads 2]

Both sides start from the same waveforms in memory and end with the same numbers, whose largest
difference is shown in units of their standard deviation. The network has random weights: they do
not change its time. Last seen: see docs/measurements.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from combo.model.vggish import LogMel, VGGish, consecutive, embed
from combo.pipeline.resample import KaiserBest

SECONDS = 5
ALL_CLIPS, ALL_SECONDS = 11_356, 10

Samples = NDArray[np.float32]


def sounds(count: int, rate: int) -> list[Samples]:
    """Clips of tones in noise, [N] float32 each."""
    rng = np.random.default_rng(0)
    when = np.arange(SECONDS * rate) / rate
    clips: list[Samples] = []
    for _ in range(count):
        tones = sum(np.sin(2 * np.pi * hertz * when) for hertz in rng.uniform(80, 6000, 3))
        clips.append((0.1 * tones + rng.normal(0, 0.02, len(when))).astype(np.float32))
    return clips


def ours(clips: list[Samples], rate: int, log_mel: LogMel, at_once: int) -> Tensor:
    windows: list[Tensor] = []
    for clip in clips:
        waveform = clip
        if rate != 16_000:
            stream = KaiserBest(rate, 16_000)
            waveform = np.concatenate([stream.push(clip), stream.finish()])
        windows.append(consecutive(torch.from_numpy(waveform)))
    return log_mel(torch.cat(windows), at_once)


def theirs(clips: list[Samples], rate: int) -> Tensor:
    from torchvggish.vggish_input import waveform_to_examples

    patches = [waveform_to_examples(clip.astype(np.float64), rate).detach() for clip in clips]
    return torch.cat(patches)[:, 0]


def timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def paired(
    fast: Callable[[int, int], Tensor],
    slow: Callable[[int, int], Tensor],
    clips: int,
    groups: int,
) -> tuple[float, float, float]:
    """Seconds of both over all clips, taking turns in groups; largest difference by the spread."""
    quick = lasting = difference = 0.0
    for first, last in spans(clips, groups):
        seconds, new = timed(lambda a=first, b=last: fast(a, b))
        quick += seconds
        seconds, old = timed(lambda a=first, b=last: slow(a, b))
        lasting += seconds
        difference = max(difference, float((new - old).abs().max() / old.std()))
    return quick, lasting, difference


def spans(count: int, groups: int) -> Iterator[tuple[int, int]]:
    return pairwise(np.linspace(0, count, groups + 1).astype(int).tolist())


def row(name: str, clips: int, slow: float, fast: float, difference: float) -> None:
    sound = clips * SECONDS
    numbers = f"{sound / slow:12.0f}{sound / fast:10.0f}{slow / fast:8.1f}{difference:11.1e}"
    print(f"{name:34}{numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--network-clips", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from torchvggish import torchvggish

    log_mel = LogMel()
    print(f"{options.clips} clips of {SECONDS} s, {options.threads} threads")
    heads = f"{'torchvggish':>12}{'here':>10}{'ratio':>8}{'max |d|/s':>11}"
    print(f"{'seconds of sound per second':34}{heads}")
    speed: dict[str, float] = {}
    for rate in (16_000, 44_100):
        clips = sounds(options.clips, rate)
        ours(clips[:2], rate, log_mel, 8)
        theirs(clips[:2], rate)
        fast, slow, difference = paired(
            lambda a, b, c=clips, r=rate: ours(c[a:b], r, log_mel, 8),
            lambda a, b, c=clips, r=rate: theirs(c[a:b], r),
            options.clips,
            groups=5,
        )
        row(f"front-end, {rate} Hz", options.clips, slow, fast, difference)
        speed[f"front-end at {rate} Hz"] = options.clips * SECONDS / fast

    reference = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
    network = VGGish.from_state(reference.state_dict())
    patches = ours(sounds(options.network_clips, 16_000), 16_000, log_mel, 8)[:, None]
    each = len(patches) // options.network_clips

    def reference_forward(first: int, last: int) -> Tensor:
        some = patches[first * each : last * each].split(each)  # a clip at a time, as it is used
        return torch.cat([reference(clip) for clip in some])

    with torch.no_grad():
        reference_forward(0, 1)
        embed(network, patches[:each])
        fast, slow, difference = paired(
            lambda a, b: embed(network, patches[a * each : b * each]),
            reference_forward,
            options.network_clips,
            groups=min(4, options.network_clips),
        )
    row("network, a clip against batches", options.network_clips, slow, fast, difference)
    speed["network"] = options.network_clips * SECONDS / fast

    print("\npeak of memory beside the results, front-end over 40 minutes of sound (CPU)")
    long = torch.zeros(40 * 60 * 16_000).normal_(0, 0.1)
    for at_once in (8, 64, 512):
        print(f"  at_once={at_once:<5}{peak_beside(log_mel, long, at_once):8.0f} MB")

    total = ALL_CLIPS * ALL_SECONDS
    print(
        f"\npredicted for {ALL_CLIPS} clips of {ALL_SECONDS} s on this machine, decoding left out"
    )
    for name, per_second in speed.items():
        print(f"  {name:24}{total / per_second / 60:8.1f} min")
    print(f"  embeddings [{ALL_CLIPS}, 10, 128] float32: {ALL_CLIPS * 10 * 128 * 4 / 1e6:.0f} MB")
    if torch.cuda.is_available():
        on_gpu(network, total)


def peak_beside(log_mel: LogMel, waveform: Tensor, at_once: int) -> float:
    """Growth of the process in MB while the front-end runs, its result left out."""
    from threading import Event, Thread

    process, done = psutil.Process(), Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    result = log_mel(consecutive(waveform), at_once)
    done.set()
    watcher.join()
    return (highest - before - result.numel() * 4) / 1e6


def on_gpu(network: VGGish, total: int) -> None:
    """The same two steps on a GPU, from waveforms on the device to embeddings."""
    log_mel, network = LogMel().cuda(), network.cuda()
    waveform = torch.zeros(2000 * 16_000, device="cuda").normal_(0, 0.1)
    print(f"\non {torch.cuda.get_device_name()}")

    def front_end() -> Tensor:
        return log_mel(consecutive(waveform), 4096)

    def both() -> Tensor:
        return embed(network, front_end(), 1024)

    for name, call in (("front-end at 16000 Hz", front_end), ("front-end and network", both)):
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        per_second = 2000 / (time.perf_counter() - start)
        print(f"  {name:24}{per_second:10.0f} s/s {total / per_second / 60:8.2f} min for the set")


if __name__ == "__main__":
    main()
