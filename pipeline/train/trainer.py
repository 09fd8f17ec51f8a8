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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...model.interface import Network
from .. import remedies
from ..devices import threads
from ..errors import ComboError
from ..jobs.stopping import Stop, Stopped
from . import checkpoint, draws, processes
from .augment import Augment
from .average import Average
from .cache import batches
from .checkpoint import Checkpoint
from .elsewhere import in_windows
from .evaluate import PRECISION, measure
from .gradients import add_gradients
from .health import MOST_IN_A_ROW, Health, several, tell
from .journal import Journal
from .loader import ClipReader, StoredBatch, shuffled
from .optimisation import learning_rate_factor, optimiser_of, set_learning_rate
from .pace import Pace, Step, in_words
from .panels import Panels
from .presets import RunSettings
from .processes import ALONE, Agreement, Processes
from .profiling import Profile
from .run_folder import RunFolder


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
        self.network = network.to(self.device)
        self.criterion = settings.criterion().to(self.device)
        self.optimiser = optimiser_of(network, self.settings)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.settings.precision == "fp16"
        )
        self.augment = Augment(self.settings.augment)
        self.average = Average(self.network, self.settings.ema) if self.settings.ema else None
        if self.settings.checkpointing != "none":  # after the copy, whose blocks are its own
            network.recompute(self.settings.checkpointing == "all")
        self._spread: nn.Module = self.network
        self._agreement = Agreement(together)
        self.iteration, self.evaluated, self.best = 0, 0, -math.inf
        self.health = Health(self.device)
        self._saved: tuple[int, int] | None = None  # at which iteration, and what was evaluated
        self._saved_at = time.monotonic()
        self._last_is_bad = False  # whether the run's last.pt was written after a bad step
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
        self._last_is_bad = state.in_a_row > 0

    @property
    def saved(self) -> int:
        """The iteration of the run's last checkpoint."""
        return self._saved[0] if self._saved else 0

    def train(
        self,
        on_step: Callable[[Step], None] = lambda _: None,
        stop: Stop | None = None,
        on_problem: Callable[[str], None] = lambda _: None,
        on_evaluation: Callable[[int, float, float], None] = lambda *_: None,
        profile: Profile | None = None,
    ) -> None:
        """Train to the end.

        stop: when asked, the step in hand is finished and a checkpoint written.
        on_problem: gets a line for each step that was not taken since something was no number,
        but for what half precision skips as a matter of course.
        on_evaluation: gets iteration, M_J on the val split, and the best so far.
        profile: of some steps, is written by the first process.
        Raises Stopped; ComboError when several steps in a row could not be taken, the run's folder
        cannot be written, another run trains there, or a process of this one is gone.
        """
        if profile is not None:
            left = self.settings.iterations - self.iteration
            self.together.alike(partial(profile.demand_steps, left))
        stop = stop or Stop()
        go_on = f"go on with: {remedies.resume(self.run.root)}"
        claimed = self.run.claimed() if self.together.first else contextlib.nullcontext()
        with threads(self.settings.threads), claimed:
            if self.together.first and self.run.state() != self._begun_from:
                raise ComboError(f"another process has trained {self.run.root} meanwhile; {go_on}")
            self._on_problem, self._on_evaluation = on_problem, on_evaluation
            if self.together.first:
                if self.iteration == 0:
                    self._write()  # from here on the run can be resumed
                self.journal = Journal(self.run, self.iteration, self.evaluated)
                self.journal.note_changes(self._all_settings)
            try:
                if len({*self.together.gather(self.iteration)}) > 1:
                    raise ComboError(f"the processes do not see the same {self.run.last}; {go_on}")
                if self.settings.compile:
                    self.network.compile_parts()
                self._spread = self.together.spread(self.network)
                self._go(on_step, stop, profile if self.together.first else None)
                if self._saved != (self.iteration, self.evaluated):
                    self._save()
            except Stopped:
                self._save()
                raise self.together.ended(Stopped(go_on)) from None
            except Exception as error:
                if stop.asked and _of_a_compiler(error):
                    self._save()  # it heard the signal, too: schedulers tell everybody
                    raise self.together.ended(Stopped(go_on)) from error
                if not processes.lost_one(error):
                    raise
                raise self._left_behind(go_on) from error

    def _go(self, on_step: Callable[[Step], None], stop: Stop, profile: Profile | None) -> None:
        settings, reader = self.settings, self.readers["train"]
        self._evaluate(stop)  # where the run was stopped before or in it
        order = shuffled(
            len(reader), settings.batch_size, settings.seed, self.iteration, settings.iterations
        )
        self.network.train()
        mine = map(self.together.share, order)
        read = batches(reader, mine, settings.cache, self.device)
        pace = Pace(self.device, settings.batch_size)
        steps = pace.over(read)
        if profile is not None:
            steps = profile.over(steps, self.run, self.iteration)
        first = self.iteration + 1  # of which is told at once: hundreds may take hours
        for batch in steps:
            losses = pace.counted(partial(self._step, batch, stop))
            self.iteration += 1
            last = self.iteration == settings.iterations
            if self.iteration % settings.log_every == 0 or last:
                on_step(self._log(losses, pace))
            elif self.iteration == first:
                on_step(self._told(float(losses["total"]), pace.seconds))
            if self._evaluate(stop):
                pace.restart()
            stopping, saving = self._agreement.reached(stop.asked, self._late())
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
        set_learning_rate(self.optimiser, settings, self.iteration)
        values = batch.held()  # before the device has them alone, which would be waited for
        whole = batch.to(self.device)
        places = self.together.places(len(batch.clips))
        drawn = partial(draws.generators, settings.seed, self.iteration, places)
        whole = self.augment(whole, self.augment.draw(drawn(draws.AUGMENTATION), whole))
        divisors = self.criterion.divisors(whole.labels, whole.annotated, whole.present)
        divisors = self._agreement.sent_with(divisors, stop.asked, self._late())
        points = drawn(draws.POINTS, self.device)
        draws.seed_layers(settings.seed, self.iteration, self.together.rank)
        names, sums = add_gradients(
            self._spread, self.criterion, whole, settings, self.scaler,
            values=values, divisors=divisors, points=points,
        )  # fmt: skip
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

    def _late(self) -> bool:
        """Whether it is time for a checkpoint; the first process knows."""
        minutes = self.settings.checkpoint_minutes
        late = time.monotonic() - self._saved_at >= 60 * minutes
        return self.together.first and minutes > 0 and late

    def _look_back(self) -> None:
        """Tell of the last step if it was bad; end the run when it was one of several in a row."""
        bad = self.health.last()
        if bad is None:
            return
        # Of the host: each process has a GPU of its own, and whoever reads the file may have none.
        shares = self.together.gather(bad.batch.sent(torch.device("cpu")))
        whole = StoredBatch.of(shares)
        if self.together.first:
            bad = dataclasses.replace(bad, batch=whole)
            precision = self.settings.precision
            tell(bad, self.run, self._state(), precision, self.journal, self._on_problem)
        if bad.in_a_row >= MOST_IN_A_ROW:
            if self.together.first:
                self._write()
            raise self.together.ended(several(bad, self.run, self.settings.precision))

    def _log(self, losses: Mapping[str, Tensor], pace: Pace) -> Step:
        """Write a log entry. Here, and not in a step, the host waits."""
        self._look_back()
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        rate = learning_rate_factor(self.settings, self.iteration - 1)
        seconds, of_pace = pace.told()
        step = self._told(values["total"], seconds, in_words(of_pace))
        told: dict[str, Any] = {
            **values,
            "skipped": step.skipped,
            **of_pace,
            "seconds_left": round(step.seconds_left),
            "learning_rate": self.settings.learning_rate * rate,
        }
        if self.scaler.is_enabled():
            told["loss_scale"] = self.scaler.get_scale()
        self._note("train", told)
        return step

    def _told(self, loss: float, seconds: float, pace: str = "") -> Step:
        """seconds: of a step."""
        whole = self.settings.iterations
        left = seconds * (whole - self.iteration)
        return Step(self.iteration, whole, loss, left, int(self.health.skipped), pace)

    def _evaluate(self, stop: Stop) -> bool:
        """Evaluate where it is time. Raises Stopped after some clips; it then begins again."""
        settings, val = self.settings, self.readers.get("val")
        due = self.iteration % settings.evaluate_every == 0 or self.iteration == settings.iterations
        if not due or self.evaluated == self.iteration or val is None or not val.labelled:
            return False
        self._look_back()
        network = self.network if self.average is None else self.average.network
        panels = Panels(val, self.together)
        how: dict[str, Any] = {"stop": stop, "together": self.together}
        measured = in_windows(network, val, self.readers["train"].plan.frames_per_clip)
        result = measure(measured, val, self.device, on_clip=panels.seen, **how)
        self.network.train()
        self.evaluated = self.iteration
        if result.m_j > self.best:  # first of all, so that what is told of has its network
            self.best = result.m_j
            if self.together.first:
                with self.run.writing():
                    state = network.state_dict()
                    settings = self._all_settings.as_dict()
                    checkpoint.save_network(
                        self.run.best, state, self.iteration, self.best, self.run.identity or "",
                        settings,
                    )  # fmt: skip
        self._note("val", {"M_J": result.m_j, "M_F": result.m_f, "precision": PRECISION})
        if self.together.first:
            self.journal.show(self.iteration, panels.pictures())
        self._on_evaluation(self.iteration, result.m_j, self.best)
        return True

    def _left_behind(self, go_on: str) -> BaseException:
        """What to raise where another process is gone. The first one saves the step before, or
        one that takes its place."""
        place = contextlib.nullcontext(True) if self.together.first else self.run.inherited()
        with place as mine:
            if not mine:
                return SystemExit(1)
            self._write()
        return ComboError(
            f"another process of {self.run.root} is gone, or does not answer; "
            f"iteration {self.iteration} is saved, {go_on}"
        )

    def _note(self, kind: str, values: Mapping[str, Any]) -> None:
        if self.together.first:
            self.journal.write(self.iteration, kind, values)

    def _save(self) -> None:
        """Write a checkpoint; all processes come here."""
        self._look_back()
        if self.together.first:
            self._write()
        else:  # which may have to write in its place
            self._last_is_bad = int(self.health.in_a_row) > 0

    def _write(self) -> None:
        """Write last.pt; the one there becomes previous.pt, but for one after a bad step: of a run
        that diverges the network from before that is kept."""
        state, before = self._state(), None if self._last_is_bad else self.run.previous
        with self.run.writing():
            checkpoint.save(self.run.last, state, keep=before)
        self._last_is_bad = state.in_a_row > 0
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
            run=self.run.identity or "",
            settings=self._all_settings.as_dict(),
        )


def _of_a_compiler(error: Exception) -> bool:
    """Whether compiling a part failed, which comes before anything of its step is changed."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
