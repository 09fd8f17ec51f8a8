"""One process or many: who is who, and what they tell each other.

torchrun, or a scheduler's script (see `jobs/training.py`), starts equal processes, each of which
reads its share of every batch. Gradients, divisors and losses are summed, so that all take the same
step; the first one writes. What only the others do not need to say is said by the first one.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...model.interface import Network
from ...model.transfers import fetch, send
from ..devices import choose_device
from ..errors import ComboError
from ..jobs.stopping import EXIT_CODE, Stopped

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of a run. rank: this one's number; local: the same among those of its host."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, clips: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch, which they share evenly, in order."""
        size = len(clips) // self.count
        return clips[self.rank * size : (self.rank + 1) * size]

    def places(self, count: int) -> range:
        """Where its `count` clips stand in the whole batch."""
        return range(self.rank * count, (self.rank + 1) * count)

    def device(self, wanted: str) -> torch.device:
        """The device of this process: each of a host takes another GPU. Raises ComboError."""
        device = choose_device(wanted)
        if self.count > 1 and str(device) == "cuda":  # without a number: any
            device = torch.device("cuda", self.local % torch.cuda.device_count())
            torch.cuda.set_device(device)
        return device

    def alike(self, do: Callable[[], Value]) -> Value:
        """Does what all processes do. Where some meet a ComboError, all end, with one line."""
        value: Value | None = None
        error: ComboError | None = None
        try:
            value = do()
        except ComboError as met:
            error = met
        failed = self.gather(error is not None)
        if error is not None and failed.index(True) == self.rank:
            raise error
        if any(failed):
            sys.exit(1)
        return cast(Value, value)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each. A GPU's host does not wait for it."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def gather(self, value: Value) -> list[Value]:
        """What each process gave, in their order; waits for all."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def spread(self, network: Network) -> nn.Module:
        """The network, whose gradients are summed over all processes while they come."""
        if self.count == 1:
            return network
        for parameter in network.parameters():
            if 1 in parameter.shape and parameter.is_contiguous() and parameter.requires_grad:
                parameter.register_hook(partial(_laid_out, parameter.stride()))
        spread = DistributedDataParallel(
            network,
            find_unused_parameters=not network.all_learn,
            gradient_as_bucket_view=True,
        )
        spread.broadcast_buffers = False  # nothing changes them
        spread.register_comm_hook(None, _sum)
        return spread

    def ended(self, end: BaseException) -> BaseException:
        """What to raise for an end that all processes come to: the first one says why."""
        if self.first:
            return end
        codes: dict[type, int] = {Stopped: EXIT_CODE, KeyboardInterrupt: 130}
        return SystemExit(codes.get(type(end), 1))


ALONE = Processes()


class Agreement:
    """What all processes do after a step, though only some want it, such as to stop.

    Wishes go along with what is exchanged anyway, and are looked at when the step is over: a GPU
    has long since sent them by then, and nobody waits for anybody.
    """

    def __init__(self, together: Processes) -> None:
        self.together = together
        self._arriving: Callable[[], Any] = list[float]

    def sent_with(self, values: Tensor, *wishes: bool) -> Tensor:
        """The sum of values over all processes."""
        if self.together.count == 1:
            return values
        wanted = send(torch.tensor(wishes, dtype=values.dtype), values.device)
        total = self.together.total(torch.cat([values.flatten(), wanted]))
        self._arriving = fetch(total[-len(wishes) :])
        return total[: -len(wishes)].view(values.shape)

    def reached(self, *now: bool) -> list[bool]:
        """Which of the wishes that were sent some process has. now: this one's, which count when it
        is alone."""
        if self.together.count == 1:
            return list(now)
        return [bool(wanted) for wanted in self._arriving()]


def parts(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
    """Within the block gradients are kept for the batch's last part, with which they are summed."""
    if last or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    return network.no_sync()


@contextlib.contextmanager
def joined() -> Generator[Processes]:
    """Joins the processes that this one was started with, for as long as the block lasts.

    Raises ComboError when they do not find each other.
    """
    count = _number("WORLD_SIZE", 1)
    if count == 1:
        yield ALONE
        return
    together = Processes(_number("RANK", 0), count, _number("LOCAL_RANK", 0))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise ComboError(
            f"process {together.rank} of {count} does not find the others "
            f"({_reason(error)}); start them with torchrun"
        ) from error
    try:
        yield together
    except BaseException as error:
        if not lost_one(error):
            raise
        said = ComboError(
            "another process is gone, or does not answer; the same command begins anew"
        )
        raise together.ended(said) from error
    dist.destroy_process_group()


def lost_one(error: BaseException) -> bool:
    """Whether this says that another process is gone, or does not answer any more."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(name in text for name in ("gloo", "NCCL"))
    )


def _laid_out(strides: Sequence[int], gradient: Tensor) -> Tensor:
    """A gradient with the strides of its parameter, which has its numbers in the same order: they
    differ for a dimension of one place, where they say nothing. PyTorch warns of them."""
    return gradient.as_strided(gradient.shape, strides) if gradient.is_contiguous() else gradient


def _sum(
    _: None,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage] - DDP looks at it
) -> torch.futures.Future[Tensor]:
    """Losses are divided by what belongs to the whole batch: gradients add up, and are no mean."""
    done = dist.all_reduce(bucket.buffer(), async_op=True)
    assert done is not None
    return done.get_future().then(lambda future: future.value()[0])


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
