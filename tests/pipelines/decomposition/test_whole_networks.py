"""Speed-up of whole networks: the process in which they are measured, and the return to this one."""

import pytest
import torch
from torch import nn

from decomp.errors import DecompError
from decomp.pipelines.decomposition import timings, whole_networks
from decomp.pipelines.decomposition.speed_ratio import SpeedRatio
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

    def ratio(self, original, planned, *asked):
        self.asked.append((original, planned, *asked))
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
        assert networks.ratio(planned, (1.0, 3.0), (0.9, 3.1)) == FOUND and networks.process == "new" and not timed
        assert helper.asked == [(original, planned, (1.0, 3.0), None, (0.9, 3.1))]
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

        def measured(planned, wanted, kept, fastest):
            waited_for.append(fastest)
            time = next(answers)
            return SpeedRatio(time, time / 2, 2.0, 2.0, (2.0, 2.0))

        monkeypatch.setattr(networks, "_measured", measured)
        slowed = [networks.ratio(nn.Identity()).slowed for _ in range(5)]
    assert waited_for == [None, 4.0, 6.0, 6.0, 3.9]
    assert slowed == pytest.approx([0.0, 0.5, 0.5, 0.0, 0.1 / 3.9])
    assert Timings(tmp_path / "latency.json", torch.device("cpu"), 1, Eager()).fastest_original == 3.9
