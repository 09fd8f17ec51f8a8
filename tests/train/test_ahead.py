"""Batches for a GPU are there before they are asked for, in their order, and so are errors.

Without a GPU, what PyTorch makes of one is stood in for: streams, and memory that is pinned. With
one, tests/train/test_gpu.py.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_gpu import GPU, fake_gpu
from torch import Tensor

from combo.pipeline.errors import ComboError
from combo.pipeline.manifest import Manifest
from combo.pipeline.train.ahead import sent_ahead
from combo.pipeline.train.loader import StoredBatch

CPU = torch.device("cpu")


class Streams:
    """What a stream waited for, and which tensors were told to which stream."""

    def __init__(self) -> None:
        self.waited, self.told = list[Any](), list[Tensor]()

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    computing = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: "beside")
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, _: computing.told.append(tensor))
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    return computing


def test_batches_sent_ahead_are_those_that_are_read(
    finished: Manifest, open_split, streams: Streams
) -> None:
    reader = open_split(finished)
    order = [[3, 1], [0, 3], [2, 5]]
    sent = list(sent_ahead(reader.batches(order), CPU))
    for ours, read in zip(sent, reader.batches(order), strict=True):
        assert ours.clips == read.clips
        assert ours.shown.keys() == read.shown.keys() > {"frames", "labels", "sound"}
        for name, value in ours.shown.items():
            assert torch.equal(value, read.shown[name])
            assert value.stride() == read.shown[name].stride()
        assert ours.values is not None
        assert torch.equal(ours.values, read.held())
    assert streams.waited == ["beside"] * 3
    assert [id(each) for each in streams.told] == [
        id(value) for batch in sent for value in batch.shown.values()
    ]


@pytest.mark.usefixtures("streams")
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


@pytest.mark.usefixtures("streams")
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
