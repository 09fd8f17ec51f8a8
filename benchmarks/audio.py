"""Sound: front-end and network, apart, against torchvggish's own functions in the same process.

    python benchmarks/audio.py [--clips 200] [--network-clips 32] [--threads 1 2]

Both sides start from the same waveforms in memory and end with the same numbers, whose largest
difference is shown in units of their standard deviation. The network has random weights: they do
not change its time. "The transform alone" is the double-precision Fourier transform of the same
columns by PyTorch and nothing else: no front-end built on it can have a higher ratio.

At the end it predicts all of AVSBench-semantic from the whole road of some files, on one core.
Last seen: see docs/measurements.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from combo.model.vggish import (
    BANDS,
    COLUMNS,
    FFT,
    PATCH_BYTES,
    WINDOW,
    WINDOW_BYTES,
    LogMel,
    VGGish,
    consecutive,
    embed,
)
from combo.pipeline.media.resample import KaiserBest
from combo.pipeline.media.sound_files import read_sound

SECONDS = 5
ALL_CLIPS, ALL_SECONDS = 11_356, 10
NODE = 64
"""Cores of the node that is predicted besides this machine."""

Samples = NDArray[np.float64]


def sounds(count: int, rate: int, seconds: int = SECONDS) -> list[Samples]:
    """Clips of tones in noise, [N] float64 each."""
    rng = np.random.default_rng(0)
    when = np.arange(seconds * rate) / rate
    clips: list[Samples] = []
    for _ in range(count):
        tones = sum(np.sin(2 * np.pi * hertz * when) for hertz in rng.uniform(80, 6000, 3))
        clips.append(0.1 * tones + rng.normal(0, 0.02, len(when)))
    return clips


def ours(clips: list[Samples], rate: int, log_mel: LogMel, threads: int = 1) -> Tensor:
    """Log-mel patches; the clips are divided over the threads as the audio stage does it."""

    def some(part: list[Samples]) -> Tensor:
        windows: list[Tensor] = []
        for waveform in part:
            if rate != 16_000:
                stream = KaiserBest(rate, 16_000)
                waveform = np.concatenate([stream.push(waveform), stream.finish()])
            windows.append(consecutive(torch.from_numpy(waveform)))
        return log_mel(torch.cat(windows))

    parts = [clips[first:last] for first, last in spans(len(clips), min(threads, len(clips)))]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(some, parts)))
    finally:
        torch.set_num_threads(before)


def theirs(clips: list[Samples], rate: int) -> Tensor:
    from torchvggish.vggish_input import waveform_to_examples

    patches = [waveform_to_examples(clip, rate).detach() for clip in clips]
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
    print(f"{name:34}{numbers}", flush=True)


def front_end(log_mel: LogMel, count: int, threads: int) -> None:
    for rate in (16_000, 44_100):
        clips = sounds(count, rate)
        ours(clips[:2], rate, log_mel, threads)
        theirs(clips[:2], rate)
        fast, slow, difference = paired(
            lambda a, b, c=clips, r=rate: ours(c[a:b], r, log_mel, threads),
            lambda a, b, c=clips, r=rate: theirs(c[a:b], r),
            count,
            groups=10,
        )
        row(f"front-end, {rate} Hz, threads: {threads}", count, slow, fast, difference)
        if rate == 16_000:
            start = time.perf_counter()
            transforms(count * SECONDS, threads)
            alone = time.perf_counter() - start
            row(f"  the transform alone, threads: {threads}", count, slow, alone, 0.0)


def transforms(windows: int, threads: int) -> None:
    """The Fourier transforms of this many windows, and nothing else."""
    columns = torch.zeros(4, COLUMNS, FFT, dtype=torch.float64)

    def some(count: int) -> None:
        for _ in range(count):
            torch.fft.rfft(columns)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, [windows // len(columns) // threads] * threads))
    finally:
        torch.set_num_threads(before)


def network(reference: torch.nn.Module, net: VGGish, patches: Tensor, threads: int) -> None:
    count, each = len(patches) // SECONDS, SECONDS

    def reference_forward(first: int, last: int) -> Tensor:
        some = patches[first * each : last * each].split(each)  # a clip at a time, as it is used
        return torch.cat([reference(clip) for clip in some])

    with torch.no_grad():
        reference_forward(0, 1)
        embed(net, patches[:each])
        fast, slow, difference = paired(
            lambda a, b: embed(net, patches[a * each : b * each]),
            reference_forward,
            count,
            groups=max(1, count // 16),  # clips of 5 frames, two units of the pipeline
        )
    row(f"network, threads: {threads}", count, slow, fast, difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--network-clips", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    from torchvggish import torchvggish

    log_mel = LogMel()
    reference = torchvggish.VGG(torchvggish.make_layers(), postprocess=False).eval()
    net = VGGish.from_state(reference.state_dict())
    patches = ours(sounds(options.network_clips, 16_000), 16_000, log_mel)[:, None]
    print(f"{options.clips} clips of {SECONDS} s")
    heads = f"{'torchvggish':>12}{'here':>10}{'ratio':>8}{'max |d|/s':>11}"
    print(f"{'seconds of sound per second':34}{heads}")
    for threads in options.threads:
        torch.set_num_threads(threads)
        front_end(log_mel, options.clips, threads)
    for threads in options.threads:
        torch.set_num_threads(threads)
        network(reference, net, patches, threads)

    torch.set_num_threads(1)
    print("\npeak of memory beside weights and results, against what a setting allows")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for part, at_once, each in PEAKS:
            peak = fresh.submit(peak_beside, part, at_once).result()
            print(f"  {part}, at_once={at_once:<4}{peak:8.0f} MB{at_once * each / 1e6:8.0f}")

    predict(log_mel, net)
    if torch.cuda.is_available():
        on_gpu(log_mel, net)


def predict(log_mel: LogMel, net: VGGish, clips: int = 16) -> None:
    """Seconds of the whole road, from files to embeddings, on one core; and for the whole set."""
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.wav" for number in range(clips)]
        for file, sound in zip(files, sounds(clips, 44_100, ALL_SECONDS), strict=True):
            soundfile.write(file, np.stack([sound, sound], axis=1), 44_100, subtype="PCM_16")
        read_sound(files[0])
        start = time.process_time()
        windows = [consecutive(torch.from_numpy(read_sound(file).waveform)) for file in files]
        parts["reading 44.1 kHz stereo WAV, resampling"] = time.process_time() - start
    start = time.process_time()
    patches = [log_mel(some) for some in windows]
    parts["front-end"] = time.process_time() - start
    start = time.process_time()
    for unit in range(0, clips, 8):
        embed(net, torch.cat(patches[unit : unit + 8]))
    parts["network"] = time.process_time() - start
    print(f"\npredicted for {ALL_CLIPS} clips of {ALL_SECONDS} s, from {clips} clips on one core")
    for name, seconds in parts.items():
        print(f"  {name:42}{seconds / clips * 1e3:8.1f} ms a clip")
    total = sum(parts.values()) / clips * ALL_CLIPS / 3600
    print(f"  {'one core':42}{total:8.2f} core-hours")
    for cores in (psutil.cpu_count(logical=False) or 1, NODE):
        name = f"{cores} cores, one process each, if they scale"
        print(f"  {name:42}{total / cores * 60:8.1f} min")
    print(f"  embeddings [{ALL_CLIPS}, 10, 128] float32: {ALL_CLIPS * 10 * 128 * 4 / 1e6:.0f} MB")


PEAKS = (
    ("front-end", 4, WINDOW_BYTES),
    ("front-end", 64, WINDOW_BYTES),
    ("front-end", 256, WINDOW_BYTES),
    ("network", 1, PATCH_BYTES),
    ("network", 16, PATCH_BYTES),
    ("network", 32, PATCH_BYTES),
)


def peak_beside(part: str, at_once: int) -> float:
    """Growth of a new process in MB while a part runs over its input, its result left out."""
    from threading import Event, Thread

    torch.set_num_threads(1)
    if part == "network":
        net, patches = VGGish.from_state(VGGish().state_dict()), torch.zeros(512, COLUMNS, BANDS)
        call = partial(embed, net, patches)
    else:
        call = partial(LogMel(), torch.zeros(1024, WINDOW).normal_(0, 0.1))
    call(1)  # what MKL keeps for itself, about 20 MB, is there before
    process, done = psutil.Process(), Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    result = call(at_once)
    done.set()
    watcher.join()
    return max(0.0, highest - before - result.numel() * 4) / 1e6


def on_gpu(log_mel: LogMel, net: VGGish) -> None:
    """Front-end and network on a GPU, from waveforms on the device to embeddings."""
    log_mel, net = log_mel.cuda(), net.cuda()
    waveform = torch.zeros(2000 * 16_000, device="cuda").normal_(0, 0.1)
    print(f"\non {torch.cuda.get_device_name()}, reading and resampling left out")

    def front() -> Tensor:
        return log_mel(consecutive(waveform), 512)

    def both() -> Tensor:
        return embed(net, front(), 256)

    for name, call in (("front-end at 16000 Hz", front), ("front-end and network", both)):
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        per_second = 2000 / (time.perf_counter() - start)
        minutes = ALL_CLIPS * ALL_SECONDS / per_second / 60
        print(f"  {name:24}{per_second:10.0f} s/s {minutes:8.2f} min for the set")


if __name__ == "__main__":
    main()
