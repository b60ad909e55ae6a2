"""Parallel tasks in threads; results are bit-identical for any number of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed

from decomp.time_spent import TimeSpent, current

Result = TypeVar("Result")
Item = TypeVar("Item")


def in_parallel(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], workers: int | None = None
) -> list[Result]:
    """Results of ``function(*task)`` for each task, in order.

    Threads are enough, because the work is done in libraries that release the interpreter lock. Within a task torch
    uses one thread, also with one worker, so that sums are taken in the same order for any number of workers.

    Parameters
    ----------
    function : callable
    tasks : list of tuple
    workers : int, optional
        Default: the number of threads that torch may use.

    Returns
    -------
    list
    """
    threads = torch.get_num_threads()
    if torch.cuda.is_initialized():
        _load_linear_algebra_of_gpus()
    torch.set_num_threads(1)
    try:
        done = Parallel(n_jobs=min(workers or threads, max(len(tasks), 1)), backend="threading")(
            delayed(_in_one_thread)(function, task) for task in tasks
        )
    finally:
        torch.set_num_threads(threads)
    recording = current()
    if recording is not None:
        recording.absorb(spent for _, spent in done)
    return [result for result, _ in done]


@cache
def _load_linear_algebra_of_gpus() -> None:
    """Let torch load its library of linear algebra on GPUs, which fails where several threads are the first to need it.

    Seen as "lazy wrapper should be called at most once", https://github.com/pytorch/pytorch/issues/90613.
    """
    torch.linalg.inv(torch.eye(1, device="cuda"))


def _in_one_thread(function: Callable[..., Result], task: tuple[Any, ...]) -> tuple[Result, TimeSpent]:
    torch.set_num_threads(1)  # a thread that torch has used before keeps its earlier number
    with TimeSpent(time.thread_time).recording() as spent:
        return function(*task), spent


def in_batches(
    items: Iterable[Item], size_of: Callable[[Item], float], most: int, budget: float
) -> Iterator[list[Item]]:
    """Split items into consecutive batches.

    Parameters
    ----------
    items : iterable
    size_of : callable
        Size of an item, in the unit of `budget`.
    most : int
        Largest length of a batch.
    budget : float
        Largest sum of sizes in a batch; a larger item is a batch of its own.

    Yields
    ------
    list
    """
    batch: list[Item] = []
    used = 0.0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == most or used + size > budget):
            yield batch
            batch, used = [], 0.0
        batch.append(item)
        used += size
    if batch:
        yield batch
