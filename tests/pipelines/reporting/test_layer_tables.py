"""Tables of the layers of a run, written by hand; a damaged file is one line with a way out that works."""

import numpy as np
import pytest
import torch

from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan, Plan
from decomp.data.formats import network_file
from decomp.data.formats.curves_file import Survey, write_curves
from decomp.data.formats.json_files import write_json
from decomp.data.formats.layer_file import write_layer
from decomp.errors import FileError
from decomp.pipelines.reporting import layer_tables
from decomp.pipelines.reporting.tables import Missing
from decomp.pipelines.run.directory import RunDirectory
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, LayerSolution, Selection
from tests.pipelines.small_runs import SHAPE, network

FACTS = {"macs_before": 900, "macs_after": 300, "params_before": 90, "params_after": 45}
BEGUN = {"asked": {"speedup": 3.0}, "command": "decompose --run r --speedup 3x --skip a"}
PLAN = Plan(2.0, ("prune",), "joint", [LayerPlan("0"), LayerPlan("3", keep=4), LayerPlan("7")]).to_json()


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


@pytest.fixture
def finished(run):
    """A decomposed run with curves and one pruned layer."""
    network_file.save(network(8, 0), run.original_dir, input_shape=SHAPE)
    network_file.save(network(4, 1), run.model_dir, input_shape=SHAPE, meta={"plan": PLAN})
    surveyed(run)
    reports = [{"layer": name, "errors": {"refit": {"fitted": 0.1}}} for name in ("0", "3")]
    solved(run, 0, "0")
    solved(run, 1, "3", Selection(torch.tensor([0, 2]), 3))
    run.update_config("decompose", {**BEGUN, **FACTS, "layers": reports})
    return run


def surveyed(run):
    own = LayerCurves(prune=np.array([9.0, 0.5, 0.25, 0.0]))
    none = LayerCurves()
    write_curves(run.curves, "any", Survey({"a": own, "3": own}, {"a": none, "3": none}, {}))


def solved(run, index, name, selection=None):
    factored = FactoredConv((ConvFactor(torch.zeros(1, 2, 1, 1), None, Geometry()),), ("dense",))
    write_layer(run.layer_file(index, name), LayerSolution(name, selection, factored), {}, "p")


def test_errors_of_older_runs_are_read_too(run):
    steps = {"prune": {"fitted": 0.1, "held_out": 0.2, "felt": 0.3}, "refine": {"fitted": 0.4}}
    run.update_config("decompose", {"asked": {}, "layers": [{"layer": "a", "errors": steps}]})
    table = layer_tables.errors(run)
    assert table.header == ("layer", "step", "fitted", "held_out", "output_error")
    assert table.rows == [("a", "prune", 0.1, 0.2, 0.3), ("a", "refine", 0.4, None, None)]


def test_curves_have_a_row_for_every_size_and_mark_the_plan(run):
    surveyed(run)
    assert layer_tables.curves(run).why == "there is no plan yet"
    write_json(run.plan_json, Plan(2.0, ("prune",), "joint", [LayerPlan("a", keep=2), LayerPlan("b")]).to_json())
    assert layer_tables.curves(run).rows == [
        ("a", "prune", 1, 3, 0.5, None, 0), ("a", "prune", 2, 3, 0.25, None, 1), ("a", "prune", 3, 3, 0.0, None, 0),
    ]  # fmt: skip


def test_channels_of_pruned_layers_are_listed_one_by_one(run):
    solved(run, 0, "a")
    assert layer_tables.channels(run).why == "nothing is decomposed yet"
    solved(run, 1, "b", Selection(torch.tensor([0, 2]), 3))
    assert layer_tables.channels(run).rows == [("b", 0, 1), ("b", 1, 0), ("b", 2, 1)]


def test_nothing_is_missing_where_a_finished_plan_prunes_no_layer(finished):
    assert layer_tables.channels(finished).rows == [("3", 0, 1), ("3", 1, 0), ("3", 2, 1)]
    solved(finished, 1, "3")
    assert layer_tables.channels(finished) is None


def test_an_unfinished_decomposition_goes_on_with_its_own_command(run):
    run.update_config("decompose", BEGUN)
    own = f"decomp decompose --run {run} --speedup 3x --skip a"
    for collector in (layer_tables.layers, layer_tables.errors, layer_tables.channels):
        missing = collector(run)
        assert (missing.why, missing.command) == ("the decomposition is not finished", own)
    assert layer_tables.curves(run).command == own


DAMAGED = {
    "layers/001_3.safetensors": (layer_tables.channels, "or delete it: the report is then made without this figure"),
    "curves.npz": (layer_tables.curves, "or delete it: the report is then made without this figure"),
    "model/structure.json": (layer_tables.layers, "run decompose with --redo"),
    "model/weights.safetensors": (layer_tables.layers, "run decompose with --redo"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_a_way_out(finished, name):
    collector, way_out = DAMAGED[name]
    path = finished.path / name
    whole = path.read_bytes()
    assert not isinstance(collector(finished), Missing)
    for spoiled in (b"", whole[: len(whole) // 2], b'{"name": 3}'):
        path.write_bytes(spoiled)
        with pytest.raises(FileError, match=way_out) as caught:
            collector(finished)
        assert path.name in str(caught.value) and "\n" not in str(caught.value) and path.read_bytes() == spoiled
    if "delete it" in way_out:
        path.unlink()
        missing = collector(finished)
        assert isinstance(missing, Missing) and "gone" in missing.why and "--redo" not in missing.command


def test_a_damaged_plan_of_an_unfinished_decomposition_is_named(run):
    surveyed(run)
    run.update_config("decompose", BEGUN)
    run.plan_json.write_text('{"layers": ')
    with pytest.raises(FileError, match="plan.json: .*put a copy of it back, or make it anew with decompose --redo"):
        layer_tables.curves(run)


@pytest.mark.parametrize(
    "text", ["", '{"spaces": [{"space": "a"}]}', '{"spaces": 3}', '{"spaces": [{"keep": 2}]}', "[]"]
)
def test_a_damaged_list_of_channels_is_named_with_the_stage_that_makes_it(run, text):
    network_file.save(network(8, 0), run.original_dir, input_shape=SHAPE)
    network_file.save(network(4, 1), run.pruned_dir, input_shape=SHAPE)
    run.update_config("prune", {"asked": {"ratio": 0.5}, **FACTS})
    run.prune_json.write_text('{"spaces": [{"space": "a", "channels": 2, "keep": [1]}]}')
    assert layer_tables.channels(run).rows == [("a", 0, 0), ("a", 1, 1)]
    run.prune_json.write_text(text)
    with pytest.raises(FileError, match="prune.json: .*put a copy of it back, or prune again with --redo"):
        layer_tables.channels(run)


def test_a_pruning_that_was_stopped_goes_on(run):
    run.update_config("prune", {"asked": {"ratio": 0.5}})
    assert layer_tables.channels(run).why == layer_tables.layers(run).why == "the pruning is not finished"
