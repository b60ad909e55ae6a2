"""Batches prepared ahead: the same ones, in order, by one other thread, and only for a GPU."""

import threading
import time

import pytest
import torch

from decomp.pipelines.training.ahead import DEPTH, ahead

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def batches(count, made=None, fails_at=None):
    for number in range(count):
        if number == fails_at:
            raise ValueError(f"batch {number}")
        if made is not None:
            made.append((number, threading.current_thread()))
        yield torch.full((2, 1), float(number)), torch.tensor([number]) if number % 2 else None


@pytest.fixture(autouse=True)
def no_gpu_to_lock_pages_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_batches_are_the_same_in_the_same_order(device, count):
    got = list(ahead(batches(count), device))
    assert [float(images[0, 0]) for images, _ in got] == list(range(count))
    assert [None if labels is None else int(labels) for _, labels in got] == [
        number if number % 2 else None for number in range(count)
    ]


def test_for_a_gpu_the_next_ones_are_made_in_another_thread_while_one_is_used():
    made = []
    walk = ahead(batches(9, made), GPU)
    next(walk)
    for images, _ in walk:
        if int(images[0, 0]) == 3:
            break
    time.sleep(0.1)  # in which the thread makes all that it was asked for
    walk.close()
    threads = {thread for _, thread in made}
    assert len(threads) == 1 and threading.current_thread() not in threads
    # No more than those that wait were made, and the thread is gone.
    assert len(made) == 3 + 1 + DEPTH and not threads.pop().is_alive()


def test_for_a_cpu_nothing_is_made_before_it_is_needed():
    made = []
    next(ahead(batches(9, made), CPU))
    assert made == [(0, threading.current_thread())]


def test_an_error_comes_at_its_batch():
    got = []
    with pytest.raises(ValueError, match="batch 2"):
        got.extend(int(images[0, 0]) for images, _ in ahead(batches(5, fails_at=2), GPU))
    walk = ahead(batches(5, fails_at=2), GPU)
    assert [int(next(walk)[0][0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2"):
        next(walk)
