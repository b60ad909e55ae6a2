"""Several pieces of work at a time, with the same bytes as a result however many there are."""

import torch
from joblib import Parallel, delayed


def in_parallel(function, tasks, workers=None):
    """Results of ``function(*task)`` for each task, in order.

    Threads, because the work is in libraries that let others run meanwhile, and the tasks are large. Each has one
    thread for its sums, also when it is alone, so that they are taken in the same order for any number of workers.

    Parameters
    ----------
    function : callable
    tasks : list of tuple
    workers : int, optional
        As many as torch may use threads where not given.

    Returns
    -------
    list
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Parallel(n_jobs=min(workers or threads, max(len(tasks), 1)), backend="threading")(
            delayed(_alone)(function, task) for task in tasks
        )
    finally:
        torch.set_num_threads(threads)


def _alone(function, task):
    torch.set_num_threads(1)  # a thread that torch saw before keeps its own number
    return function(*task)


def in_batches(items, size_of, most, budget):
    """Lists of items, each at most ``most`` long and, from its second item on, within a budget of sizes."""
    batch, used = [], 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == most or used + size > budget):
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size
    if batch:
        yield batch
