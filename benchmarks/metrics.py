"""M_F by one histogram a frame against 255 comparisons; the metrics' cost a clip.

    python benchmarks/metrics.py [--clips 20] [--threads 2]

Both sides get the same probabilities in the same process and take turns. Last seen: see
docs/measurements.md.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from combo.model.metrics import ObjectMetrics, count_classes, count_objects, foreground

FRAMES, SIZE, CLASSES = 5, 224, 71


def direct_f(probability: Tensor, labels: Tensor) -> Tensor:
    """F curve of each frame by its definition, a comparison for each threshold: [T, 255]."""
    curves: list[Tensor] = []
    thresholds = torch.linspace(0, 1, 255)
    for frame, label in zip(probability, labels.float(), strict=True):
        curve = torch.zeros(len(thresholds))
        for index, threshold in enumerate(thresholds):
            chosen = (frame >= threshold).float()
            hits = (chosen * label).sum()
            precision, recall = hits / (chosen.sum() + 1e-20), hits / (label.sum() + 1e-20)
            curve[index] = 1.3 * precision * recall / (0.3 * precision + recall)
        curves.append(curve.nan_to_num())
    return torch.stack(curves)


def a_clip(seed: int, saturated: bool) -> tuple[Tensor, Tensor]:
    """Scores [T, 2, H, W] of a blob with noise and labels [T, H, W] of the blob."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centres = torch.rand((FRAMES, 2), generator=generator) * SIZE
    distance = torch.stack([(rows - y).hypot(columns - x) for y, x in centres.tolist()])
    labels = (distance < SIZE / 4).to(torch.uint8)
    noise = torch.randn(distance.shape, generator=generator)
    towards = (SIZE / 4 - distance) / 8 * (20 if saturated else 1) + noise
    return torch.stack([-towards / 2, towards / 2], dim=1), labels


def best_of(call: Callable[[], object], times: int) -> float:
    seconds: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.clips} clips of {FRAMES} frames at {SIZE}, {options.threads} threads")
    print(f"{'M_F, ms a clip':28}{'direct':>10}{'histogram':>12}{'ratio':>8}{'max |d|':>10}")
    for name, saturated in (("soft predictions", False), ("saturated predictions", True)):
        direct: list[float] = []
        ours: list[float] = []
        largest = 0.0
        for seed in range(options.clips):
            scores, labels = a_clip(seed, saturated)
            probability = foreground(scores).contiguous()
            if seed == 0:  # tables and threads start up outside the measurement
                count_objects(probability, labels)
            ours.append(best_of(lambda p=probability, t=labels: count_objects(p, t).f_curves(), 5))
            direct.append(best_of(lambda p=probability, t=labels: direct_f(p, t), 1))
            difference = count_objects(probability, labels).f_curves() - direct_f(
                probability, labels
            )
            largest = max(largest, float(difference.abs().max()))
        slow, fast = (1000 * sum(times) / len(times) for times in (direct, ours))
        print(f"{name:28}{slow:10.1f}{fast:12.2f}{slow / fast:8.0f}{largest:10.1e}")
    scores, labels = a_clip(0, saturated=False)
    whole = best_of(lambda: ObjectMetrics().update(scores, labels), 5)
    print(f"{'ObjectMetrics.update, ms a 5-frame clip':50}{1000 * whole:8.1f}")
    many = torch.randn((10, CLASSES, SIZE, SIZE))
    truth = torch.randint(0, CLASSES, (10, SIZE, SIZE)).to(torch.uint8)
    semantic = best_of(lambda: count_classes(many, truth), 3)
    print(f"{'71 classes, ms a 10-frame clip':50}{1000 * semantic:8.1f}")


if __name__ == "__main__":
    main()
