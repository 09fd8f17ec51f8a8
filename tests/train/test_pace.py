"""What a run tells of its speed (`pace.py`)."""

import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from combo.pipeline.train.pace import PEAK, Pace

PRODUCTS = 2 * 5 * 7 * 11
"""Of one forward of `layer`; without what the backward direction takes."""


def layer() -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(7, 11), torch.randn(5, 7)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """On a device of a thousand products a second."""
    monkeypatch.setattr(Pace, "_peak", lambda _: 1e3)
    return Pace(torch.device("cpu"), clips=4)


def test_the_first_steps_products_are_counted_and_held_against_the_device(pace: Pace) -> None:
    part, x = layer()
    began = time.perf_counter()
    for _ in pace.over(range(3)):
        pace.counted(lambda: part(x))
        time.sleep(0.05)
    seconds, told = pace.told()
    assert 0.05 < seconds < time.perf_counter() - began
    assert told["mfu"] == pytest.approx(PRODUCTS / seconds / 1e3, rel=1e-2)
    assert told["clips_per_second"] == pytest.approx(4 / seconds, rel=1e-2)
    assert 0 <= told["waited"] < 0.5


def test_compiled_parts_are_counted_before_they_are_compiled(pace: Pace) -> None:
    part, x = layer()
    expected = part(x)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    part.compile(fullgraph=True, backend=backend)
    for number in range(3):
        assert torch.equal(pace.counted(lambda: part(x)), expected)
        assert len(graphs) == min(number, 1)
    _, told = pace.told()
    assert told["mfu"] > 0


def test_nothing_is_counted_where_the_speed_is_not_known() -> None:
    pace = Pace(torch.device("cpu"), clips=1)
    part, x = layer()
    pace.counted(lambda: part(x))
    assert "mfu" not in pace.told()[1]
    assert all(flops > 1e14 for flops in PEAK.values())
