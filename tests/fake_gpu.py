"""A GPU that is not there: its tensors have a shape and a device, but no numbers.

PyTorch's fake tensors raise where a number of the device is asked for; copies from the host that
would stop the device are seen on their way. What the host has of its own is as ever.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from combo.model import matching

GPU = torch.device("cuda", 1)
"""Not the first one: what lies on the current device instead does not go with it."""


class Watch(TorchDispatchMode):
    """Sees what brings numbers to the device or from there and has the host wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._pinned: dict[int, Tensor] = {}
        """By the address of its storage, which lives as long as this entry."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        goes = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        pins = kwargs.get("pin_memory", False)
        if not goes and not pins and not any(isinstance(each, FakeTensor) for each in given):
            with _disable_current_modes():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if kwargs.get("pin_memory"):
            self._pinned[out.untyped_storage()._cdata] = out
        if isinstance(out, Tensor) and func.namespace == "aten":
            self._look(func, args, kwargs, given, out)
        return out

    def _look(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
        out: Tensor,
    ) -> None:
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        asynchronous = copies and (kwargs.get("non_blocking", False) or args[2:3] == (True,))
        if out.device.type == "cuda":
            for source in (each for each in given if each.device.type == "cpu"):
                pinned = source.untyped_storage()._cdata in self._pinned
                if not (asynchronous and pinned) and (copies or source.dim()):
                    self.waits.append(f"{func} of {tuple(source.shape)}")
        elif copies and not asynchronous and given[-1].device.type == "cuda":  # what is copied
            self.waits.append(f"{func} to the host of {tuple(given[-1].shape)}")


@contextmanager
def fake_gpu() -> Iterator[Watch]:
    """Inside, device `GPU` is there whether it is or not."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        yield watch


def answered(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Has ones arrive where the matching asks for its costs; the shapes of what was asked for."""
    shapes: list[tuple[int, ...]] = []

    def fetch(values: Tensor) -> Callable[[], np.ndarray]:
        shapes.append(tuple(values.shape))
        return lambda: np.ones(values.shape, np.float32)

    patch.setattr(matching, "fetch", fetch)
    return shapes


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """`torch.autocast`, which asks whether the device is there."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


@torch.no_grad()
def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """The gradients of all leaves: `loss.backward()`, whose threads need a real device."""
    root = loss.grad_fn
    assert root is not None
    waits_for: Counter[Node] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits_for[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    given: dict[Node, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    leaves: dict[Tensor, Tensor] = {}
    ready = [root]
    while ready:
        node = ready.pop()
        sums = given.pop(node, {})
        if hasattr(node, "variable"):
            leaves[node.variable] = sums[0]
            continue
        inputs = [sums.get(number) for number in range(len(node._input_metadata))]
        call = node if callable(node) else node.apply  # a function of ours
        outputs = call(*inputs) if sums else ()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for number, (following, place) in enumerate(node.next_functions):
            if following is None:
                continue
            gradient = outputs[number] if number < len(outputs) else None
            if gradient is not None:
                of_node = given.setdefault(following, {})
                expected = following._input_metadata[place]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                of_node[place] = of_node[place] + gradient if place in of_node else gradient
            waits_for[following] -= 1
            if not waits_for[following]:
                ready.append(following)
    return leaves
