"""Times of factors and networks in a runtime: what is timed, and what is kept."""

import json

import pytest
import torch
from torch import nn

from decomp.cost.latency_model import LINEAR, SELECT, FactorKind
from decomp.modules.select import Select
from decomp.pipelines.decomposition import timings
from decomp.pipelines.decomposition.timings import Timings
from decomp.runtimes.compiled import Compiled
from decomp.runtimes.eager import Eager
from decomp.runtimes.onnx import OnnxRuntime

CPU, KIND = torch.device("cpu"), FactorKind((3, 1), in_hw=(6, 5))


class Reordering(Eager):
    """A runtime that orders the numbers itself, as ONNX Runtime does, and runs in eager mode."""

    def __init__(self):
        super().__init__(name="onnxruntime")


@pytest.fixture
def counted(monkeypatch):
    """`latencies` that count: ten milliseconds for each convolution or linear layer; and what was timed."""
    seen = []

    def fake(networks, shape, device, rounds, **options):
        seen.append((dict(networks), shape))
        return {
            name: [10.0 * sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) + 1.0] * 3
            for name, net in networks.items()
        }

    monkeypatch.setattr(timings, "latencies", fake)
    return seen


def test_a_factor_in_context_takes_the_time_of_a_chain_with_it_less_that_without(tmp_path, counted):
    known = Timings(tmp_path / "latency.json", CPU, 2, Reordering())
    assert known.in_context and known.factor(KIND, 4, 8) == 10.0
    ((networks, shape),) = counted
    assert shape == (2, timings.LEAD, 6, 5)
    with_it, without = networks["with"], networks["without"]
    assert [type(part).__name__ for part in with_it] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "AdaptiveAvgPool2d"]
    assert [type(part).__name__ for part in without] == ["Conv2d", "ReLU", "Identity", "AdaptiveAvgPool2d"]
    assert with_it[2].weight.shape == (8, 4, 3, 1) and with_it(torch.zeros(shape)).shape == (2, 8, 1, 1)
    known.factor(KIND, 4, 8)
    assert len(counted) == 1  # known
    known.factor(KIND, 4, 6), known.factor(KIND, 3, 6)
    assert [timed["without"] is without for timed, _ in counted] == [True, True, False]
    assert known.measured == 3  # the one that was known already is none


def test_a_selection_in_context_stands_between_two_convolutions_and_is_what_the_chain_with_it_takes_more(
    tmp_path, monkeypatch
):
    seen = []

    def fake(networks, shape, device, rounds, **options):
        seen.append((networks, shape))
        return {name: [5.0 + 2.0 * any(isinstance(m, Select) for m in net.modules())] for name, net in networks.items()}

    monkeypatch.setattr(timings, "latencies", fake)
    known, kind = Timings(tmp_path / "latency.json", CPU, 2, Reordering()), FactorKind(SELECT, in_hw=(6, 5))
    assert known.factor(kind, 4, 4) == 2.0 and known.measured == 1
    known.factor(KIND, 4, 8), known.factor(kind, 4, 4)
    assert known.measured == 2
    (chosen, shape), (other, _) = seen
    parts = [type(part).__name__ for part in chosen["with"]]
    assert parts == ["Conv2d", "ReLU", "Select", "Conv2d", "ReLU", "AdaptiveAvgPool2d"]
    assert [type(part).__name__ for part in chosen["without"]] == [*parts[:2], "Identity", *parts[3:]]
    assert not chosen["with"][2].keeps_all  # a runtime could leave it out
    assert shape == (2, timings.LEAD, 6, 5) and chosen["with"](torch.zeros(shape)).shape == (2, timings.LEAD, 1, 1)
    assert len(other["without"]) == 4  # not the chain of the selection, of the same width and size


def test_a_linear_layer_takes_its_time_less_that_of_a_run_without_it(tmp_path, counted):
    known = Timings(tmp_path / "latency.json", CPU, 2, Reordering())
    assert known.factor(FactorKind(LINEAR), 4, 8) == 10.0 and counted[0][1] == (2, 4)


def test_a_difference_is_never_below_the_shortest_time(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "latencies", lambda *_, **__: {"with": [1.0], "without": [2.0]})
    known = Timings(tmp_path / "latency.json", CPU, 2, Reordering())
    assert known.factor(KIND, 4, 8) == timings.SHORTEST


def test_factors_of_eager_and_compiled_networks_are_timed_by_themselves(tmp_path, counted):
    for runtime in (Eager(), Compiled()):
        known = Timings(tmp_path / "latency.json", CPU, 2, runtime)
        assert not known.in_context and known.factor(KIND, 4, 8) == 11.0
    assert [(list(networks), shape) for networks, shape in counted] == [(["with"], (2, 4, 6, 5))] * 2


def test_times_are_kept_by_runtime(tmp_path, counted):
    first = Timings(tmp_path / "latency.json", CPU, 2, Eager())
    first.factor(KIND, 4, 8)
    first.save()
    (key,) = json.loads((tmp_path / "latency.json").read_text())["entries"]
    assert "runtime eager" in key and "optimisation none" in key and "precision float32" in key
    assert Timings(tmp_path / "latency.json", CPU, 2, Eager()).factor(KIND, 4, 8) == 11.0 and len(counted) == 1
    Timings(tmp_path / "latency.json", CPU, 2, Reordering()).factor(KIND, 4, 8)
    assert len(counted) == 2


def test_a_kept_network_is_prepared_once(tmp_path, counted):
    known, network = Timings(tmp_path / "latency.json", CPU, 1, Eager()), nn.Conv2d(1, 1, 1)
    known.keep_prepared(network, (1, 1, 2, 2))
    known.compare({"a": network, "b": nn.Conv2d(1, 1, 1)}, (1, 1, 2, 2))
    known.compare({"a": network}, (1, 1, 2, 2))
    assert counted[0][0]["a"] is counted[1][0]["a"]
    known.compare({"a": network}, (1, 1, 3, 3))
    assert counted[2][0]["a"] is not counted[1][0]["a"]


def test_factors_really_run_in_onnx_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    known = Timings(tmp_path / "latency.json", CPU, 1, OnnxRuntime())
    assert known.factor(KIND, 3, 2) > 0 and known.factor(FactorKind(LINEAR), 3, 2) > 0


def test_the_block_is_that_of_the_low_quartiles_and_is_measured_once(tmp_path, monkeypatch):
    """A machine that computes 16 channels at a time and is disturbed in every third round."""
    called = []

    def fake(networks, shape, device, rounds, **options):
        called.append(shape)
        widths = {name: network.out_channels for name, network in networks.items()}
        return {name: [-(-n // 16) + (9.0 * (n % 5) if i % 3 == 0 else 0.0) for i in range(9)]
                for name, n in widths.items()}  # fmt: skip

    monkeypatch.setattr(timings, "latencies", fake)
    known = Timings(tmp_path / "latency.json", CPU, 2, Eager())
    assert (known.block(), known.block()) == (16, 16)
    assert called == [(2, 128, 14, 14)]


@pytest.mark.parametrize(("milliseconds", "calls"), [(1.0, 3), (0.5, 6), (20.0, 1), (1e-4, 34)])
def test_a_block_of_rounds_is_long_enough_that_a_disturbance_does_not_fill_it(monkeypatch, milliseconds, calls):
    """Each call gives 30 rounds of three networks; 1 ms a run are 90 ms of the 250 that a block takes at least."""
    made = []

    def fake(networks, shape, device, rounds, **options):
        made.append(options["warm_up"])
        return {name: [milliseconds] * rounds for name in networks}

    monkeypatch.setattr(timings, "latencies", fake)
    networks = dict.fromkeys(("original", "planned", "again"), torch.nn.Identity())
    block = timings.block_of_rounds(networks, (1, 1, 4, 4), torch.device("cpu"), "contiguous")
    assert {name: len(times) for name, times in block().items()} == dict.fromkeys(networks, 30 * calls)
    assert made == [timings.WARM_UP, *[1] * (calls - 1)]
    block()
    assert made[calls] == 1  # warm already
