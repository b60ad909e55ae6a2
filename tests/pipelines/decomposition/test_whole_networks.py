"""Speed-up of whole networks: where they are measured, a machine with two speeds, times of other runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import timings, whole_networks
from decomp.pipelines.decomposition.speed_ratio import RoundsRule, SpeedRatio
from decomp.pipelines.decomposition.timings import Timings
from decomp.pipelines.decomposition.whole_networks import WholeNetworks, in_new_processes
from decomp.runtimes.eager import Eager
from tests.pipelines.digit_runs import Collected

SHAPE, FOUND = (1, 1, 4, 4), SpeedRatio(4.0, 2.0, 2.0, 2.0, (2.0, 2.0))


class Helper:
    """A helper process that answers, or fails at the second request."""

    def __init__(self, runtime, shape):
        self.asked, self.ended = [], False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended = True

    def ratio(self, original, planned, rule):
        self.asked.append((original, planned, rule))
        if len(self.asked) == 2:
            raise DecompError("network", "it cannot be written")
        return FOUND


def test_processors_are_timed_in_new_processes_and_gpus_in_this_one():
    assert in_new_processes(torch.device("cpu")) and not in_new_processes(torch.device("cuda"))


def test_where_a_new_process_fails_this_one_measures_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_networks, "FreshProcess", Helper)
    timed = []

    def fake(networks, shape, device, rounds, **options):
        timed.append((sorted(networks), options["warm_up"]))
        return {name: [4.0 if name != "planned" else 1.0] * 4 for name in networks}

    monkeypatch.setattr(timings, "latencies", fake)
    original, planned, reporter = nn.Conv2d(1, 1, 1), nn.Identity(), Collected()
    known = Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager())
    with WholeNetworks(known, original, SHAPE, reporter) as networks:
        helper = networks._fresh
        rule = RoundsRule((1.0, 3.0), (0.9, 3.1))
        assert networks.ratio(planned, rule) == FOUND and networks.process == "new" and not timed
        assert helper.asked == [(original, planned, rule)]
        assert networks.ratio(planned).speedup == 4.0 and networks.process == "same" and helper.ended
        assert timed[0] == (["again", "original", "planned"], timings.WARM_UP) and timed[1][1] == 1
        networks.ratio(planned)
        assert len(helper.asked) == 2
    assert [m for m in reporter.messages if "timed in the process that plans" in m and "it cannot be written" in m]


@pytest.mark.parametrize("new", [True, False])
def test_the_original_is_prepared_again_in_this_process_only(tmp_path, monkeypatch, new):
    monkeypatch.setattr(whole_networks, "FreshProcess", Helper)
    monkeypatch.setattr(whole_networks, "in_new_processes", lambda device: new)
    known, prepared = Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager()), []
    monkeypatch.setattr(known, "keep_prepared", lambda network, shape: prepared.append(network))
    original = nn.Identity()
    with WholeNetworks(known, original, SHAPE, Collected()) as networks:
        networks.prepare_anew()
    assert prepared == ([] if new else [original])


def test_a_machine_that_stays_slow_is_waited_for_once_and_said_each_time(tmp_path, monkeypatch):
    """The original takes 4 ms at first, then 6 ms, then 4 ms again; the shortest is kept for other plans."""
    monkeypatch.setattr(whole_networks, "FreshProcess", Helper)
    known, answers = (
        Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager()),
        iter([4.0, 6.0, 6.0, 3.9, 4.0]),
    )
    with WholeNetworks(known, nn.Identity(), SHAPE, Collected()) as networks:
        waited_for = []

        def measured(planned, rule):
            waited_for.append(rule.fastest)
            time = next(answers)
            return SpeedRatio(time, time / 2, 2.0, 2.0, (2.0, 2.0))

        monkeypatch.setattr(networks, "_measured", measured)
        slowed = [networks.ratio(nn.Identity()).slowed for _ in range(5)]
    assert waited_for == [None, 4.0, 6.0, 6.0, 3.9]
    assert slowed == pytest.approx([0.0, 0.5, 0.5, 0.0, 0.1 / 3.9])
    assert Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager()).fastest_original == 3.9


class Watched:
    """A machine on which each measurement takes 0.1 s of a pretended clock; `original_ms` are its times in turn.

    The last of them lasts.
    """

    def __init__(self, tmp_path, monkeypatch, original_ms, new=True, original=None):
        self.now, self.times, self.asked = 0.0, list(original_ms), []
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.passes)
        monkeypatch.setattr(whole_networks, "time", clock)
        monkeypatch.setattr(whole_networks, "FreshProcess", Helper)
        monkeypatch.setattr(whole_networks, "in_new_processes", lambda device: new)
        known, self.reporter = Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager()), Collected()
        self.networks = WholeNetworks(known, original or nn.Identity(), SHAPE, self.reporter)
        monkeypatch.setattr(self.networks, "_measured", self.measured)

    def passes(self, seconds):
        self.now += seconds

    def measured(self, planned, rule):
        self.now += 0.1
        self.asked.append(rule)
        time = self.times.pop(0) if len(self.times) > 1 else self.times[0]
        return SpeedRatio(time, time / 2, 2.0, 2.0, (2.0, 2.0))


def test_the_original_is_timed_several_times_over_some_seconds(tmp_path, monkeypatch):
    machine = Watched(tmp_path, monkeypatch, [4.8, 4.8, 1.8, 4.8])
    with machine.networks as networks:
        assert networks.watch() == 1.8 == networks.shortest  # the slow state came first, and came back
        assert len(machine.asked) >= whole_networks.FEWEST and set(machine.asked) == {whole_networks.BRIEF}
        assert whole_networks.SPREAD <= machine.now < whole_networks.SPREAD + 1
        assert networks.ratio(nn.Identity()).slowed == pytest.approx(3.0 / 1.8)
    assert not machine.reporter.messages


def test_a_machine_that_is_slower_than_it_was_is_waited_for_and_the_wait_is_said(tmp_path, monkeypatch):
    machine = Watched(tmp_path, monkeypatch, [1.8, *[4.8] * 22, 1.9])
    with machine.networks as networks:
        networks.ratio(nn.Identity())
        assert networks.watch(15.0) == 1.9 and 10 < machine.now < 15
        assert machine.reporter.messages == [
            "the original takes 4.8 ms, 2.67 times as long as at other times: waiting up to 15 s for the machine"
        ]


def test_a_machine_that_stays_slow_is_waited_for_no_longer_than_said(tmp_path, monkeypatch):
    machine = Watched(tmp_path, monkeypatch, [1.8, 4.8])
    with machine.networks as networks:
        networks.ratio(nn.Identity())
        assert networks.watch(15.0) == 4.8 and 15 <= machine.now < 16
        found = networks.ratio(nn.Identity())
        assert machine.asked[-1].fastest == 4.8  # the blocks of this measurement do not wait again
        assert found.disturbances == ["the original takes 2.67 times as long as at other times"]


def test_networks_that_take_long_to_prepare_are_watched_once_and_in_this_process_too(tmp_path, monkeypatch):
    for new, seconds in ((True, whole_networks.LONG), (False, 0.0)):
        machine = Watched(tmp_path, monkeypatch, [4.0], new)
        with machine.networks as networks:
            measured = machine.measured

            def slow(planned, rule, measured=measured, machine=machine, seconds=seconds):
                machine.now += seconds
                return measured(planned, rule)

            monkeypatch.setattr(networks, "_measured", slow)
            networks.watch(15.0)
        assert len(machine.asked) == 1


def test_a_time_of_another_run_tells_that_the_machine_is_slow_from_the_first_measurement(tmp_path, monkeypatch):
    """Networks of one structure are one network here; an untraced one is not kept, nor one in another process."""
    monkeypatch.setenv("DECOMP_KNOWN_TIMES", str(tmp_path / "known.json"))
    first, second = (trace(nn.Conv2d(1, 1, 1).eval(), "net") for _ in range(2))
    with Watched(tmp_path / "a", monkeypatch, [1.8], original=first).networks as networks:
        networks.watch()
    with Watched(tmp_path / "b", monkeypatch, [4.8], original=second).networks as networks:
        assert networks.shortest == 1.8 and networks.ratio(nn.Identity()).slowed == pytest.approx(3.0 / 1.8)
    for kept_apart in ({"new": False, "original": second}, {"original": nn.Conv2d(1, 1, 1)}):
        with Watched(tmp_path / "c", monkeypatch, [4.8], **kept_apart).networks as networks:
            assert networks.shortest is None
    monkeypatch.setenv("DECOMP_KNOWN_TIMES", "off")
    with Watched(tmp_path / "d", monkeypatch, [4.8], original=second).networks as networks:
        assert networks.shortest is None and networks.ratio(nn.Identity()).slowed == 0.0
