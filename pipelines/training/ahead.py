"""Batches that are prepared while a GPU computes the step before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None]

#: Batches that wait; a second one evens out batches that take longer.
DEPTH = 2


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches in the same order; for a GPU, a thread prepares the next ones meanwhile.

    On a CPU nothing is prepared ahead: the processors are those that compute the step.

    Parameters
    ----------
    batches : iterable of (images, labels or None)
        On the CPU. Its errors are raised here, at the batch that they belong to.
    device : torch.device
        Where the batches are needed; for a GPU they are in page-locked memory, from which they are copied without
        waiting.
    """
    if device.type != "cuda":
        yield from batches
        return
    iterator = iter(batches)
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        waiting = deque(pool.submit(_next, iterator) for _ in range(DEPTH))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(_next, iterator))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _next(iterator: Iterator[Batch]) -> Batch | None:
    batch = next(iterator, None)
    if batch is None or not torch.cuda.is_available():
        return batch
    images, labels = batch
    return images.pin_memory(), None if labels is None else labels.pin_memory()
