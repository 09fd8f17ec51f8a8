"""`combo train --profile N`: what some steps of a run do, operator by operator, host and device."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.profiler

from .. import durable
from ..errors import WrongUsage
from .run_folder import RunFolder

WARM_UP = 5
"""Steps before: the first ones of a process are others (kernels are chosen, memory is taken)."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Profile:
    """Of `steps` steps of a run. told: gets a line that says where it lies."""

    steps: int
    told: Callable[[str], None]

    def demand_steps(self, left: int) -> None:
        """Raises ComboError where fewer than needed are left of a run."""
        if left < WARM_UP + self.steps:
            raise WrongUsage(
                f"--profile {self.steps} needs {WARM_UP + self.steps} iterations ({WARM_UP} are to "
                f"warm up), and {left} are left of the run; give fewer, or more --set iterations"
            )

    def over(self, batches: Iterable[Value], run: RunFolder, iteration: int) -> Iterator[Value]:
        """The batches; the profile of what is done with them is written when it is whole.

        iteration: of the run before the first of them. Raises ComboError when the run's folder
        cannot be written.
        """
        last = iteration + WARM_UP + self.steps
        file = run.profile / f"{last:06d}.pt.trace.json.gz"

        def write(found: torch.profiler.profile) -> None:
            if found.step_num < WARM_UP + self.steps:  # the run was stopped meanwhile
                return
            with run.writing(), tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / file.name
                found.export_chrome_trace(str(made))
                durable.write_bytes(file, made.read_bytes())
            self.told(f"profile of iterations {last - self.steps + 1} to {last}: {file}")

        when = torch.profiler.schedule(wait=WARM_UP - 1, warmup=1, active=self.steps, repeat=1)
        with torch.profiler.profile(
            schedule=when, on_trace_ready=write, record_shapes=True
        ) as profiler:
            for batch in batches:
                yield batch
                profiler.step()
