"""Batches on their way to a GPU while the one before them is worked on.

A thread puts the next batch into pinned memory. It is copied to the GPU on a stream beside the one
that computes, which waits for it; the host does not.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from .loader import StoredBatch


def sent_ahead(batches: Iterable[StoredBatch], device: torch.device) -> Iterator[StoredBatch]:
    """The same batches on a GPU. What reading one raises is raised where its turn would be."""
    source = iter(batches)

    def pinned() -> StoredBatch | None:
        batch = next(source, None)
        if batch is None:
            return None
        with torch.cuda.device(device):  # a thread begins with the first one
            # What the labels hold is looked up here, while the host has them.
            return replace(batch, values=batch.held()).pinned()

    beside = torch.cuda.Stream(device)
    with ThreadPoolExecutor(1, "pinned") as thread:
        coming = thread.submit(pinned)
        while (batch := coming.result()) is not None:
            coming = thread.submit(pinned)
            with torch.cuda.stream(beside):
                there = batch.sent(device)
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(beside)
            for tensor in there.shown.values():
                tensor.record_stream(computing)  # so that its memory is not given away before
            yield there
