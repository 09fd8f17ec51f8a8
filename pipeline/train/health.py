"""Steps whose loss or gradient is not a number: not taken, counted, and told of afterwards.

Both are judged where they are, on the device, and the optimiser is told there not to step (fused
optimisers take `found_inf`, as from a GradScaler), so that nobody waits and no network is lost. The
host learns of it when the next step is already on its way to the device but not yet at the
optimiser: the network still is what it was before the step.

In half precision a gradient that overflows is nothing strange, and why there is a scale: such steps
are counted and the scale falls. They are bad when there is no scale left to blame.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...model.transfers import fetch
from .. import durable, remedies
from ..errors import ComboError
from . import checkpoint
from .checkpoint import Checkpoint
from .journal import Journal
from .loader import StoredBatch
from .presets import Precision
from .run_folder import RunFolder

MOST_IN_A_ROW = 3
"""Bad steps after which a run ends, and of which the batches are kept."""


@dataclass(frozen=True)
class BadStep:
    """A step that was not taken. iteration: counted from 1.  batch: this process's share."""

    iteration: int
    loss: float
    gradient_norm: float
    in_a_row: int
    batch: StoredBatch

    def __str__(self) -> str:
        what = "gradient" if math.isfinite(self.loss) else "loss"
        value = self.gradient_norm if what == "gradient" else self.loss
        return f"the {what} is {value} at iteration {self.iteration}"


class Health:
    """Counts of a run. skipped: steps not taken, int64 on the device."""

    def __init__(self, device: torch.device, skipped: int = 0, in_a_row: int = 0) -> None:
        self.skipped = torch.tensor(skipped, device=device)
        self.in_a_row = torch.tensor(in_a_row, device=device)
        self._last: tuple[int, StoredBatch, Callable[[], np.ndarray]]
        self._unseen = False

    def judge(
        self,
        iteration: int,
        batch: StoredBatch,
        loss: Tensor,
        gradient_norm: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """1.0 on the device where the step must not be taken, else 0.0. Waits for nothing.

        loss, gradient_norm: of all processes, without the scale.  scale: of the loss; 1 where none
        is used.
        """
        lost, steep = ~torch.isfinite(loss), ~torch.isfinite(gradient_norm)
        bad = lost | (steep & (scale <= 1))
        self.skipped = self.skipped + (lost | steep)
        self.in_a_row = (self.in_a_row + bad) * bad
        seen = torch.stack([self.in_a_row.float(), loss, gradient_norm])
        self._last, self._unseen = (iteration, batch, fetch(seen)), True
        return (lost | steep).float()

    def last(self) -> BadStep | None:
        """The step that was judged last, where it was bad; told once."""
        if not self._unseen:
            return None
        self._unseen = False
        iteration, batch, arriving = self._last
        in_a_row, loss, norm = arriving().tolist()  # the next step's matching has waited longer
        return BadStep(iteration, loss, norm, int(in_a_row), batch) if in_a_row else None


def tell(
    bad: BadStep,
    run: RunFolder,
    state: Checkpoint,
    precision: Precision,
    journal: Journal,
    on_problem: Callable[[str], None],
) -> None:
    """Keep a bad step's batch and the state before it, and say so.

    state: of now, which is that before the step.  precision: of the run.  on_problem: gets a line,
    but for the last of several in a row. Raises ComboError when the run's folder cannot be written.
    """
    file, clips = run.skipped / f"{bad.iteration:06d}.pt", list(bad.batch.clips)
    before = {**vars(state), "iteration": bad.iteration - 1}
    batch = {name: value for name, value in vars(bad.batch).items() if name != "clips"}
    with run.writing():
        checkpoint.save(file, {**before, "batch": batch, "clips": clips})
        for old in durable.listed(run.skipped)[:-MOST_IN_A_ROW]:
            durable.remove(old)
    told = {"loss": bad.loss, "gradient_norm": bad.gradient_norm, "clips": clips}
    journal.write(bad.iteration, "skipped", told)
    if bad.in_a_row < MOST_IN_A_ROW:
        on_problem(
            f"{bad}: step not taken, batch and clips ({', '.join(clips)}) are in {file}; if it "
            f"comes again, lower learning_rate{_or_wider(precision)}"
        )


def several(bad: BadStep, run: RunFolder, precision: Precision) -> ComboError:
    """Why a run ends with its last of several bad steps in a row."""
    sound = run.best if run.best.exists() else run.previous
    return ComboError(
        f"{bad} of {run.root}, as {bad.in_a_row} times in a row (batches and clips: "
        f"{run.skipped}); if it has diverged, begin a run with an earlier network, "
        f"--set initialisation={sound}, and a lower learning_rate{_or_wider(precision)}; else go "
        f"on past these clips: {remedies.resume(run.root)}"
    )


def _or_wider(precision: Precision) -> str:
    """Which numbers could hold what half precision could not."""
    wider = {"fp16": ["bf16", "fp32"], "bf16": ["fp32"]}.get(precision)
    return f", or set precision={' or '.join(wider)}" if wider else ""
