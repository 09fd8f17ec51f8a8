"""The GPU kernels of deformable attention: their numbers, and that they compile; needs no GPU."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from combo.model.levels import Levels

triton = pytest.importorskip("triton", reason="Triton is not there")


def test_the_kernels_give_the_numbers_of_plain_pytorch() -> None:
    tests = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_kernels_compile_for_a_gpu(dtype: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from combo.model import sampling_kernels as kernels

    sizes = {
        "HEADS": 8,
        "LEVELS": 3,
        "POINTS": 4,
        "WIDTH": 32,
        "CHANNELS": 32,
        "ROWS": kernels.ROWS,
    }
    arrays = {
        "value": f"*{dtype}", "maps": "*i32", "locations": "*fp32", "weights": "*fp32",
        "out": f"*{dtype}", "gradient": f"*{dtype}", "of_value": "*fp32",
        "of_locations": "*fp32", "of_weights": "*fp32", "value_stride": "i32", "rows": "i32",
    }  # fmt: skip
    for kernel in (kernels._forward, kernels._backward):
        signature = {name: arrays.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, constexprs=sizes)
        for capability in (80, 90):
            made = triton.compile(
                source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1}
            )
            assert len(made.asm["cubin"]) > 1000


def test_the_kernels_start_where_their_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the current device, which `device=cuda:1` does not make another one."""
    from combo.model import sampling_kernels as kernels

    current, started = list[torch.Tensor](), list[list[torch.Tensor]]()

    @contextlib.contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, _grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **__: started.append([*current])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(kernels, name, Kernel())
    value, places, weights = (
        torch.rand(1, 4, 2, 3),
        torch.rand(1, 4, 2, 1, 2, 2),
        torch.rand(1, 4, 2, 1, 2),
    )
    maps = Levels.of([(2, 2)], 2, 2).maps
    out = kernels.sample(value, maps, places, weights)
    kernels.gradients(out, value, maps, places, weights)
    assert [[each.shape for each in of_kernel] for of_kernel in started] == [[value.shape]] * 2
