"""Plan of a run: allocated from options, read from a file, or refused."""

import json
import re

import pytest
import torch

from decomp.allocation.plan import LATENCY_FIELDS, Plan
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.data.formats.json_files import write_json
from decomp.errors import TargetError, UsageError
from decomp.pipelines.decomposition.latency_conditions import digest_of_sizes
from decomp.pipelines.measure.devices import full_name
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import Collected, layer_of, planned

SHAPE = (1, 8, 8)
CONVS = ["0", "3", "7", "10"]


def test_a_target_out_of_reach_names_the_limiting_options_and_the_speedup_without_each(vgg_run):
    with pytest.raises(TargetError) as caught:
        planned(vgg_run, speedup=30, skip=["7"], max_layer_speedup=4.0)
    words = str(caught.value)
    most, without_skip, without_cap = (float(x) for x in re.findall(r"([\d.]+)x", words.replace("got 30x", "")))
    assert "limited by --skip 7 (without:" in words and "--max-layer-speedup 4 (without:" in words
    assert most < min(without_skip, without_cap)
    reached = planned(vgg_run, speedup=most, skip=["7"], max_layer_speedup=4.0)
    assert reached["macs_before"] / reached["macs_after"] >= most
    with pytest.raises(TargetError, match=f"at most {without_skip:g}x? ?"):
        planned(RunDirectory(vgg_run), speedup=30, max_layer_speedup=4.0, redo=True)


def test_an_attempt_that_ends_without_a_plan_leaves_no_record(vgg_run):
    with pytest.raises(TargetError, match="at most"):
        decompose(vgg_run, speedup=5000, reporter=Collected())
    decompose(vgg_run, speedup=2, plan_only=True, reporter=Collected())
    assert vgg_run.config("decompose")["asked"]["speedup"] == 2


def test_a_plan_by_parameters_meets_the_target_in_parameters(vgg_run):
    result = decompose(vgg_run, speedup=3, cost="params", reporter=Collected())
    before, after = (
        cost(network_file.load(vgg_run.original_dir), SHAPE),
        cost(network_file.load(vgg_run.model_dir), SHAPE),
    )
    assert 0.98 <= 3 * after.params / before.params <= 1
    assert (after.params, after.macs) == (result.facts["params_after"], result.facts["macs_after"])
    plan = json.loads(vgg_run.plan_json.read_text())
    assert (plan["cost"], plan["params_after"]) == ("params", after.params)


def test_a_given_plan_decides_the_sizes_and_another_one_needs_redo(vgg_run, tmp_path):
    plan = planned(vgg_run, speedup=2)
    layer_of(plan, "7").update(spatial_rank=13, channel_rank=None, keep=21)
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    other = RunDirectory(tmp_path / "other")
    result = decompose(other, plan=tmp_path / "mine.json", source_run=vgg_run.path, reporter=Collected())
    assert network_file.load(other.model_dir).get_submodule("7.vertical").weight.shape == (13, 21, 3, 1)
    assert result.facts["asked"]["speedup"] == 2
    again = decompose(other, plan=tmp_path / "mine.json", reporter=Collected())
    assert again.done_before
    layer_of(plan, "7").update(spatial_rank=14)
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match="was decomposed with --plan one of digest .*--redo"):
        decompose(other, plan=tmp_path / "mine.json", reporter=Collected())
    decompose(other, plan=tmp_path / "mine.json", redo=True, reporter=Collected())
    assert len(network_file.load(other.model_dir).get_submodule("7.vertical").weight) == 14


def test_an_edited_plan_by_latency_does_not_claim_the_time_of_the_sizes_that_were_measured(vgg_run, tmp_path):
    data = planned(vgg_run, speedup=2, plan_only=True)
    measured = dict.fromkeys(LATENCY_FIELDS, 1.0) | {
        "device": full_name(torch.device("cpu")), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "layout": "contiguous", "measured_speedup": 1.3,
    }  # fmt: skip
    plan = Plan.from_json({**data, "cost": "latency", "latency": measured})
    plan.latency["sizes"] = digest_of_sizes(plan, ())

    def said(folder):
        write_json(tmp_path / "mine.json", plan.to_json())
        reporter, other = Collected(), RunDirectory(tmp_path / folder)
        options = {"source_run": vgg_run.path, "refine_blocks": False, "reporter": reporter}
        result = decompose(other, plan=tmp_path / "mine.json", **options)
        claims = [line for line in (*reporter.messages, *result.findings()) if "a network of these sizes was" in line]
        return claims, other.config("decompose")["latency"], result.findings()

    claims, record, _ = said("as measured")
    assert len(claims) == 2 and "other_sizes" not in record
    plan.layers[2].spatial_rank = 1
    claims, record, lines = said("edited")
    assert claims == [] and record["other_sizes"] and record["measured_speedup"] == 1.3
    assert any("of these sizes was not measured, evaluate does; before the plan was edited: measured 1.30x" in line
               for line in lines)  # fmt: skip


def test_costs_of_a_plan_written_by_hand_are_counted(vgg_run, tmp_path):
    layers = [{"layer": name} for name in (*CONVS, "16")]
    layers[1]["spatial_rank"] = 8
    mine = {"speedup": 1.2, "steps": ["spatial"], "allocation": "by hand", "layers": layers}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    decompose(vgg_run, plan=tmp_path / "mine.json", plan_only=True, reporter=Collected())
    plan = json.loads(vgg_run.plan_json.read_text())
    assert 0 < plan["macs_after"] < plan["macs_before"] and plan["params_before"] > plan["params_after"] > 0


def test_a_plan_that_does_not_fit_the_network_is_refused_and_leaves_no_run(vgg_run, tmp_path):
    plan = planned(vgg_run)
    layer_of(plan, "7")["channel_rank"] = 500
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    other = tmp_path / "other"
    with pytest.raises(TargetError, match=r"7: channel_rank must be in 1\.\.\d+ \(filters\), got 500; change it in"):
        decompose(other, plan=tmp_path / "mine.json", source_run=vgg_run.path, reporter=Collected())
    assert not other.exists()
    with pytest.raises(UsageError, match="--plan: says the speed-up itself"):
        decompose(vgg_run, plan=tmp_path / "mine.json", speedup=3, reporter=Collected())
    with pytest.raises(UsageError, match="--speedup: must be a number above 1, got none"):
        decompose(vgg_run, reporter=Collected())
