"""Summary of a decomposition: the costs of each layer before and after, read from a run."""

import pytest
from torch import nn

from decomp.allocation.plan import LayerPlan, Plan
from decomp.data.formats import network_file
from decomp.data.formats.json_files import write_json
from decomp.errors import FileError
from decomp.pipelines.console.layer_table import LayerSummary, layer_rows
from decomp.pipelines.reporting.summary import Summary, ranks, summarise, width
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.small_runs import SHAPE, network


@pytest.fixture
def run(tmp_path):
    """A run whose network of widths 8 and 16 became one of widths 4 and 8."""
    run = RunDirectory.create(tmp_path / "run")
    network_file.save(network(8, 0), run.original_dir, input_shape=SHAPE)
    network_file.save(network(4, 1), run.model_dir, input_shape=SHAPE)
    layers = [LayerPlan("0"), LayerPlan("3", keep=4), LayerPlan("7", keep=8)]
    write_json(run.plan_json, Plan(3.0, ("prune",), "joint", layers).to_json())
    reports = [
        {"layer": "0", "errors": {"refit": {"fitted": 0.1}}},
        {"layer": "3", "errors": {"prune": {"fitted": 0.1}, "refine": {"fitted": 0.3, "held_out": 0.4}}},
    ]  # fmt: skip
    facts = {"macs_before": 900, "macs_after": 300, "params_before": 90, "params_after": 45}
    run.update_config("freeze", {"asked": {"model": "zoo:x", "data": "digits"}})
    run.update_config("decompose", {"asked": {"speedup": 3.0}, "layers": reports, **facts})
    return run


def test_each_layer_has_its_costs_before_and_after(run):
    summary = summarise(run)
    assert (summary.model, summary.speedup, summary.macs_before, summary.params_after) == ("zoo:x", 3.0, 900, 45)
    first, second, last = summary.layers
    assert (first.kind, first.macs_before, first.macs_after) == ("conv", 8 * 9 * 64, 4 * 9 * 64)
    assert (second.macs_before, second.macs_after) == (16 * 8 * 9 * 4, 8 * 4 * 9 * 4)
    assert (last.kind, last.params_before, last.params_after) == ("linear", 10 * (64 + 1), 10 * (32 + 1))
    assert [layer.becomes for layer in summary.layers] == [
        "writes 4 of 8 channels", "reads 4 of 8 channels, writes 8 of 16 channels", "reads 32 of 64 channels",
    ]  # fmt: skip


def test_the_error_is_that_of_the_last_step_on_held_out_images_where_there_are_any(run):
    assert [layer.error for layer in summarise(run).layers] == [0.1, 0.4, None]


def test_a_run_that_is_not_decomposed_names_the_command(tmp_path):
    run = RunDirectory.create(tmp_path / "new")
    with pytest.raises(FileError, match="no decomposed network yet; run `decomp decompose --run"):
        summarise(run)


def test_a_chain_reads_at_its_first_and_writes_at_its_last_layer():
    chain = nn.Sequential(nn.Conv2d(4, 2, (3, 1)), nn.ReLU(), nn.Conv2d(2, 6, (1, 3)))
    assert (width(chain, "in", first=True), width(chain, "out")) == (4, 6)
    assert (width(nn.Linear(7, 3), "in", first=True), width(nn.Linear(7, 3), "out")) == (7, 3)


def test_ranks_are_told_beside_those_that_change_nothing():
    old = nn.Conv2d(4, 8, (3, 2))
    assert ranks(LayerPlan("a", keep=2, spatial_rank=5, channel_rank=3), old) == {"spatial": (5, 12), "channel": (3, 8)}
    assert ranks(LayerPlan("a", channel_rank=3), nn.Conv2d(9, 5, 1)) == {"channel": (3, 5)}
    assert ranks(LayerPlan("a", keep=2), old) == ranks(None, old) == {}


def test_the_lines_give_costs_closeness_and_the_table():
    layers = [LayerSummary("<b>", "conv", (2, 4), (8, 8), {}, 4000, 1000, 40, 10, 0.125)]
    summary = Summary("m", 4.0, 4_000_000, 1_000_000, 2000, 500, {"words": "close"}, layers)
    assert summary.costs() == "4.00 M → 1.00 M multiply-accumulates (4.00x, target 4x), 0.002 M → 0.001 M parameters"
    assert summary.rows() == layer_rows(layers)
    first, second, header, row = summary.lines()
    assert (first, second) == (f"m: {summary.costs()}", "close")
    assert header.split() == ["layer", "reads", "writes", "MACs", "parameters", "error"]
    assert row.split() == "<b> 2 of 4 8 4 → 1 k (4.0x) 40 → 10 12.5 %".split()
    assert "&lt;b&gt;" in summary._repr_html_() and summary.to_json()["layers"][0]["macs_after"] == 1000


def test_a_target_in_another_quantity_is_not_compared_with_the_multiply_accumulates(run):
    facts = run.config("decompose")
    latency = {
        "runtime": "onnxruntime", "batch_size": 1, "layout": "contiguous", "device": "CPU x", "threads": 2,
        "measured_speedup": 2.9, "measured_ms": 1.0, "original_ms": 2.9, "sizes": "a",
    }  # fmt: skip
    run.update_config("decompose", {**facts, "asked": {"speedup": 3.0, "cost": "latency"}, "latency": latency})
    assert summarise(run).costs() == (
        "0.00 M → 0.00 M multiply-accumulates (3.00x), 0.000 M → 0.000 M parameters (2.00x); target 3x in measured "
        "time in onnxruntime at batch 1: a network of these sizes was measured 2.90x as fast as the original in "
        "onnxruntime: 1 ms for 2.9 ms, batch of 1, contiguous, CPU x, 2 threads"
    )
    run.update_config("decompose", {**facts, "asked": {"speedup": 2.0, "cost": "params"}})
    assert summarise(run).costs().endswith("(3.00x), 0.000 M → 0.000 M parameters (2.00x); target 2x in parameters")
    run.update_config("decompose", {**facts, "asked": {"speedup": 3.0, "cost": "macs"}})
    assert "(3.00x, target 3x)" in summarise(run).costs()
