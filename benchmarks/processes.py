"""How much faster two processes train than one: python benchmarks/processes.py [--processes 2]

Each process has one core and one clip a step, of frames of the usual size with numbers of no
meaning, so that nothing but the network, its gradients' way and the exchange of a step is measured.
One process and all of them take turns, on the same cores, and the best of each counts.

Last seen (two cores of a shared machine, load average in brackets): see docs/measurements.md.
"""

import argparse
import os
import subprocess
import sys
import time

import torch

from combo.model import Combo, Criterion
from combo.pipeline.train import processes


def worker(preset: str, size: int, steps: int) -> None:
    """Prints the seconds of each step of this process's share."""
    torch.set_num_threads(1)
    with processes.joined() as together:
        torch.manual_seed(0)
        network = Combo.from_preset(preset)
        criterion = Criterion(network.settings)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
        spread = together.spread(network.train())
        pictures = torch.randint(0, 256, (1, 5, 3, size, size), dtype=torch.uint8)
        labels = torch.randint(0, 2, (1, 5, size, size), dtype=torch.uint8)
        sound, there = torch.rand(1, 5, 128), torch.ones(1, 5, dtype=torch.bool)
        for _ in range(steps):
            begun = time.perf_counter()
            sums = together.total(criterion.divisors(labels, there, there))
            losses = criterion(
                spread(pictures, pictures, sound), labels, annotated=there, divisors=sums
            )
            losses.total.backward()
            together.total(losses.stacked.detach())
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.01)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if together.first:
                print(time.perf_counter() - begun, flush=True)


def best(count: int, words: list[str]) -> float:
    """Seconds of the fastest step, the first one left out, of so many processes together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *torchrun, __file__, "--worker", *words]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return min(float(line) for line in done.stdout.split()[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", default="combo-r50-s4")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.preset, given.size, given.steps)
        return
    words = ["--preset", given.preset, "--size", str(given.size), "--steps", str(given.steps)]
    seconds: dict[int, float] = {1: float("inf"), given.processes: float("inf")}
    for _ in range(given.rounds):
        for count in seconds:
            seconds[count] = min(seconds[count], best(count, words))
            load = os.getloadavg()[0]
            print(f"{count} processes: best step {seconds[count]:.2f} s (load average {load:.1f})")
    many = given.processes
    print(
        f"{many} processes: {many * seconds[1] / seconds[many]:.2f} times the clips a second of 1"
    )


if __name__ == "__main__":
    main()
