"""How much faster two processes train than one: python benchmarks/processes.py [--processes 2]

Each process has one core and one clip a step, of frames of the usual size with numbers of no
meaning, so that nothing but the network, its gradients' way and the exchange of a step is measured.
One process and all of them take turns, on the same cores, and the best step of each counts. Beside
the clock, processor time tells on a busy machine what the exchange costs.

Numbers last seen are in docs/measurements.md.
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
            begun, worked = time.perf_counter(), time.process_time()
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
                print(time.perf_counter() - begun, time.process_time() - worked, flush=True)


def best(count: int, words: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of the first process's core, of the fastest step of so many
    processes together, the first one left out.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *torchrun, __file__, "--worker", *words]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    steps = [line.split() for line in done.stdout.decode().splitlines()[1:]]
    return min(float(clock) for clock, _ in steps), min(float(core) for _, core in steps)


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
    many, found = given.processes, dict[int, list[tuple[float, float]]]()
    for _ in range(given.rounds):
        for count in (1, many):
            clock, core = best(count, words)
            found.setdefault(count, []).append((clock, core))
            load = os.getloadavg()[0]
            print(
                f"{count}: {clock:.2f} s a step, {core:.2f} s of a core (load average {load:.1f})"
            )
    for number, what in enumerate(("by the clock", "by processor time, if no core waited")):
        one, all_of_them = (min(each[number] for each in found[count]) for count in (1, many))
        print(f"{many} processes do {many * one / all_of_them:.2f} times the clips of one {what}")


if __name__ == "__main__":
    main()
