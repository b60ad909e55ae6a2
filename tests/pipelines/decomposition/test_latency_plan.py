"""Plans by latency: the measured target, the stored times, and the conditions of a measurement."""

import json

import pytest
import torch

from decomp.allocation.plan import Plan
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError, TargetError, UsageError
from decomp.pipelines.decomposition import latency_plan, timings, whole_networks
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
        monkeypatch.setattr(whole_networks, "in_new_processes", lambda device: False)

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
    assert {"original", "planned", "again"} in timed and {""} not in timed  # no single factor was measured again


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
    with pytest.raises(
        TargetError, match=r"at most 1\.00x was measured .* 2 in eager, limited by .*every call.* got 2x"
    ):
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
    with pytest.raises(UsageError, match="^--layout: decides only where the cost is latency, got channels-last; give"):
        decompose_options(speedup=2.0, latency_layout="channels-last")
    monkeypatch.setattr(names, "lacking", lambda name: ("openvino",))
    with pytest.raises(DecompError, match="^openvino: this runtime needs openvino, not installed; pip install"):
        decompose_options(speedup=2.0, cost="latency", runtime="openvino")
    plan = Plan(2.0, ("prune",), "joint", [], 1, 1, cost="latency", latency={"runtime": "onnxruntime"})
    with pytest.raises(TargetError, match="^the plan: was made for onnxruntime, got the runtime compile"):
        decompose_options(plan, runtime="compile")
    assert decompose_options(plan, runtime="onnxruntime").cost == "latency"


class Busy:
    """Times of rounds of which the original's against themselves are far apart."""

    def __init__(self, latencies):
        self.latencies = latencies

    def __call__(self, networks, *args, **options):
        times = self.latencies(networks, *args, **options)
        if "again" not in times:
            return times
        return {name: [2 * t if (name == "again") == (i % 2 == 0) else t for i, t in enumerate(values * 4)]
                for name, values in times.items()}  # fmt: skip


def test_a_busy_machine_is_said_with_the_plan_and_recorded(vgg_run, machine, monkeypatch):
    machine()
    monkeypatch.setattr(timings, "latencies", Busy(timings.latencies))
    reporter = Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    assert plan["latency"]["busy"] and plan["latency"]["noise"] > 1
    assert any("the machine is busy (times of the original against itself spread over" in m for m in reporter.messages)


class TwoSpeeds:
    """A machine on which calls take ten times as long while it is slow; arithmetic does not."""

    def __init__(self, slow):
        self.slow = slow

    def __call__(self, network, shape):
        calls = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        return by_macs(network, shape) + (9e-2 * len(calls) if self.slow else 0.0)


class Turning(Collected):
    """The machine becomes fast once the chosen sizes were measured again."""

    def __init__(self, speeds):
        super().__init__()
        self.speeds = speeds

    def step(self, message, **fields):
        super().step(message, **fields)
        self.speeds.slow &= not message.startswith("measured again")


def test_a_plan_measured_on_a_slow_machine_is_made_again_when_it_is_fast_at_the_end(vgg_run, machine):
    speeds = TwoSpeeds(slow=True)
    machine(speeds)
    reporter = Turning(speeds)
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    latency, original = plan["latency"], network_file.load(vgg_run.original_dir)
    assert latency["original_ms"] == pytest.approx(by_macs(original, (16, *SHAPE)), abs=1e-4) and not latency["busy"]
    assert 1.5 * 0.97 <= latency["measured_speedup"] <= 1.5 * 1.10
    assert any("when the plan was measured: measuring again" in line for line in reporter.messages)
    assert not any("not certain" in line for line in reporter.messages)


def test_a_plan_measured_on_a_machine_slower_than_before_is_not_certain(vgg_run, machine, monkeypatch, tmp_path):
    """Also in a run that knows nothing of it: the second one has no times."""
    monkeypatch.setenv("DECOMP_KNOWN_TIMES", str(tmp_path / "known.json"))
    speeds, reporter = TwoSpeeds(slow=False), Collected()
    machine(speeds)
    assert not planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16)["latency"]["busy"]
    speeds.slow = True
    vgg_run.latency_json.unlink()
    latency = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, redo=True, reporter=reporter)["latency"]
    assert latency["busy"] and latency["slowed"] > 0.08
    assert any("times as long as at other times), so that the measured" in line for line in reporter.messages)


def test_a_plan_made_too_fast_by_the_table_comes_back_to_the_target(vgg_run, machine):
    """Whole networks gain more than the table says, as where much of the time is outside the layers."""

    def faster_whole(network, shape):
        inside = len(list(network.modules())) > 10
        return max(by_macs(network, shape) - (3.0 if inside else 0.0), 0.1)

    machine(faster_whole)
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16)
    assert 1.5 * 0.97 <= plan["latency"]["measured_speedup"] <= 1.5 * 1.10
    assert plan["latency"]["table_error"] < -0.02


def test_a_plan_by_multiply_accumulates_is_taken_where_it_loses_less_at_the_measured_time(vgg_run, machine):
    """Single convolutions take times that have nothing to do with those of whole networks."""
    machine(lambda network, shape: by_macs(network, shape) ** (1.0 if len(list(network.modules())) > 10 else 0.3))
    reporter = Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    assert 1.5 * 0.97 <= plan["latency"]["measured_speedup"] <= 1.5 * 1.10
    assert any("that is taken" in line for line in reporter.messages)


@pytest.mark.usefixtures("known_networks")
@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_plan_on_narrowed_channel_spaces_is_timed_against_the_original(run, machine):
    """The narrowed network is the faster one that layers are replaced in; the target is that of the whole network."""
    machine()
    decompose(run, speedup=3.0, cost="latency", coupled=0.5, latency_batch=16, multiple=1, reporter=Collected())
    plan = json.loads(run.plan_json.read_text())
    assert plan["spaces"] == {"stem": 4} and 3.0 * 0.97 <= plan["latency"]["measured_speedup"] <= 3.0 * 1.10
    before, after = (by_macs(network_file.load(p), (16, *SHAPE)) for p in (run.original_dir, run.model_dir))
    assert before / after == pytest.approx(plan["latency"]["measured_speedup"], abs=2e-2)


@pytest.mark.usefixtures("known_networks")
@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_narrowed_channel_spaces_that_are_faster_than_asked_are_refused(run, machine):
    machine()
    with pytest.raises(TargetError, match=r"^--coupled: the narrowed channel spaces alone were measured .* got 1\.2x"):
        decompose(run, speedup=1.2, cost="latency", coupled=0.3, latency_batch=16, multiple=1, reporter=Collected())
