"""The training loop: batch, forward, loss, backward, step; now and then an evaluation or a
checkpoint."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...model.interface import Network
from .. import durable, remedies
from ..devices import choose_device
from ..errors import ComboError
from ..jobs.stopping import Stop, Stopped
from . import checkpoint
from .augment import Augment
from .cache import batches
from .checkpoint import Checkpoint
from .evaluate import measure
from .health import MOST_IN_A_ROW, BadStep, Health
from .journal import Journal
from .loader import ClipReader, StoredBatch, shuffled
from .presets import RunSettings, TrainSettings
from .run_folder import RunFolder


@dataclass(frozen=True)
class Step:
    """What the trainer tells after a step. seconds_left: at the speed of the last steps.
    skipped: steps of the run that were not taken, since a loss or gradient was no number.
    """

    iteration: int
    iterations: int
    loss: float
    seconds_left: float
    skipped: int


def learning_rate_factor(settings: TrainSettings, iteration: int) -> float:
    """Polynomial decay to 0, after a linear warm-up (the public code has none).

    Iterations are batches seen, as in the public code: a step that is skipped is one, too. So the
    rate ends at 0 with the last batch, and asks nothing of the device.
    """
    factor = (1 - iteration / settings.iterations) ** settings.power
    return factor * min(1.0, (iteration + 1) / max(1, settings.warmup))


class Trainer:
    """One run: a network, its data and its folder.

    readers: "train", and "val" where there is a val split.
    """

    journal: Journal

    def __init__(
        self,
        run: RunFolder,
        settings: RunSettings,
        network: Network,
        readers: Mapping[str, ClipReader],
    ) -> None:
        self.run, self.settings, self.readers = run, settings.train, readers
        self.device = choose_device(self.settings.device)
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.network = network.to(self.device)
        self.criterion = settings.criterion().to(self.device)
        self.optimiser = torch.optim.AdamW(
            network.parameter_groups(
                self.settings.learning_rate,
                self.settings.weight_decay,
                self.settings.backbone_lr_factor,
            ),
            fused=True,
        )
        for group in self.optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.settings.precision
        ]
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.settings.precision == "fp16"
        )
        self.augment = Augment(
            self.settings.augment, torch.Generator().manual_seed(self.settings.seed)
        )
        self.iteration, self.evaluated, self.best = 0, 0, -math.inf
        self.health = Health(self.device)
        self._saved: tuple[int, int] | None = None  # at which iteration, and what was evaluated
        self._saved_at = time.monotonic()
        self._begun_from = run.state()

    def resume(self) -> None:
        """Go on from the run's last checkpoint. Raises ComboError for one that does not fit."""
        state = checkpoint.load(self.run.last)
        try:
            self.network.load_state_dict(state.network)
            self.optimiser.load_state_dict(state.optimiser)
            self.scaler.load_state_dict(state.scaler)
            checkpoint.restore_random(state.random, self.augment.generator)
        except Exception as error:  # whatever an odd state leads PyTorch into
            raise checkpoint.misfit(self.run.last, error) from error
        self.iteration, self.best = state.iteration, state.best
        self.evaluated = state.iteration if state.evaluated < 0 else state.evaluated
        self.health = Health(self.device, state.skipped, state.in_a_row)
        self._saved, self._saved_at = (self.iteration, self.evaluated), time.monotonic()

    def train(
        self,
        on_step: Callable[[Step], None] = lambda _: None,
        stop: Stop | None = None,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Train to the end.

        stop: when asked, the step in hand is finished and a checkpoint written.
        on_problem: gets a line for each step that was not taken since something was no number,
        but for what half precision skips as a matter of course.
        Raises Stopped; ComboError when several steps in a row could not be taken, the run's folder
        cannot be written, or another process trains there.
        """
        stop = stop or Stop()
        with self.run.claimed():
            if self.run.state() != self._begun_from:
                raise ComboError(
                    f"another process has trained {self.run.root} meanwhile; "
                    f"go on with: {remedies.resume(self.run.root)}"
                )
            if self.iteration == 0:
                self._save()  # from here on the run can be resumed
            self.journal, self._on_problem = Journal(self.run, self.iteration), on_problem
            try:
                self._go(on_step, stop)
            except Stopped:
                self._save()
                raise Stopped(f"go on with: {remedies.resume(self.run.root)}") from None
            if self._saved != (self.iteration, self.evaluated):
                self._save()

    def _go(self, on_step: Callable[[Step], None], stop: Stop) -> None:
        settings, reader = self.settings, self.readers["train"]
        self._evaluate(stop)  # where the run was stopped before or in it
        order = shuffled(
            len(reader), settings.batch_size, settings.seed, self.iteration, settings.iterations
        )
        self.network.train()
        since, logged = time.perf_counter(), self.iteration
        for batch in batches(reader, order, settings.cache, self.device):
            losses = self._step(batch)
            self.iteration += 1
            last = self.iteration == settings.iterations
            if self.iteration % settings.log_every == 0 or last:
                seconds = (time.perf_counter() - since) / (self.iteration - logged)
                on_step(self._log(losses, seconds))
                since, logged = time.perf_counter(), self.iteration
            if self._evaluate(stop):
                since, logged = time.perf_counter(), self.iteration
            if stop.asked and not last:
                raise Stopped
            if self._checkpoint_due():
                self._save()

    def _step(self, batch: StoredBatch) -> dict[str, Tensor]:
        """One optimiser step; returns the batch's losses and the gradient's norm."""
        settings = self.settings
        factor = learning_rate_factor(settings, self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        random = checkpoint.random_states(self.augment.generator)
        values = batch.held()  # before the device has them alone, which would be waited for
        whole = self.augment(batch.to(self.device))
        divisors = self.criterion.divisors(whole.labels, whole.annotated, whole.present)
        sums: dict[str, Tensor] = {}
        for first in range(0, settings.batch_size, settings.micro_batch):
            of_part = slice(first, first + settings.micro_batch)
            part = whole.part(of_part.start, of_part.stop)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                out = self.network(part.frames, part.maskige, part.sound, part.present)
            losses = self.criterion(
                out,
                part.labels,
                annotated=part.annotated,
                values=values[of_part],
                divisors=divisors,
            )
            self.scaler.scale(losses.total).backward()
            for name, value in {**losses.weighted, "total": losses.total}.items():
                sums[name] = sums.get(name, 0) + value.detach()
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self._look_back(random)
        scale = self.scaler.scale(torch.ones((), device=self.device))
        judged = (self.iteration + 1, batch, random, sums["total"], norm, scale)
        # As GradScaler.step does, which looks at the gradients alone.
        self.optimiser.found_inf = self.health.judge(*judged)  # pyright: ignore[reportAttributeAccessIssue]
        self.optimiser.step()
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return {**sums, "gradient_norm": norm.detach()}

    def _look_back(self, random: dict[str, Tensor] | None = None) -> None:
        """Tell of the last step if it was bad; end the run when it was one of several in a row.

        random: states of the generators before the step in hand, when one is.
        """
        bad = self.health.last()
        if bad is None:
            return
        file, clips = self._keep(bad), list(bad.batch.clips)
        told = {"loss": bad.loss, "gradient_norm": bad.gradient_norm, "clips": clips}
        self.journal.write(bad.iteration, "skipped", told)
        if bad.in_a_row < MOST_IN_A_ROW:
            self._on_problem(
                f"{bad}: step not taken, batch and clips ({', '.join(clips)}) are in {file}; if it "
                f"comes again, lower learning_rate, or set precision=bf16 or fp32"
            )
            return
        self._save(random)
        raise ComboError(
            f"{bad} of {self.run.root}, as {bad.in_a_row} times in a row (batches and clips: "
            f"{file.parent}); the network is as before: begin a run with it, --set "
            f"initialisation={self.run.root}, and a lower learning_rate, or precision=bf16 or "
            f"fp32, or go on past these clips: {remedies.resume(self.run.root)}"
        )

    def _keep(self, bad: BadStep) -> Path:
        """Write a bad step's batch and the state before it, which is the state now."""
        file = self.run.skipped / f"{bad.iteration:06d}.pt"
        state = dataclasses.replace(self._state(), iteration=bad.iteration - 1, random=bad.random)
        batch = {k: v for k, v in vars(bad.batch).items() if k != "clips"}
        with self.run.writing():
            checkpoint.save(file, {**vars(state), "batch": batch, "clips": list(bad.batch.clips)})
            for old in durable.listed(self.run.skipped)[:-MOST_IN_A_ROW]:
                durable.remove(old)
        return file

    def _log(self, losses: Mapping[str, Tensor], seconds: float) -> Step:
        """Write a log entry. seconds: of an iteration. Here, and not in a step, the host waits."""
        self._look_back()
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        skipped = int(self.health.skipped)
        rate = learning_rate_factor(self.settings, self.iteration - 1)
        told: dict[str, Any] = {
            **values,
            "skipped": skipped,
            "clips_per_second": round(self.settings.batch_size / seconds, 3),
            "learning_rate": self.settings.learning_rate * rate,
        }
        if self.scaler.is_enabled():
            told["loss_scale"] = self.scaler.get_scale()
        self.journal.write(self.iteration, "train", told)
        left = seconds * (self.settings.iterations - self.iteration)
        return Step(self.iteration, self.settings.iterations, values["total"], left, skipped)

    def _evaluate(self, stop: Stop) -> bool:
        """Evaluate where it is time. Raises Stopped between two clips; it then begins again."""
        settings, val = self.settings, self.readers.get("val")
        due = self.iteration % settings.evaluate_every == 0 or self.iteration == settings.iterations
        if not due or self.evaluated == self.iteration or val is None or not val.labelled:
            return False
        self._look_back()

        def on_clip(*_: object) -> None:
            if stop.asked:
                raise Stopped

        result = measure(self.network, val, self.device, self.dtype, on_clip=on_clip)
        self.network.train()
        self.evaluated = self.iteration
        self.journal.write(self.iteration, "val", {"M_J": result.m_j, "M_F": result.m_f})
        if result.m_j > self.best:
            self.best = result.m_j
            with self.run.writing():
                checkpoint.save(self.run.best, self._state())
        return True

    def _checkpoint_due(self) -> bool:
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        by_time = minutes and time.monotonic() - self._saved_at >= 60 * minutes
        return bool(by_time) or (bool(every) and self.iteration % every == 0)

    def _save(self, random: dict[str, Tensor] | None = None) -> None:
        """Write last.pt; the one there becomes previous.pt. random: as in `_look_back`."""
        self._look_back(random)
        state = self._state()
        if random is not None:
            state.random = random
        with self.run.writing():
            checkpoint.save(self.run.last, state, keep=self.run.previous)
        self._saved, self._saved_at = (self.iteration, self.evaluated), time.monotonic()

    def _state(self) -> Checkpoint:
        return Checkpoint(
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scaler=self.scaler.state_dict(),
            iteration=self.iteration,
            best=self.best,
            random=checkpoint.random_states(self.augment.generator),
            evaluated=self.evaluated,
            skipped=int(self.health.skipped),
            in_a_row=int(self.health.in_a_row),
        )
