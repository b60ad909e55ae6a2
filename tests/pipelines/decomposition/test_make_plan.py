"""From options to plan.json: limits, plans from files, plans by latency, and whole families."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import torch

from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import TargetError, UsageError
from decomp.pipelines.decomposition import latency_plan, survey
from decomp.pipelines.measure import devices
from decomp.pipelines.recipes.family import family
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.freeze import freeze
from decomp.pipelines.stages.status import status
from decomp.runtimes import timing
from tests.pipelines.digit_runs import Collected

SHAPE = (1, 8, 8)
CONVS = ["0", "3", "7", "10"]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("planning") / "run"
    freeze(path, model="zoo:vgg-digits", data="digits", n_images=200, reporter=Collected())
    decompose(path, speedup=2, plan_only=True, reporter=Collected())
    run = RunDirectory.open(path)
    run.plan_json.unlink()
    run.update_config("decompose", None)
    return run


@pytest.fixture
def run(frozen, tmp_path):
    shutil.copytree(frozen.path, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def planned(run, **options):
    decompose(run, **{"speedup": 2, "plan_only": True, "reporter": Collected(), **options})
    return json.loads(run.plan_json.read_text())


def layer_of(plan, name):
    return next(layer for layer in plan["layers"] if layer["layer"] == name)


# -- limits --------------------------------------------------------------------------------------------------


def test_the_plan_shows_every_limit_and_keeps_to_it(run):
    plan = planned(run, skip=["1*"], keep_first=True, max_layer_speedup=3.0, speedup=1.5)
    for name in ("0", "10", "16"):
        layer = layer_of(plan, name)
        assert [layer[key] for key in ("keep", "spatial_rank", "channel_rank")] == [None] * 3
        assert layer["limits"] == {"skip": "--keep-first" if name == "0" else "--skip 1*", "max_speedup": 3.0}
    assert layer_of(plan, "7")["limits"] == {"max_speedup": 3.0}
    assert plan["macs_before"] / plan["macs_after"] >= 1.5


def test_a_layer_that_is_not_there_is_named_with_the_nearest(run):
    with pytest.raises(UsageError, match=r"--skip: must be a layer's name .* got '77'; perhaps 7 is meant"):
        planned(run, skip=["77"])
    with pytest.raises(UsageError, match=r"got 'features\.\*'; there are 0, 3, 7, 10, 16"):
        planned(run, skip=["features.*"])
    assert run.config("decompose") is None


def test_out_of_reach_names_the_limits_that_hold_it_and_what_lifting_them_gives(run):
    with pytest.raises(TargetError) as caught:
        planned(run, speedup=30, skip=["7"], max_layer_speedup=4.0)
    words = str(caught.value)
    most, without_skip, without_cap = (float(x) for x in re.findall(r"([\d.]+)x", words.replace("got 30x", "")))
    assert "held by --skip 7 (without:" in words and "--max-layer-speedup 4 (without:" in words
    assert most < min(without_skip, without_cap)
    reached = planned(run, speedup=most, skip=["7"], max_layer_speedup=4.0)
    assert reached["macs_before"] / reached["macs_after"] >= most
    with pytest.raises(TargetError, match=f"at most {without_skip:g}x? ?"):
        planned(RunDirectory(run), speedup=30, max_layer_speedup=4.0, redo=True)


def test_an_attempt_without_a_plan_leaves_no_trace(run):
    with pytest.raises(TargetError, match="at most"):
        decompose(run, speedup=5000, reporter=Collected())
    decompose(run, speedup=2, plan_only=True, reporter=Collected())
    assert run.config("decompose")["asked"]["speedup"] == 2


# -- costs ---------------------------------------------------------------------------------------------------


def test_parameters_can_be_what_shrinks(run):
    result = decompose(run, speedup=3, cost="params", reporter=Collected())
    before, after = cost(network_file.load(run.original_dir), SHAPE), cost(network_file.load(run.model_dir), SHAPE)
    assert 0.98 <= 3 * after.params / before.params <= 1
    assert (after.params, after.macs) == (result.facts["params_after"], result.facts["macs_after"])
    plan = json.loads(run.plan_json.read_text())
    assert (plan["cost"], plan["params_after"]) == ("params", after.params)


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
    """A machine on which times follow `by_macs`; hooks inside a network see its parts by the same formula."""

    def install(milliseconds=by_macs):
        monkeypatch.setattr(latency_plan, "latencies", clockwork(milliseconds))

        def within(network, names, shape, device, rounds, **options):
            whole = cost(network, shape[1:]).per_layer
            return {name: 1e-2 + 1e-6 * whole[name] * shape[0] for name in names}, 0.0

        monkeypatch.setattr(latency_plan, "times_within", within)

    return install


def test_a_plan_by_latency_reaches_the_measured_speedup(run, machine):
    machine()
    plan = planned(run, cost="latency", speedup=2.0, latency_batch=16)
    told = plan["latency"]
    assert told["device"] == devices.full_name(torch.device("cpu")) and told["batch_size"] == 16
    assert told["threads"] == torch.get_num_threads() and told["torch"] == torch.__version__
    assert 1.96 <= told["measured_speedup"] <= 2.12
    result = decompose(run, speedup=2.0, cost="latency", latency_batch=16, reporter=Collected())
    before, after = (by_macs(network_file.load(p), (16, *SHAPE)) for p in (run.original_dir, run.model_dir))
    assert before / after == pytest.approx(told["measured_speedup"], abs=1e-2)
    assert any("measured" in line for line in result.lines())


def test_times_are_kept_by_device_threads_version_and_batch(run, machine, monkeypatch):
    machine()
    planned(run, cost="latency", latency_batch=4)
    kept = json.loads(run.latency_json.read_text())["entries"]
    (key,) = kept
    assert (
        "batch_size 4" in key
        and "layout contiguous" in key
        and f"torch {torch.__version__}" in key
        and "threads" in key
    )
    planned(run, cost="latency", latency_batch=8, redo=True)
    assert len(json.loads(run.latency_json.read_text())["entries"]) == 2
    planned(run, cost="latency", latency_batch=4, latency_layout="channels-last", redo=True)
    assert len(json.loads(run.latency_json.read_text())["entries"]) == 3
    measured = []
    monkeypatch.setattr(latency_plan.Timings, "save", lambda self: measured.append(len(self._own)))
    planned(run, cost="latency", latency_batch=4, redo=True)
    assert set(measured) == {len(kept[key])}  # nothing was measured again


def test_where_the_table_is_wrong_the_whole_corrects_it(run, machine):
    """In the whole, half the time goes elsewhere, which the table does not know."""

    def with_a_rest(network, shape):
        inside = len(list(network.modules())) > 10
        return by_macs(network, shape) + (0.3 if inside else 0.0)

    machine(with_a_rest)
    told = Collected()
    plan = planned(run, cost="latency", speedup=1.8, latency_batch=16, reporter=told)
    assert 1.76 <= plan["latency"]["measured_speedup"] <= 1.92
    assert sum("was measured" in line for line in told.told) > 1


def test_what_the_clock_cannot_give_is_refused_with_the_most_that_was_measured(run, machine):
    """A machine on which nothing but calls takes time."""
    machine(lambda network, shape: 1.0)
    with pytest.raises(TargetError, match=r"at most 1\.00x was measured .*batch of 2, held by .*every call.* got 2x"):
        planned(run, cost="latency", latency_batch=2)
    assert run.config("decompose") is None


def test_no_chain_that_is_slower_than_the_layer_in_one_piece(run, machine):
    """A machine on which chains are slow, though each of their factors by itself is fast."""

    def slow_chains(network, shape):
        chains = [m for m in network.modules() if isinstance(m, torch.nn.Sequential) and 1 < len(m) < 4]
        return by_macs(network, shape) + 5.0 * len(chains)

    machine(slow_chains)
    told = Collected()
    plan = planned(run, cost="latency", speedup=1.5, latency_batch=16, reporter=told)
    assert any("no faster than the layer in one piece" in line for line in told.told)
    assert all(layer["spatial_rank"] is None and layer["channel_rank"] is None for layer in plan["layers"])
    assert plan["latency"]["measured_speedup"] >= 1.47


def test_a_plan_by_latency_is_refused_on_another_device(run, machine, monkeypatch):
    machine()
    planned(run, cost="latency")
    here = devices.full_name(torch.device("cpu"))
    monkeypatch.setattr(devices, "full_name", lambda device: "NVIDIA Other")
    with pytest.raises(TargetError) as caught:
        decompose(run, speedup=2, cost="latency", reporter=Collected())
    assert here in str(caught.value) and "NVIDIA Other" in str(caught.value) and "plan.json" in str(caught.value)


# -- plans from files ----------------------------------------------------------------------------------------


def test_a_plan_from_a_file_is_the_plan(run, tmp_path):
    plan = planned(run, speedup=2)
    layer_of(plan, "7").update(spatial_rank=13, channel_rank=None, keep=21)
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    other = RunDirectory(tmp_path / "other")
    result = decompose(other, plan=tmp_path / "mine.json", source_run=run.path, reporter=Collected())
    assert network_file.load(other.model_dir).get_submodule("7.vertical").weight.shape == (13, 21, 3, 1)
    assert result.facts["asked"]["speedup"] == 2
    again = decompose(other, plan=tmp_path / "mine.json", reporter=Collected())
    assert again.done_before
    layer_of(plan, "7").update(spatial_rank=14)
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="was decomposed with plan = one of digest .*--redo"):
        decompose(other, plan=tmp_path / "mine.json", reporter=Collected())
    decompose(other, plan=tmp_path / "mine.json", redo=True, reporter=Collected())
    assert len(network_file.load(other.model_dir).get_submodule("7.vertical").weight) == 14


def test_a_plan_written_by_hand_needs_no_counts(run, tmp_path):
    layers = [{"layer": name} for name in (*CONVS, "16")]
    layers[1]["spatial_rank"] = 8
    mine = {"speedup": 1.2, "steps": ["spatial"], "allocation": "by hand", "layers": layers}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    decompose(run, plan=tmp_path / "mine.json", plan_only=True, reporter=Collected())
    plan = json.loads(run.plan_json.read_text())
    assert 0 < plan["macs_after"] < plan["macs_before"] and plan["params_before"] > plan["params_after"] > 0


def test_a_plan_that_does_not_fit_is_refused_and_leaves_no_trace(run, tmp_path):
    plan = planned(run)
    layer_of(plan, "7")["channel_rank"] = 500
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    other = tmp_path / "other"
    with pytest.raises(TargetError, match=r"7: channel_rank must be in 1\.\.\d+ \(filters\), got 500; change it in"):
        decompose(other, plan=tmp_path / "mine.json", source_run=run.path, reporter=Collected())
    assert RunDirectory.open(other).config("decompose") is None
    with pytest.raises(UsageError, match="--plan: says the speed-up itself"):
        decompose(run, plan=tmp_path / "mine.json", speedup=3, reporter=Collected())
    with pytest.raises(UsageError, match="--speedup: must be above 1, got none"):
        decompose(run, reporter=Collected())


# -- families ------------------------------------------------------------------------------------------------


def bytes_of(run):
    return {p.relative_to(run.path): p.read_bytes() for p in sorted(run.path.rglob("*.safetensors"))}


def test_a_family_is_what_single_runs_are_and_shares_what_it_can(run, tmp_path):
    result = family(run, speedups=(2.0, 3.0), reporter=Collected())
    members = [RunDirectory.open(f"{run}-{name}") for name in ("2x", "3x")]
    for member, speedup in zip(members, (2.0, 3.0)):
        assert 0.98 <= cost(network_file.load(member.model_dir), SHAPE).macs * speedup / cost(
            network_file.load(run.original_dir), SHAPE
        ).macs <= 1  # fmt: skip
        for name in ("frozen.h5", "curves.npz"):
            assert (member.path / name).samefile(run.path / name)
        assert [stage.state for stage in status(member).stages[:2]] == ["done", "done"]
    alone = RunDirectory(tmp_path / "alone")
    decompose(alone, speedup=3.0, source_run=run.path, reporter=Collected())
    assert bytes_of(alone) == bytes_of(members[1])
    lines = list(result.lines())
    assert lines[0].split()[:2] == ["run", "asked"]
    assert [line.split()[1] for line in lines[1:3]] == ["2x", "3x"] and str(members[0]) in lines[1]
    assert run.config("decompose") is None and not run.model_dir.exists()


def test_a_family_goes_on_where_it_was(run):
    whole = family(run, speedups=(2.0,), reporter=Collected())
    before = bytes_of(whole.members[0].run)
    again = family(run, speedups=(2.0, 3.0), reporter=Collected())
    assert [member.done_before for member in again.members] == [True, False]
    assert bytes_of(again.members[0].run) == before


def test_a_family_with_one_member_out_of_reach_does_no_work(run):
    with pytest.raises(TargetError, match="got 5000x"):
        family(run, speedups=(2.0, 5000.0), reporter=Collected())
    assert not RunDirectory(f"{run}-2x").path.exists()


# -- the survey behind it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 4])
def test_the_survey_is_the_same_with_any_number_of_workers(run, tmp_path, monkeypatch, workers):
    before = run.curves.read_bytes()
    batched = survey.in_batches
    sizes = []

    def in_batches(items, size_of, most, budget):
        for batch in batched(items, size_of, workers, budget):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(survey, "in_batches", in_batches)
    parallel = survey.in_parallel
    monkeypatch.setattr(survey, "in_parallel", lambda function, tasks: parallel(function, tasks, workers))
    run.curves.unlink()
    planned(run)
    assert max(sizes) == workers
    with np.load(run.curves) as now, np.load(io.BytesIO(before)) as then:
        assert set(now) == set(then) and all(now[key].tobytes() == then[key].tobytes() for key in now)
