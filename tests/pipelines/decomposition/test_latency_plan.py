"""Plans by latency: the measured target, the stored times, and the conditions of a measurement."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from decomp.allocation.plan import Plan, latency_words
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError, TargetError, UsageError
from decomp.pipelines.decomposition import latency_plan, timings
from decomp.pipelines.decomposition.make_plan import decompose_options
from decomp.pipelines.measure import devices
from decomp.pipelines.stages.decompose import decompose
from decomp.runtimes import names, timing
from tests.pipelines.digit_runs import Collected, planned

SHAPE = (1, 8, 8)


def clockwork(milliseconds):
    """`latencies` on a machine whose times follow a formula: of a module, its input's shape."""

    def fake(networks, shape, device, rounds, **options):
        times = {}
        for name, network in networks.items():
            hooked = [m for m in network.modules() if m._forward_hooks]
            with torch.no_grad():
                for _ in range(timing.WARM_UP + 2 if hooked else 0):
                    network(torch.zeros(shape))
            times[name] = [milliseconds(network, shape)] * 2
        return times

    return fake


def by_macs(network, shape):
    """Ten microseconds a call, and a nanosecond a multiply-accumulate; the rest is free."""
    calls = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    return 1e-2 * len(calls) + 1e-6 * cost(network, shape[1:]).macs * shape[0]


@pytest.fixture
def machine(monkeypatch):
    """A machine on which times follow `by_macs`, also those of modules inside a running network."""

    def install(milliseconds=by_macs):
        monkeypatch.setattr(timings, "latencies", clockwork(milliseconds))

        def within(network, names, shape, device, rounds, **options):
            whole = cost(network, shape[1:]).per_layer
            return {name: 1e-2 + 1e-6 * whole[name] * shape[0] for name in names}, 0.0

        monkeypatch.setattr(timings, "times_within", within)

    return install


def test_a_plan_by_latency_reaches_the_measured_speedup(vgg_run, machine):
    machine()
    plan = planned(vgg_run, cost="latency", speedup=2.0, latency_batch=16)
    latency = plan["latency"]
    assert latency["device"] == devices.full_name(torch.device("cpu")) and latency["batch_size"] == 16
    assert latency["threads"] == torch.get_num_threads() and latency["torch"] == torch.__version__
    assert 1.96 <= latency["measured_speedup"] <= 2.12
    result = decompose(vgg_run, speedup=2.0, cost="latency", latency_batch=16, reporter=Collected())
    before, after = (by_macs(network_file.load(p), (16, *SHAPE)) for p in (vgg_run.original_dir, vgg_run.model_dir))
    assert before / after == pytest.approx(latency["measured_speedup"], abs=1e-2)
    assert any("measured" in line for line in result.lines())


def test_times_are_stored_by_device_threads_version_batch_and_layout(vgg_run, machine, monkeypatch):
    machine()
    planned(vgg_run, cost="latency", latency_batch=4)
    stored = json.loads(vgg_run.latency_json.read_text())["entries"]
    (key,) = stored
    assert (
        "batch_size 4" in key
        and "layout contiguous" in key
        and f"torch {torch.__version__}" in key
        and "threads" in key
    )
    planned(vgg_run, cost="latency", latency_batch=8, redo=True)
    assert len(json.loads(vgg_run.latency_json.read_text())["entries"]) == 2
    planned(vgg_run, cost="latency", latency_batch=4, latency_layout="channels-last", redo=True)
    assert len(json.loads(vgg_run.latency_json.read_text())["entries"]) == 3
    timed, fake = [], timings.latencies

    def latencies(networks, *args, **options):
        timed.append(set(networks))
        return fake(networks, *args, **options)

    monkeypatch.setattr(timings, "latencies", latencies)
    planned(vgg_run, cost="latency", latency_batch=4, redo=True)
    assert {"original", "planned"} in timed and {""} not in timed  # no single factor was measured again


def test_the_measurement_of_the_whole_network_corrects_a_wrong_table(vgg_run, machine):
    """The whole network spends a third of its time outside the layers, which the table does not contain."""

    def with_a_rest(network, shape):
        inside = len(list(network.modules())) > 10
        return by_macs(network, shape) + (12.0 if inside else 0.0)

    machine(with_a_rest)
    reporter = Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.8, latency_batch=16, reporter=reporter)
    assert 1.76 <= plan["latency"]["measured_speedup"] <= 1.92
    assert sum("measured speed-up with the planned sizes" in line for line in reporter.messages) > 1


def test_a_speedup_that_is_not_measured_at_any_sizes_is_refused_with_the_fastest_measurement(vgg_run, machine):
    """A machine on which only calls take time."""
    machine(lambda network, shape: 1.0)
    with pytest.raises(TargetError, match=r"at most 1\.00x was measured .* 2, limited by .*every call.* got 2x"):
        planned(vgg_run, cost="latency", latency_batch=2)
    assert vgg_run.config("decompose") is None


def test_no_layer_becomes_a_chain_that_is_slower_than_the_layer_in_one_piece(vgg_run, machine):
    """A machine on which chains are slow, though each of their factors by itself is fast."""

    def slow_chains(network, shape):
        chains = [m for m in network.modules() if isinstance(m, torch.nn.Sequential) and 1 < len(m) < 4]
        return by_macs(network, shape) + 5.0 * len(chains)

    machine(slow_chains)
    reporter = Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    assert any("not faster than the unsplit layer" in line for line in reporter.messages)
    assert all(layer["spatial_rank"] is None and layer["channel_rank"] is None for layer in plan["layers"])
    assert plan["latency"]["measured_speedup"] >= 1.47


def test_a_plan_by_latency_is_refused_on_another_device(vgg_run, machine, monkeypatch):
    machine()
    planned(vgg_run, cost="latency")
    here = devices.full_name(torch.device("cpu"))
    monkeypatch.setattr(devices, "full_name", lambda device: "NVIDIA Other")
    with pytest.raises(TargetError) as caught:
        decompose(vgg_run, speedup=2, cost="latency", reporter=Collected())
    assert here in str(caught.value) and "NVIDIA Other" in str(caught.value) and "plan.json" in str(caught.value)


def test_a_plan_for_another_runtime_or_without_latency_is_refused():
    plan = Plan(2.0, (), "joint", [], 1, 1, cost="latency", latency={"runtime": "onnxruntime"})
    latency_plan.require_same_runtime(plan, "onnxruntime", "the plan")
    with pytest.raises(TargetError, match="^the plan: was made for onnxruntime, got the runtime eager; leave the run"):
        latency_plan.require_same_runtime(plan, "eager", "the plan")
    with pytest.raises(TargetError, match="^the plan: was made for no runtime, but to reduce macs, got the runtime ea"):
        latency_plan.require_same_runtime(Plan(2.0, (), "joint", [], 1, 1), "eager", "the plan")


def test_a_runtime_without_latency_as_the_cost_or_not_installed_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="^--runtime: decides only where the cost is latency, got compile; give"):
        decompose_options(speedup=2.0, runtime="compile")
    monkeypatch.setattr(names, "lacking", lambda name: ("openvino",))
    with pytest.raises(DecompError, match="^openvino: this runtime needs openvino, not installed; pip install"):
        decompose_options(speedup=2.0, cost="latency", runtime="openvino")
    plan = Plan(2.0, ("prune",), "joint", [], 1, 1, cost="latency", latency={"runtime": "onnxruntime"})
    with pytest.raises(TargetError, match="^the plan: was made for onnxruntime, got the runtime compile"):
        decompose_options(plan, runtime="compile")
    assert decompose_options(plan, runtime="onnxruntime").cost == "latency"


class Rounds:
    """Times of rounds that are known, in place of measurements."""

    def __init__(self, **times):
        self.times, self.batch_size = times, 1

    def rounds(self, networks, shape):
        return {name: self.times[name] for name in networks}


def confirmed(monkeypatch, first, **times):
    monkeypatch.setattr(latency_plan, "random_network", lambda graph, plans: None)
    graph, reporter = SimpleNamespace(module=None, input_shape=SHAPE), Collected()
    search = latency_plan._Search(Rounds(**times), graph, None, SimpleNamespace(speedup=2.0), None, reporter)
    allocation = SimpleNamespace(plans={}, latency={"measured_speedup": first, "original_ms": 1.0, "measured_ms": 1.0})
    return search.confirmed(allocation), reporter.messages


def test_the_lower_of_two_measurements_is_said_with_the_quantiles_of_single_rounds(monkeypatch):
    original = [10.0] * 11
    planned = [10.0 / ratio for ratio in np.linspace(1.5, 2.5, 11)]
    found, messages = confirmed(monkeypatch, 2.1, original=original, planned=planned, again=original)
    assert (found["low"], found["high"], found["noise"]) == (1.6, 2.4, 0.0)
    assert (found["measured_speedup"], found["original_ms"], found["measured_ms"]) == (2.0, 10.0, 5.0) and not messages
    found, _ = confirmed(monkeypatch, 1.97, original=original, planned=planned, again=original)
    assert found["measured_speedup"] == 1.97 and found["measured_ms"] == 1.0
    words = latency_words({**found, "runtime": "onnxruntime", "batch_size": 1, "layout": "contiguous", "device": "CPU",
                           "threads": 2})  # fmt: skip
    assert "1.97x faster than the original in onnxruntime (1.60x to 2.40x in eight of ten rounds)" in words


def test_a_second_measurement_below_the_target_is_told(monkeypatch):
    found, messages = confirmed(monkeypatch, 2.0, original=[10.0] * 4, planned=[8.0] * 4, again=[10.0] * 4)
    assert found["measured_speedup"] == 1.25
    assert (
        "measured again, the planned sizes are 1.25x as fast as the original, less than the target of 2x"
        in (messages[0])
    )


def test_a_busy_machine_is_recognised_by_the_original_against_itself(monkeypatch):
    found, messages = confirmed(
        monkeypatch, 2.0, original=[10.0, 20.0] * 5, planned=[5.0, 10.0] * 5, again=[20.0, 10.0] * 5
    )
    assert found["noise"] == 1.5
    assert "the machine is busy: times of the original against itself spread over 150 %" in messages[0]


def test_parts_in_context_are_scaled_to_the_whole_network_or_leave_the_rest(monkeypatch):
    """Each convolution takes 2 ms in context, one layer is called twice, the whole network takes 10 or 3 ms."""
    layer = SimpleNamespace(in_channels=4, out_channels=4, kind="conv")
    graph = SimpleNamespace(
        module=nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)}),
        layer=lambda name: SimpleNamespace(**vars(layer), calls=(1, 1) if name == "b" else (1,)),
    )
    link = SimpleNamespace(in_channels=4, out_channels=4, kernel=(1, 1), geometry=None, in_hw=(2, 2))
    monkeypatch.setattr(latency_plan, "chain", lambda *sizes, geometry: [link])
    for whole, parts, rest in ((10.0, (2.0, 4.0), 4.0), (3.0, (1.0, 2.0), 0.0)):
        known = SimpleNamespace(
            in_context=True, factor=lambda *_: 2.0, save=lambda: None, compare=lambda *_, whole=whole: {"whole": whole}
        )
        assert latency_plan._parts(known, graph, ["a", "b"], (1, *SHAPE)) == ({"a": parts[0], "b": parts[1]}, rest)


class Attempt:
    """An allocation as the choice among attempts sees it: speed-up by the table, and measured."""

    def __init__(self, by_table, measured):
        self.allocator, self.cost = type("Allocator", (), {"total": by_table}), 1.0
        self.latency = {"measured_speedup": measured}


def test_the_next_target_lies_between_a_slow_and_a_fast_attempt():
    slow, fast, aim = Attempt(2.0, 1.8), Attempt(3.0, 2.4), 2.0 * (1 + latency_plan.SURPLUS) / 2
    between = latency_plan._corrected([fast, slow], 2.0)
    share = np.log(aim / 1.8) / np.log(2.4 / 1.8)
    assert between == pytest.approx(2.0 * 1.5**share) and 2.0 < between < 3.0
    # Only slow ones: in proportion to the last.
    assert latency_plan._corrected([slow], 2.0) == pytest.approx(aim * 2.0 / 1.8)


def test_the_slowest_attempt_that_is_fast_enough_is_taken_and_otherwise_the_fastest():
    reporter, attempts = Collected(), [Attempt(2, 1.5), Attempt(2, 2.3), Attempt(2, 1.97)]
    assert latency_plan._choose(attempts, 2.0, reporter) is attempts[2] and not reporter.messages
    assert latency_plan._choose(attempts, 2.5, reporter) is attempts[1] and not reporter.messages
    assert latency_plan._choose(attempts, 3.0, reporter) is attempts[1]
    assert "at most 2.30x was measured, less than the target of 3x" in reporter.messages[0]
