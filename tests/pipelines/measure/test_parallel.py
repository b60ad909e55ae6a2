"""Work in parallel: in order, with the same bytes, and without leaving a trace on the thread settings."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decomp.pipelines.measure import parallel
from decomp.pipelines.measure.parallel import in_batches, in_parallel
from decomp.time_spent import TimeSpent, part


def product_of(seed, n):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3 * n, generator=generator, dtype=torch.float64)
    return torch.linalg.eigvalsh(x @ x.T / n).numpy().tobytes(), torch.get_num_threads()


def test_any_number_of_workers_gives_the_same_bytes_in_order(two_threads):
    tasks = [(seed, 40 + 30 * seed) for seed in range(6)]
    results = [in_parallel(product_of, tasks, workers) for workers in (1, 2, 5)]
    assert results[0] == results[1] == results[2]
    assert {threads for _, threads in results[0]} == {1}
    sizes = [len(np.frombuffer(found)) for found, _ in results[0]]
    assert sizes == [n for _, n in tasks]
    assert torch.get_num_threads() == 2


def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=30)
    assert sorted(in_parallel(lambda _: meeting.wait(), [(i,) for i in range(3)], 3)) == [0, 1, 2]


def test_linear_algebra_of_gpus_is_loaded_before_the_first_thread_needs_it(monkeypatch):
    """Loaded by several threads at once it fails: seen on a GPU as "lazy wrapper should be called at most once"."""
    order, load = [], parallel._load_linear_algebra_of_gpus
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch, "eye", lambda n, device: order.append((device, threading.get_ident())) or torch.ones(1, 1)
    )
    load.cache_clear()
    for _ in range(2):
        in_parallel(lambda i: order.append(i), [(i,) for i in range(3)], 1)
    load.cache_clear()
    assert order == [("cuda", threading.get_ident()), 0, 1, 2, 0, 1, 2]


def test_an_error_comes_out_as_it_is_and_the_threads_are_given_back(two_threads):
    def fail(word):
        raise ValueError(word)

    with pytest.raises(ValueError, match="this"):
        in_parallel(fail, [("this",)])
    assert torch.get_num_threads() == 2
    assert in_parallel(fail, []) == []


@given(st.lists(st.integers(1, 9)), st.integers(1, 4), st.integers(1, 20))
def test_batches_are_whole_in_order_and_within_their_limits(items, most, budget):
    batches = list(in_batches(items, lambda item: item, most, budget))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) <= most and (len(batch) == 1 or sum(batch) <= budget) for batch in batches)
    # Nothing that would still fit is left for the next one.
    for one, other in zip(batches, batches[1:]):
        assert len(one) == most or sum(one) + other[0] > budget


def busy(seconds):
    with part("work"):
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass


def test_time_spent_in_threads_is_a_part_of_the_time_around_them():
    with TimeSpent().recording() as spent, part("curves"):
        in_parallel(busy, [(0.01,)] * 4, 2)
    assert spent.processor_seconds["", "curves: work"] >= 0.04
    assert 0 < spent.seconds["", "curves: work"] <= sum(spent.seconds.values())
