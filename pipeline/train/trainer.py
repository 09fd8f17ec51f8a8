"""The training loop: batch, forward, loss, backward, step; now and then an evaluation."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...model.interface import Network
from .. import remedies
from ..devices import choose_device
from ..errors import ComboError
from . import checkpoint
from .augment import Augment
from .checkpoint import Checkpoint
from .evaluate import measure
from .journal import Journal
from .loader import ClipReader, StoredBatch, shuffled
from .presets import RunSettings, TrainSettings
from .run_folder import RunFolder


@dataclass(frozen=True)
class Step:
    """What the trainer tells after a step. seconds_left: at the speed of the last steps."""

    iteration: int
    iterations: int
    loss: float
    seconds_left: float


def learning_rate_factor(settings: TrainSettings, iteration: int) -> float:
    """Polynomial decay to 0, after a linear warm-up (the public code has none)."""
    factor = (1 - iteration / settings.iterations) ** settings.power
    return factor * min(1.0, (iteration + 1) / max(1, settings.warmup))


class Trainer:
    """One run: a network, its data and its folder.

    readers: "train", and "val" where there is a val split.
    """

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
        self.iteration, self.best = 0, -math.inf
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

    def train(self, on_step: Callable[[Step], None] = lambda _: None) -> None:
        """Train to the end.

        Raises ComboError when the loss is no longer a number, the run's folder cannot be written,
        or another process trains there.
        """
        settings, reader = self.settings, self.readers["train"]
        with self.run.claimed():
            if self.run.state() != self._begun_from:
                raise ComboError(
                    f"another process has trained {self.run.root} meanwhile; "
                    f"go on with: {remedies.resume(self.run.root)}"
                )
            if self.iteration == 0:
                self._save(self.run.last)  # from here on the run can be resumed
            journal = Journal(self.run, self.iteration)
            self.network.train()
            order = shuffled(
                len(reader), settings.batch_size, settings.seed, self.iteration, settings.iterations
            )
            since, logged = time.perf_counter(), self.iteration
            for batch in reader.batches(order):
                losses = self._step(batch)
                self.iteration += 1
                last = self.iteration == settings.iterations
                evaluate = self.iteration % settings.evaluate_every == 0 or last
                # An evaluation writes a checkpoint, which must not hold a network gone NaN.
                if self.iteration % settings.log_every == 0 or evaluate:
                    values = {name: float(value) for name, value in losses.items()}
                    if not math.isfinite(values["total"]):
                        raise ComboError(
                            f"the loss is {values['total']} at iteration {self.iteration} of "
                            f"{self.run.root}; lower learning_rate, or set precision=bf16 or fp32"
                        )
                    seconds = (time.perf_counter() - since) / (self.iteration - logged)
                    journal.write(self.iteration, "train", values | self._speed(seconds))
                    on_step(
                        Step(
                            self.iteration,
                            settings.iterations,
                            values["total"],
                            seconds * (settings.iterations - self.iteration),
                        )
                    )
                    since, logged = time.perf_counter(), self.iteration
                if evaluate:
                    self._evaluate(journal)
                    since, logged = time.perf_counter(), self.iteration

    def _step(self, batch: StoredBatch) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, averaged over micro-batches."""
        settings = self.settings
        factor = learning_rate_factor(settings, self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        parts = settings.batch_size // settings.micro_batch
        sums: dict[str, Tensor] = {}
        for first in range(0, settings.batch_size, settings.micro_batch):
            stored = batch.part(first, first + settings.micro_batch)
            part = self.augment(stored.to(self.device))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                out = self.network(part.frames, part.maskige, part.sound, part.present)
            losses = self.criterion(out, part.labels, annotated=part.annotated)
            self.scaler.scale(losses.total / parts).backward()
            for name, value in {**losses.weighted, "total": losses.total}.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        return {**sums, "gradient_norm": norm.detach()}

    def _speed(self, seconds: float) -> dict[str, float]:
        return {
            "clips_per_second": round(self.settings.batch_size / seconds, 3),
            "learning_rate": self.settings.learning_rate
            * learning_rate_factor(self.settings, self.iteration - 1),
        }

    def _evaluate(self, journal: Journal) -> None:
        if "val" in self.readers and self.readers["val"].labelled:
            result = measure(self.network, self.readers["val"], self.device, self.dtype)
            journal.write(self.iteration, "val", {"M_J": result.m_j, "M_F": result.m_f})
            self.network.train()
            if result.m_j > self.best:
                self.best = result.m_j
                self._save(self.run.best)
        self._save(self.run.last)

    def _save(self, path: Path) -> None:
        with self.run.writing():
            self._write(path)

    def _write(self, path: Path) -> None:
        checkpoint.save(
            path,
            Checkpoint(
                network=self.network.state_dict(),
                optimiser=self.optimiser.state_dict(),
                scaler=self.scaler.state_dict(),
                iteration=self.iteration,
                best=self.best,
                random=checkpoint.random_states(self.augment.generator),
            ),
        )
