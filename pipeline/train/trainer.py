"""The training loop: batch, forward, loss, backward, step; now and then an evaluation or a
checkpoint.

Several processes go through it side by side, each with its share of every batch (`processes`). What
they must agree on, whether to stop or to save, goes with the divisors, which they exchange anyway.
All exchange of a step is over before the optimiser is asked: when a process is gone, the others
still have the network of the step before.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...model.interface import Network, label_values
from ...model.transfers import fetch, send
from .. import durable, remedies
from ..errors import ComboError
from ..jobs.stopping import Stop, Stopped
from . import checkpoint, draws, processes
from .augment import Augment
from .average import Average
from .checkpoint import Checkpoint
from .evaluate import PRECISION, measure
from .health import MOST_IN_A_ROW, BadStep, Health
from .journal import Journal
from .loader import ClipReader, StoredBatch, shuffled
from .presets import RunSettings, TrainSettings
from .processes import ALONE, Processes
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

    readers: "train", and "val" where there is a val split.  together: the processes of the run.
    """

    journal: Journal

    def __init__(
        self,
        run: RunFolder,
        settings: RunSettings,
        network: Network,
        readers: Mapping[str, ClipReader],
        together: Processes = ALONE,
    ) -> None:
        self.run, self.settings, self.readers = run, settings.train, readers
        self._all_settings = settings
        self.together = together
        self.settings.demand_shared_by(together.count)
        self.device = together.device(self.settings.device)
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.network = network.to(self.device)
        if self.settings.checkpointing != "none":
            network.recompute(self.settings.checkpointing == "all")
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
        self.augment = Augment(self.settings.augment)
        self.average = Average(self.network, self.settings.ema) if self.settings.ema else None
        self._spread: nn.Module = self.network
        self._agreed: Callable[[], Any] = lambda: (False, False)
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
            if self.average is not None:
                self.average.network.load_state_dict(state.averaged)
        except Exception as error:  # whatever an odd state leads PyTorch into
            raise checkpoint.misfit(self.run.last, error) from error
        if state.iteration > self.settings.iterations:
            raise ComboError(
                f"iterations is {self.settings.iterations}, but {self.run.root} has seen "
                f"{state.iteration}; give at least as many"
            )
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
        cannot be written, another run trains there, or a process of this one is gone.
        """
        stop = stop or Stop()
        go_on = f"go on with: {remedies.resume(self.run.root)}"
        with self.run.claimed() if self.together.first else contextlib.nullcontext():
            if self.together.first and self.run.state() != self._begun_from:
                raise ComboError(f"another process has trained {self.run.root} meanwhile; {go_on}")
            self._on_problem = on_problem
            if self.together.first:
                if self.iteration == 0:
                    self._write()  # from here on the run can be resumed
                self.journal = Journal(self.run, self.iteration)
                self._note_changes()
            try:
                if len({*self.together.gather(self.iteration)}) > 1:
                    raise ComboError(f"the processes do not see the same {self.run.last}; {go_on}")
                if self.settings.compile:
                    self.network.compile_parts()
                self._spread = self.together.spread(self.network)
                self._go(on_step, stop)
                if self._saved != (self.iteration, self.evaluated):
                    self._save()
            except Stopped:
                self._save()
                raise self.together.ended(Stopped(go_on)) from None
            except Exception as error:
                if not processes.lost_one(error):
                    raise
                if self.together.first:
                    self._write()
                raise self.together.ended(
                    ComboError(
                        f"another process of {self.run.root} is gone, or does not answer; "
                        f"iteration {self.iteration} is saved, {go_on}"
                    )
                ) from error

    def _note_changes(self) -> None:
        """Settings that the run goes on with otherwise than before."""
        before = dataclasses.asdict(self.run.settings().train)
        changed = {k: v for k, v in dataclasses.asdict(self.settings).items() if v != before[k]}
        if changed:
            self.run.write_settings(self._all_settings)
            self.journal.write(self.iteration, "settings", changed)

    def _go(self, on_step: Callable[[Step], None], stop: Stop) -> None:
        settings, reader = self.settings, self.readers["train"]
        self._evaluate(stop)  # where the run was stopped before or in it
        order = shuffled(
            len(reader), settings.batch_size, settings.seed, self.iteration, settings.iterations
        )
        self.network.train()
        since, logged = time.perf_counter(), self.iteration
        for batch in reader.batches(map(self.together.share, order)):
            losses = self._step(batch, stop)
            self.iteration += 1
            last = self.iteration == settings.iterations
            if self.iteration % settings.log_every == 0 or last:
                seconds = (time.perf_counter() - since) / (self.iteration - logged)
                on_step(self._log(losses, seconds))
                since, logged = time.perf_counter(), self.iteration
            if self._evaluate(stop):
                since, logged = time.perf_counter(), self.iteration
            stopping, saving = self._wishes(stop) if self.together.count == 1 else self._agreed()
            if stopping and not last:
                raise Stopped
            every = settings.checkpoint_every
            if saving or (every and self.iteration % every == 0):
                self._save()

    def _step(self, batch: StoredBatch, stop: Stop) -> dict[str, Tensor]:
        """One optimiser step; returns the batch's losses and the gradient's norm.

        batch: this process's share.  stop: what it tells the others with it.
        """
        settings = self.settings
        factor = learning_rate_factor(settings, self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        values = label_values(batch.labels)  # before the device has them, which would be waited for
        whole = self.augment(batch.to(self.device), self._draws(draws.AUGMENTATION, batch))
        divisors = self.criterion.divisors(whole.labels, whole.annotated, whole.present)
        divisors = self._exchanged(divisors, stop)
        points = self._draws(draws.POINTS, batch)
        draws.seed_layers(settings.seed, self.iteration, self.together.rank)
        sums = torch.zeros((), device=self.device)
        names: list[str] = []
        for first in range(0, len(points), settings.micro_batch):
            of_part = slice(first, first + settings.micro_batch)
            part = whole.part(of_part.start, of_part.stop)
            with processes.parts(self._spread, last=of_part.stop >= len(points)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    out = self._spread(part.frames, part.maskige, part.sound, part.present)
                losses = self.criterion(
                    out,
                    part.labels,
                    annotated=part.annotated,
                    values=values[of_part],
                    divisors=divisors,
                    draws=points[of_part],
                )
                self.scaler.scale(losses.total).backward()
            names = [*losses, "total"]
            sums = sums + torch.cat([losses.stacked, losses.total[None]]).detach()
        sums = self.together.total(sums)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self._look_back()
        scale = self.scaler.scale(torch.ones((), device=self.device))
        # As GradScaler.step does, which looks at the gradients alone.
        self.optimiser.found_inf = self.health.judge(  # pyright: ignore[reportAttributeAccessIssue]
            self.iteration + 1, batch, sums[-1], norm, scale
        )
        self.optimiser.step()
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.network)
        return {**dict(zip(names, sums.unbind(), strict=True)), "gradient_norm": norm.detach()}

    def _draws(self, what: int, batch: StoredBatch) -> list[torch.Generator]:
        """Of each clip of this process's share."""
        count = len(batch.clips)
        places = range(self.together.rank * count, (self.together.rank + 1) * count)
        device = self.device if what == draws.POINTS else torch.device("cpu")
        return draws.generators(self.settings.seed, self.iteration, places, what, device)

    def _wishes(self, stop: Stop) -> tuple[bool, bool]:
        """Whether this process is to stop, and whether it is time for a checkpoint."""
        minutes = self.settings.checkpoint_minutes
        late = time.monotonic() - self._saved_at >= 60 * minutes
        return stop.asked, self.together.first and minutes > 0 and late

    def _exchanged(self, divisors: Tensor, stop: Stop) -> Tensor:
        """The whole batch's divisors. What the processes agree on arrives with the matching."""
        if self.together.count == 1:
            return divisors
        wishes = torch.tensor(self._wishes(stop), dtype=divisors.dtype)
        wishes = send(wishes, divisors.device)
        total = self.together.total(torch.cat([divisors.flatten(), wishes]))
        self._agreed = fetch(total[-2:])
        return total[:-2].view(divisors.shape)

    def _look_back(self) -> None:
        """Tell of the last step if it was bad; end the run when it was one of several in a row."""
        bad = self.health.last()
        if bad is None:
            return
        shares = self.together.gather(bad.batch)
        if self.together.first:
            self._tell(dataclasses.replace(bad, batch=StoredBatch.of(shares)))
        elif bad.in_a_row >= MOST_IN_A_ROW:
            raise SystemExit(1)

    def _tell(self, bad: BadStep) -> None:
        file, clips = self._keep(bad), list(bad.batch.clips)
        told = {"loss": bad.loss, "gradient_norm": bad.gradient_norm, "clips": clips}
        self.journal.write(bad.iteration, "skipped", told)
        if bad.in_a_row < MOST_IN_A_ROW:
            self._on_problem(
                f"{bad}: step not taken, batch and clips ({', '.join(clips)}) are in {file}; if it "
                f"comes again, lower learning_rate, or set precision=bf16 or fp32"
            )
            return
        self._write()
        raise ComboError(
            f"{bad} of {self.run.root}, as {bad.in_a_row} times in a row (batches and clips: "
            f"{file.parent}); the network is as before: begin a run with it, --set "
            f"initialisation={self.run.root}, and a lower learning_rate, or precision=bf16 or "
            f"fp32, or go on past these clips: {remedies.resume(self.run.root)}"
        )

    def _keep(self, bad: BadStep) -> Path:
        """Write a bad step's batch and the state before it, which is the state now."""
        file = self.run.skipped / f"{bad.iteration:06d}.pt"
        state = dataclasses.replace(self._state(), iteration=bad.iteration - 1)
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
        self._note("train", told)
        left = seconds * (self.settings.iterations - self.iteration)
        return Step(self.iteration, self.settings.iterations, values["total"], left, skipped)

    def _evaluate(self, stop: Stop) -> bool:
        """Evaluate where it is time. Raises Stopped after a clip; it then begins again."""
        settings, val = self.settings, self.readers.get("val")
        due = self.iteration % settings.evaluate_every == 0 or self.iteration == settings.iterations
        if not due or self.evaluated == self.iteration or val is None or not val.labelled:
            return False
        self._look_back()
        network = self.network if self.average is None else self.average.network
        how: dict[str, Any] = {"stop": stop, "together": self.together}
        result = measure(network, val, self.device, **how)
        self.network.train()
        self.evaluated = self.iteration
        self._note("val", {"M_J": result.m_j, "M_F": result.m_f, "precision": PRECISION})
        if result.m_j > self.best:
            self.best = result.m_j
            if self.together.first:
                with self.run.writing():
                    state = network.state_dict()
                    checkpoint.save_network(self.run.best, state, self.iteration, self.best)
        return True

    def _note(self, kind: str, values: Mapping[str, Any]) -> None:
        if self.together.first:
            self.journal.write(self.iteration, kind, values)

    def _save(self) -> None:
        """Write a checkpoint; all processes come here."""
        self._look_back()
        if self.together.first:
            self._write()

    def _write(self) -> None:
        """Write last.pt; the one there becomes previous.pt."""
        with self.run.writing():
            checkpoint.save(self.run.last, self._state(), keep=self.run.previous)
        self._saved, self._saved_at = (self.iteration, self.evaluated), time.monotonic()

    def _state(self) -> Checkpoint:
        return Checkpoint(
            network=self.network.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scaler=self.scaler.state_dict(),
            iteration=self.iteration,
            best=self.best,
            evaluated=self.evaluated,
            skipped=int(self.health.skipped),
            in_a_row=int(self.health.in_a_row),
            averaged=self.average.network.state_dict() if self.average else {},
        )
