"""A test that leaves its process changed for the next one fails: `unchanged`, used by all tests.

A test passes or fails by itself only if it finds the process as any other test would. Random
states alone are put back without a word, since every layer that is built draws from them.
"""

import gc
import logging
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

STATUS = Path("/proc/self/status")
"""Where Linux shows the umask, which can elsewhere be read only by changing it."""
MEMORY_SWITCHES = ("mallopt",)
"""The C library tells nobody how they stand; that they were looked up is seen."""

_looked_up: list[str] = []


def _notice(event: str, values: tuple[object, ...]) -> None:
    if event == "ctypes.dlsym" and values[1] in MEMORY_SWITCHES:
        _looked_up.append(str(values[1]))


sys.addaudithook(_notice)


def _umask() -> str:
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((line for line in lines if line.startswith("Umask")), "")


def _limits() -> dict[str, tuple[int, int]]:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def _autocast() -> dict[str, object]:
    return {
        kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
    }


def _environment() -> dict[str, str]:
    """Without what pytest says of the test that runs, and PyTorch's compiler when it is imported
    or first compiles for a GPU."""
    compiler = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TRITON_PTXAS_PATH")
    others = ("PYTEST_CURRENT_TEST", *compiler)
    return {name: value for name, value in os.environ.items() if name not in others}


STATE: dict[str, Callable[[], object]] = {
    "threads": torch.get_num_threads,
    "threads between operators": torch.get_num_interop_threads,
    "gradients": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "cuDNN": lambda: (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    "TF32": lambda: torch.backends.cudnn.allow_tf32,
    "precision of products": torch.get_float32_matmul_precision,
    "autocast": _autocast,
    "environment": _environment,
    "working folder": Path.cwd,
    "signal handlers": lambda: {s.name: signal.getsignal(s) for s in signal.Signals},
    "umask": _umask,
    "limits": _limits,
    "memory switches looked up": lambda: len(_looked_up),
    "import path": lambda: list(sys.path),
    "bytecode": lambda: sys.dont_write_bytecode,
    "garbage collector": lambda: (gc.isenabled(), gc.get_threshold()),
    "NumPy's errors": np.geterr,
    "log level": lambda: logging.getLogger().level,
}


def state() -> dict[str, object]:
    return {name: read() for name, read in STATE.items()}


_before: dict[str, object] = {}


def pytest_collection_finish() -> None:
    """What importing the tests has changed is none of a test's."""
    global _before
    _before = state()


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Fails the test after which the process is not what it was; one failure for one change.

    A fixture of a wider scope is made before this one: what it changes is told of the first test
    that uses it.
    """
    global _before
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    before, _before = _before, state()
    changed = [f"{name}: {told(before[name], now)}" for name, now in _before.items()
               if before[name] != now]  # fmt: skip
    if changed:
        pytest.fail("the test leaves its process changed; " + "; ".join(changed), pytrace=False)


def told(before: object, now: object) -> str:
    """What changed, of a dictionary only its changed entries."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [n for n in before.keys() | now.keys() if before.get(n) != now.get(n)]
        return ", ".join(f"{n} {before.get(n)!r} -> {now.get(n)!r}" for n in sorted(names))
    return f"{before!r} -> {now!r}"
