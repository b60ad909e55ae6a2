"""Networks timed in turn, on clocks that are known and never on this machine's speed."""

import numpy as np
import torch
from torch import nn

from decomp.runtimes import timing
from decomp.runtimes.timing import latencies, random_images, times_within

SHAPE = (1, 8, 8)
CPU = torch.device("cpu")


class Noting(nn.Module):
    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, images):
        self.calls.append((self.name, tuple(images.shape), float(images.sum()), torch.is_grad_enabled()))
        return images


def test_networks_are_timed_in_turn_on_the_same_images():
    calls = []
    networks = {name: Noting(name, calls) for name in "abc"}
    times = latencies(networks, (4, *SHAPE), CPU, 5)
    assert {name: len(values) for name, values in times.items()} == {"a": 5, "b": 5, "c": 5}
    timed = calls[3 * timing.WARM_UP :]
    assert [name for name, *_ in timed] == list("abc") * 5
    assert {rest for _, *rest_ in calls for rest in [tuple(rest_)]} == {((4, *SHAPE), calls[0][2], False)}


def test_slow_networks_get_fewer_rounds_but_never_too_few(monkeypatch):
    monkeypatch.setattr(timing, "MAX_SECONDS", 0.0)
    times = latencies({"a": nn.Identity(), "b": nn.Identity()}, (1, *SHAPE), CPU, 100)
    assert [len(values) for values in times.values()] == [timing.MIN_ROUNDS] * 2


class Clock:
    """A clock that a network moves by the time it takes."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)

    def taking(self, seconds):
        def run(images):
            self.now += next(seconds)

        return run


def test_times_are_milliseconds_of_each_round_after_the_warm_up(monkeypatch):
    clock, warm_up = Clock(monkeypatch), [9.0] * timing.WARM_UP
    networks = {"a": clock.taking(iter([*warm_up, 1.0, 2.0, 4.0])), "b": clock.taking(iter([*warm_up, 0.5, 0.25, 8.0]))}
    assert latencies(networks, (2, *SHAPE), CPU, 3) == {"a": [1000, 2000, 4000], "b": [500, 250, 8000]}


def test_a_fast_network_runs_once_more_before_each_timed_run_and_a_slow_one_does_not(monkeypatch):
    """The times of runs that are not timed are 7 s here; the first round of each has none before it."""
    clock, warm_up = Clock(monkeypatch), [9.0] * timing.WARM_UP
    fast = clock.taking(iter([*warm_up, 0.004, 7.0, 0.005, 7.0, 0.02, 0.003]))  # slow in its third round
    slow = clock.taking(iter([*warm_up, 2.0, 3.0, 4.0, 5.0]))
    times = latencies({"fast": fast, "slow": slow}, (2, *SHAPE), CPU, 4, warm_below=10.0)
    assert np.allclose(times["fast"], [4, 5, 20, 3]) and times["slow"] == [2000, 3000, 4000, 5000]


def test_runs_before_the_rounds_end_after_some_seconds_and_a_network_with_two_names_has_them_once(monkeypatch):
    clock = Clock(monkeypatch)
    slow = clock.taking(iter([9.0, 1.0, 2.0, 3.0, 4.0]))  # one run takes longer than the second that is given
    fast = clock.taking(iter([*[0.1] * timing.WARM_UP, 0.5, 0.25]))
    times = latencies({"a": slow, "b": fast, "c": slow}, (1, *SHAPE), CPU, 2, warm_seconds=1.0)
    assert times["a"] == [1000, 3000] and times["c"] == [2000, 4000] and np.allclose(times["b"], [500, 250])


def test_no_round_starts_after_the_longest_time(monkeypatch):
    clock = Clock(monkeypatch)
    networks = {name: clock.taking(iter([1.0] * 100)) for name in "ab"}
    # Rounds take two seconds: after the fourth, eight have passed, which is more than seven.
    times = latencies(networks, (1, *SHAPE), CPU, 100, max_seconds=7.0, min_rounds=2)
    assert [len(values) for values in times.values()] == [4, 4]


def test_images_are_the_same_each_time_in_either_layout():
    first, last = (random_images((2, 3, 6, 6), CPU, layout) for layout in ("contiguous", "channels-last"))
    assert torch.equal(first, last) and first.stride() == (108, 36, 6, 1) and last.stride() == (108, 1, 18, 3)
    assert random_images((2, 9), CPU, "channels-last").shape == (2, 9)


def test_times_within_a_network_are_its_parts_and_the_rest(monkeypatch):
    clock = iter(np.cumsum(np.r_[0.0, np.ones(10_000)]))  # every look at the clock is a second after the last
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    parts, rest = times_within(network, ["0", "2"], (1, *SHAPE), CPU, 4)
    # Six looks a round: start, 0 in, 0 out, 2 in, 2 out, stop.
    assert parts == {"0": 1000.0, "2": 1000.0} and rest == 3000.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_the_time_of_a_module_is_that_of_all_its_calls(monkeypatch):
    clock = iter(np.cumsum(np.r_[0.0, np.ones(10_000)]))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    conv = nn.Conv2d(1, 1, 3)
    parts, rest = times_within(nn.Sequential(conv, nn.ReLU(), conv).eval(), ["0"], (1, *SHAPE), CPU, 4)
    assert parts == {"0": 2000.0} and rest == 3000.0
