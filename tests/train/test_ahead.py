"""Batches for a GPU are there before they are asked for, in their order, and so are errors.

Without a GPU, what PyTorch makes of one is stood in for: streams, and memory that is pinned. With
one, tests/train/test_gpu.py.
"""

import contextlib
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from fake_gpu import GPU, fake_gpu
from torch import Tensor

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train import loader
from combo.pipeline.train.ahead import sent_ahead
from combo.pipeline.train.loader import StoredBatch

CPU = torch.device("cpu")


Happened = list[tuple[str, object]]


class Computing:
    """As the stream that computes."""

    def __init__(self, happened: Happened) -> None:
        self._happened = happened

    def wait_stream(self, other: object) -> None:
        self._happened.append(("waits for", other))


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Happened:
    """What is asked of the GPU, in its order; pinning, on a thread, apart."""
    happened: Happened = []
    computing = Computing(happened)
    pinning, send = threading.local(), loader.send

    @contextlib.contextmanager
    def within(what: str, which: object) -> Iterator[None]:
        happened.append((f"enters {what}", which))
        yield
        happened.append((f"leaves {what}", which))

    @contextlib.contextmanager
    def device(which: object) -> Iterator[None]:
        pinning.where = which
        yield
        del pinning.where

    def pin(tensor: Tensor) -> Tensor:
        assert pinning.where == CPU, "where the current device is that of the batches"
        pinned = tensor.clone()
        pinned.is_pinned_here = True
        return pinned

    def sent(values: Tensor, to: torch.device) -> Tensor:
        assert values.is_pinned_here
        happened.append(("sends", values.shape))
        return send(values, to)

    def record(tensor: Tensor, stream: object) -> None:
        assert stream is computing
        happened.append(("keeps", tensor.shape))

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: "beside")
    monkeypatch.setattr(torch.cuda, "stream", partial(within, "stream"))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(Tensor, "record_stream", record)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(loader, "send", sent)
    return happened


def test_batches_sent_ahead_are_those_that_are_read(
    finished: Manifest, open_split, happened: Happened
) -> None:
    reader = open_split(finished)
    order = [[3, 1], [0, 3], [2, 5]]
    sent = sent_ahead(reader.batches(order), CPU)
    for read in reader.batches(order):
        happened.clear()
        ours = next(sent)
        shapes = [value.shape for value in ours.shown.values()]
        assert happened == [
            ("enters stream", "beside"),
            *[("sends", shape) for shape in shapes],
            ("leaves stream", "beside"),
            ("waits for", "beside"),
            *[("keeps", shape) for shape in shapes],
        ]
        assert ours.clips == read.clips
        assert ours.shown.keys() == read.shown.keys() > {"frames", "labels", "sound"}
        for name, value in ours.shown.items():
            assert torch.equal(value, read.shown[name])
            assert value.stride() == read.shown[name].stride()
        assert ours.values is not None
        assert torch.equal(ours.values, read.held())
    assert next(sent, None) is None


@pytest.mark.usefixtures("happened")
def test_one_batch_is_read_ahead_and_what_fails_fails_in_its_turn(
    finished: Manifest, open_split
) -> None:
    batch, asked = open_split(finished).read([0, 1]), threading.Semaphore(0)

    def two_and_an_error() -> Iterator[StoredBatch]:
        for _ in range(2):
            asked.release()
            yield batch
        asked.release()
        raise ComboError("the third is damaged")

    sent = sent_ahead(two_and_an_error(), CPU)
    next(sent)
    assert asked.acquire(timeout=60)
    assert asked.acquire(timeout=60)  # nobody has asked for it yet
    assert not asked.acquire(timeout=0.1)
    next(sent)
    assert asked.acquire(timeout=60)
    with pytest.raises(ComboError, match="the third is damaged"):
        next(sent)
    assert list(sent) == []


@pytest.mark.usefixtures("happened")
def test_a_batch_that_is_left_leaves_no_thread(finished: Manifest, open_split) -> None:
    sent = sent_ahead(open_split(finished).batches([[0], [1], [2]]), CPU)
    next(sent)
    assert any(thread.name.startswith("pinned") for thread in threading.enumerate())
    sent.close()
    assert not any(thread.name.startswith("pinned") for thread in threading.enumerate())


def test_a_batch_goes_to_a_gpu_and_comes_back_whole(finished: Manifest, open_split) -> None:
    batch = open_split(finished).read([0, 1])
    with fake_gpu() as watch:
        there = batch.sent(GPU)
        assert not watch.waits
        back = there.sent(CPU)
    assert {value.device for value in there.shown.values()} == {GPU}
    assert {value.device for value in vars(back).values() if isinstance(value, Tensor)} == {CPU}
