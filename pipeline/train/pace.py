"""How fast a run goes, how long it waits for data, and how much memory it takes."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""FLOP/s of dense bf16 products, by a part of the device's name (the vendor's data sheets)."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Step:
    """What the trainer tells after a step. seconds_left: at the speed of the last steps.
    skipped: steps of the run that were not taken, since a loss or gradient was no number.
    pace: what is logged of the last steps' speed, in words; of a run's first step nothing is.
    """

    iteration: int
    iterations: int
    loss: float
    seconds_left: float
    skipped: int
    pace: str = ""


def in_words(told: Mapping[str, Any]) -> str:
    """What `Pace.told` tells, for a line."""
    words = [
        f"{told['clips_per_second']:.1f} clips/s",
        f"{100 * told['waited']:.1f} % waited",
        f"{told['peak_memory_gb']:.1f} GB",
    ]
    if "mfu" in told:
        words.append(f"MFU {100 * told['mfu']:.1f} %")
    return ", ".join(words)


class Pace:
    """Of the steps since it was asked last. clips: of a step, of all processes together."""

    def __init__(self, device: torch.device, clips: int) -> None:
        self._device, self._clips = device, clips
        self._flops: int | None = None
        self.restart()

    def restart(self) -> None:
        """What was done until now, such as an evaluation, is no part of a step."""
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def over(self, batches: Iterable[Value]) -> Iterator[Value]:
        """The batches, the time until each is there looked at."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            self._steps += 1
            yield batch

    def counted(self, step: Callable[[], Value]) -> Value:
        """Does a step; of the first, where the device's speed is known, products are counted.

        That one is taken without compiled parts, in which no operator would be seen.
        """
        if self._flops is not None or self._peak() is None:
            return step()
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            done = step()
        self._flops = counter.get_total_flops()
        return done

    @property
    def seconds(self) -> float:
        """Of a step, so far."""
        return (time.perf_counter() - self._since) / max(1, self._steps)

    def told(self) -> tuple[float, dict[str, Any]]:
        """Seconds of a step, and what is logged of them; begins anew.

        waited: share of the time in which the next batch was not there.  peak_memory_gb: of the
        GPU, or of this process.  mfu: share of what the device's products could be.
        """
        passed, seconds = time.perf_counter() - self._since, self.seconds
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told = {
            "clips_per_second": round(self._clips / seconds, 3),
            "waited": round(self._waited / passed, 4),
            "peak_memory_gb": round(peak / 1e9, 3),
        }
        if self._flops and (fastest := self._peak()):
            told["mfu"] = round(self._flops / seconds / fastest, 4)
        self.restart()
        return seconds, told

    def _peak(self) -> float | None:
        if self._device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self._device)
        return next((flops for part, flops in PEAK.items() if part in name), None)
