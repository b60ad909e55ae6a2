"""Plans by latency: the measured target, the stored times, and the conditions of a measurement."""

import json
from dataclasses import replace

import pytest
import torch

from decomp.allocation.plan import LayerPlan, Plan
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError, TargetError, UsageError
from decomp.pipelines.decomposition import best_of_trials, latency_plan, make_plan, timings
from decomp.pipelines.decomposition.make_plan import decompose_options
from decomp.pipelines.measure import devices
from decomp.pipelines.stages.decompose import decompose
from decomp.runtimes import names
from tests.pipelines.digit_runs import Collected, planned
from tests.pipelines.pretended_clock import by_macs

SHAPE = (1, 8, 8)


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


def test_the_original_is_watched_again_behind_a_table_that_was_measured_and_not_behind_a_known_one(
    vgg_run, machine, monkeypatch
):
    machine()
    patience, watch = [], latency_plan.WholeNetworks.watch

    def watched(self, seconds=0.0):
        patience.append(seconds)
        return watch(self, seconds)

    monkeypatch.setattr(latency_plan.WholeNetworks, "watch", watched)
    for redo, times in ((False, 2), (True, 1)):
        patience.clear()
        planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, redo=redo)
        assert patience.count(latency_plan.PATIENCE) == times


class TwoSpeeds:
    """A machine on which calls take a hundred times as long while it is slow; arithmetic does not."""

    def __init__(self, slow):
        self.slow = slow

    def __call__(self, network, shape):
        calls = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        return by_macs(network, shape) + (1.0 * len(calls) if self.slow else 0.0)


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


def test_a_plan_that_is_slower_at_the_end_while_the_original_is_not_is_uncertain(vgg_run, machine, monkeypatch):
    """Planned networks take a fifth longer once the chosen sizes were measured again."""
    monkeypatch.setattr(latency_plan._Planner, "counted_rival", lambda self, chosen: [])
    speeds = TwoSpeeds(slow=False)
    reporter = Turning(speeds)
    speeds.slow = True  # until that message

    def milliseconds(network, shape):
        is_planned = len(list(network.modules())) > 10 and cost(network, SHAPE).macs < 1_400_000
        return by_macs(network, shape) * (1.2 if is_planned and not speeds.slow else 1.0)

    machine(milliseconds)
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    assert plan["latency"]["busy"] and plan["latency"]["slowed"] == 0.0
    assert any("differs by 20 % from one measurement to another), so that" in line for line in reporter.messages)


def slow_once_more(monkeypatch, factor):
    """At the end the plan, without a rival, takes `factor` times as long in most measurements; once, says of which."""
    monkeypatch.setattr(latency_plan._Planner, "counted_rival", lambda self, chosen: [])
    first = []

    def once_more(self, attempt):
        if not first:
            first.append(attempt)
            slow = replace(attempt.ratio, planned_ms=factor * attempt.ratio.planned_ms)
            attempt.ratios += [slow] * (len(attempt.ratios) + 1)

    monkeypatch.setattr(latency_plan._Planner, "_once_more", once_more)
    return first


def test_where_most_measurements_speak_against_a_plan_at_the_end_the_search_goes_on(vgg_run, machine, monkeypatch):
    machine(by_macs)
    slow, reporter = slow_once_more(monkeypatch, 1.1), Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    latency = plan["latency"]
    assert any("measured once more: 1.3" in line and "goes on" in line for line in reporter.messages)
    assert 1.5 * 0.97 <= latency["measured_speedup"] <= 1.5 * 1.10
    assert latency["measured_speedup"] > 1.05 * slow[0].speedup  # of other sizes


def test_a_plan_that_is_too_slow_at_the_end_without_another_one_is_refused(vgg_run, machine, monkeypatch):
    machine(by_macs)
    slow = slow_once_more(monkeypatch, 1.1)
    monkeypatch.setattr(latency_plan.TargetSearch, "run", lambda self, run=latency_plan.TargetSearch.run: (
        slow[0] if slow else run(self)
    ))  # fmt: skip
    with pytest.raises(TargetError, match="at most 1.3.x was measured"):
        planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16)


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


def odd_pieces(network, shape):
    """Single convolutions take times that have nothing to do with those of whole networks."""
    return by_macs(network, shape) ** (1.0 if len(list(network.modules())) > 10 else 0.3)


@pytest.mark.parametrize("counted_is_better", [True, False])
def test_of_a_plan_by_macs_that_is_as_fast_and_the_other_the_one_that_loses_less_in_a_trial_is_taken(
    vgg_run, machine, monkeypatch, counted_is_better
):
    """In place of the plan by multiply-accumulates stands the network as it is."""
    machine()
    tried = []

    def two(problem):
        found = latency_plan.plans_for_latency(problem)[0]
        return [found, replace(found, plans={name: LayerPlan(name) for name in found.plans})]

    def changes(surveyed, plans, options, judge):
        tried.append(all(plan.keep is None and not plan.factored for plan in plans.values()))
        worse = counted_is_better == (len(tried) == 1)
        return torch.tensor([0.2, 0.21, 0.19] if worse else [0.1, 0.11, 0.09], dtype=torch.float64)

    monkeypatch.setattr(make_plan, "plans_for_latency", two)
    monkeypatch.setattr(best_of_trials, "changes_of_plan", changes)
    reporter = Collected()
    plan = planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16, reporter=reporter)
    assert tried == [False, True]
    assert all(layer["keep"] is None and layer["spatial_rank"] is None for layer in plan["layers"]) == counted_is_better
    assert any("multiply-accumulates is taken" in line for line in reporter.messages) == counted_is_better


def test_the_first_plan_by_macs_is_corrected_by_what_the_table_missed_in_the_chosen_one(vgg_run, machine, monkeypatch):
    """The whole network spends much of its time outside the layers, which the table does not contain."""

    def with_a_rest(network, shape):
        return by_macs(network, shape) + (12.0 if len(list(network.modules())) > 10 else 0.0)

    machine(with_a_rest)
    monkeypatch.setattr(latency_plan, "SLOW", 1e3)
    monkeypatch.setattr(best_of_trials, "changes_of_plan", lambda *_: torch.ones(4, dtype=torch.float64))
    reporter = Collected()
    planned(vgg_run, cost="latency", speedup=1.8, latency_batch=16, reporter=reporter)
    lines = [line for line in reporter.messages if line.startswith("measured ")]
    found = [float(line.rpartition(" ")[2].removesuffix("x")) for line in lines]
    again = next(place for place, line in enumerate(lines) if line.startswith("measured again"))
    assert found[0] < 1.8 * 0.93  # the table alone is far off
    assert "with the planned sizes" in lines[again + 1] and 1.8 * 0.96 <= found[again + 1] <= 1.8 * 1.1
    assert any(line.startswith("a plan by multiply-accumulates of ") for line in reporter.messages)


@pytest.mark.parametrize(("loss_ratio", "slow"), [(1e-3, 1e3), (2.5, 0.0)])
def test_a_plan_by_macs_that_is_expected_to_lose_far_more_or_of_a_slow_network_is_not_tried(
    vgg_run, machine, monkeypatch, loss_ratio, slow
):
    machine(odd_pieces)
    monkeypatch.setattr(latency_plan, "LOSS_RATIO", loss_ratio)
    monkeypatch.setattr(latency_plan, "SLOW", slow)
    monkeypatch.setattr(best_of_trials, "changes_of_plan", None)
    planned(vgg_run, cost="latency", speedup=1.5, latency_batch=16)


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
