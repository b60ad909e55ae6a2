"""Plan and decompose on small chains and branching networks, over scikit-learn's digits."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import fx, nn

import decomp
from decomp.cost.count import cost
from decomp.data import sources
from decomp.data.formats import network_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.data.formats.json_files import read_json
from decomp.errors import DecompError, FileError, TargetError, UsageError
from decomp.execution import sampled_rows
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.operations import SUMS
from decomp.graph.tracing import trace
from decomp.pipelines.console.layer_table import layer_lines, layer_rows
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.freeze import freeze
from tests.pipelines.digit_runs import NETWORKS, SHAPE, Collected, bytes_of, make_run, planned

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


@pytest.mark.parametrize("run", ["plain", "residual", "mirrored", "upward"], indirect=True)
@pytest.mark.parametrize("steps", [("spatial",), ("channel",), ("prune",), ("spatial", "channel", "prune")])
def test_any_steps_meet_the_target_and_the_result_loads_alone(run, steps):
    told = Collected()
    result = decompose(run, speedup=1.4, steps=steps, reporter=told)
    original, network = network_file.load(run.original_dir), decomp.load(run.path)
    before, after = cost(original, SHAPE), cost(network, SHAPE)
    assert before.macs == result.facts["macs_before"] and after.macs == result.facts["macs_after"]
    assert after.macs <= before.macs / 1.4
    plan = json.loads(run.plan_json.read_text())
    sizes = {"prune": "keep", "spatial": "spatial_rank", "channel": "channel_rank"}
    for step, name in sizes.items():
        used = any(layer[name] is not None for layer in plan["layers"])
        assert used <= (step in steps)
    assert torch.isfinite(network(torch.randn(2, *SHAPE))).all()
    # Before any layer was solved, each was listed with what it gets or why it is left alone.
    first_solved = next(i for i, line in enumerate(told.messages) if "error of its outputs" in line)
    listed = "\n".join(told.messages[:first_solved])
    assert all(layer["layer"] in listed for layer in plan["layers"]) and "reads the image itself" in listed


@pytest.mark.parametrize("run", ["plain", "residual"], indirect=True)
def test_the_plan_alone_is_shown_with_the_sizes_and_costs_that_the_result_has(run):
    reporter = Collected()
    reporter.command = "decompose --run 'my run' --plan-only --speedup 2x --keep-first"
    planned = decompose(run, speedup=1.5, plan_only=True, reporter=reporter)
    done = decompose(run, speedup=1.5, reporter=Collected())
    rows = layer_rows(summarise(run).layers)
    of_plan, of_result = ([dict(zip(table[0], row)) for row in table] for table in (planned.facts["table"], rows))
    for wanted, got in zip(of_result, of_plan, strict=True):
        # Parameters between two layers are counted with the reader in a plan; errors are not known there.
        for column in ("layer", "reads", "rank", "writes", "MACs", ""):
            assert got.get(column) == wanted.get(column), column
    *table, file, following = planned.lines()
    assert len(table) == len(rows) and str(run.plan_json) in file
    assert following == "next: decomp decompose --run 'my run' --speedup 2x --keep-first"
    shown = list(done.lines())
    assert shown[1 : 1 + len(rows)] == layer_lines(summarise(run).layers)
    assert [line for line in reporter.messages if " of 2: " in line] == [
        "decompose 1 of 2: survey of all sizes", "decompose 2 of 2: plan",
    ]  # fmt: skip


@pytest.mark.parametrize("run", ["inverted"], indirect=True)
def test_where_multiples_miss_the_target_smaller_ones_are_taken_and_told(run):
    told = Collected()
    decompose(run, speedup=2, steps=("prune",), plan_only=True, reporter=told)
    plan = json.loads(run.plan_json.read_text())
    assert 0.98 <= plan["macs_after"] * 2 / plan["macs_before"] <= 1
    assert any("because multiples of 8 miss the target" in note for note in plan["notes"])


@pytest.mark.parametrize("run", ["inverted", "dense"], indirect=True)
def test_shared_inputs_are_sampled_and_private_ones_narrowed(run):
    decompose(run, speedup=2, steps=("prune",), plan_only=True, reporter=Collected())
    plan = json.loads(run.plan_json.read_text())
    for item in plan["layers"]:  # also where the allocation found no sampler worth its error
        if item["layer"] in ("blocks.1.0", "convs.2"):
            item["keep"] = 5
    run.plan_json.write_text(json.dumps(plan))
    decompose(run, speedup=2, steps=("prune",), reporter=Collected())
    network, original = decomp.load(run.path), network_file.load(run.original_dir)
    assert cost(network, SHAPE).macs <= cost(original, SHAPE).macs / 2
    kept = {item["layer"]: item["keep"] for item in json.loads(run.plan_json.read_text())["layers"]}
    if "blocks.0.6" in kept:  # the depthwise convolution goes with the expansion
        assert kept["blocks.0.6"] < 24
        for path in ("blocks.0.0", "blocks.0.3"):
            assert network.get_submodule(path).out_channels == kept["blocks.0.6"]
        assert network.get_submodule("blocks.0.3").groups == kept["blocks.0.6"]
    sampled = [name for name, keep in kept.items() if keep and f"{name}.select.index" in network.state_dict()]
    assert sampled and all(network.get_submodule(f"{name}.select").out_channels == kept[name] for name in sampled)
    assert network.get_submodule("stem").out_channels == 8
    other = decompose(run, speedup=1.3, steps=("spatial", "prune"), sampler=False, redo=True, reporter=Collected())
    assert not any("select" in key for key in network_file.load(run.model_dir).state_dict())
    assert other.facts["macs_after"] <= other.facts["macs_before"] / 1.3


@pytest.mark.parametrize("run", ["residual", "inverted"], indirect=True)
def test_the_last_layer_of_a_branch_makes_up_for_its_shortcut(run):
    """The sum, not the branch alone, is what comes close; its mean error over the fitted rows is zero."""
    last = (
        "conv2"
        if any(k.startswith("conv2") for k in network_file.load(run.original_dir).state_dict())
        else "blocks.1.6"
    )
    errors = {}
    for recovery in (False, True):
        decompose(run, speedup=1.2, plan_only=True, recovery=recovery, redo=recovery, reporter=Collected())
        data = json.loads(run.plan_json.read_text())
        for item in data["layers"]:
            item.update(keep=None, channel_rank=None, spatial_rank=1 if item["layer"] == "stem" else None)
        run.plan_json.write_text(json.dumps(data))
        decompose(run, speedup=1.2, recovery=recovery, reporter=Collected())
        network = network_file.load(run.model_dir)
        view = NetworkGraph(trace(network), SHAPE)
        total = next(node for node in view.module.graph.nodes if node.target in SUMS)
        with FrozenFile(run.frozen) as frozen, torch.no_grad():
            n_fit = 360
            values = fx.Interpreter(view.module, garbage_collect_values=False)
            values.run(frozen.images(0, n_fit))
            now = sampled_rows.responses(values.env[total], frozen.positions("8x8")[:n_fit])
            wanted = frozen.responses(last, 0, n_fit) + frozen.responses(f"{last}: shortcut", 0, n_fit)
        off = (now - wanted).flatten(0, 1)
        errors[recovery] = (off.mean(0).abs().max().item(), off.square().mean().item(), wanted.std().item())
    assert errors[True][0] < 1e-5 * errors[True][2] and errors[True][1] < errors[False][1]
    if last == "conv2":  # an activation on the shortcut, so that its errors have a mean
        assert errors[False][0] > 1e-3 * errors[False][2]


def test_nothing_is_lost_at_full_sizes(run):
    decompose(run, speedup=2, plan_only=True, reporter=Collected())
    data = json.loads(run.plan_json.read_text())
    for layer in data["layers"]:
        layer.update(keep=None, spatial_rank=None, channel_rank=None)
    data["layers"][1].update(keep=12, spatial_rank=32, channel_rank=16)
    data["layers"][2].update(keep=16, spatial_rank=48)
    run.plan_json.write_text(json.dumps(data))
    decompose(run, speedup=2, reporter=Collected(), activation_aware=True)
    x = sources.open_source("digits").train.images(torch.arange(200))
    wanted, got = network_file.load(run.original_dir)(x), network_file.load(run.model_dir)(x)
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


FULL_SIZES = {  # channels read, spatial and channel rank
    "mirrored": {"encoder.conv1": (8, 24, 12), "encoder.conv2": (12, 24, 8), "level": (8, 24, 8)},
    "upward": {"up": (16, 32, 8), "hidden": (8, 24, 12), "again": (12, 20, 10)},
}


@pytest.mark.parametrize("run", FULL_SIZES, indirect=True)
def test_nothing_is_lost_at_full_sizes_of_layers_that_are_called_several_times_or_transposed(run):
    plan = planned(run)
    sizes = FULL_SIZES["upward" if any(layer["layer"] == "up" for layer in plan["layers"]) else "mirrored"]
    for layer in plan["layers"]:
        keep, spatial, channel = sizes.get(layer["layer"], (None, None, None))
        layer.update(keep=keep, spatial_rank=spatial, channel_rank=channel)
    run.plan_json.write_text(json.dumps(plan))
    decompose(run, speedup=2, reporter=Collected())
    x = sources.open_source("digits").train.images(torch.arange(200))
    network = network_file.load(run.model_dir)
    wanted, got = network_file.load(run.original_dir)(x), network(x)
    assert all(len(network.get_submodule(name)) >= 3 for name in sizes)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_doing_it_twice_does_nothing_and_otherwise_refuses_until_redo(run):
    decompose(run, speedup=2, reporter=Collected())
    before = bytes_of(run)
    again = decompose(run, speedup=2, reporter=Collected())
    assert again.done_before and "already" in again.lines()[0] and bytes_of(run) == before
    assert again.lines()[-1] == f"next: decomp finetune --run {run}"
    RunDirectory.open(run).update_config("finetune", {"asked": {}})
    assert again.lines()[-1] == f"next: decomp status --run {run}"
    RunDirectory.open(run).update_config("finetune", None)
    with pytest.raises(UsageError, match="was decomposed with --speedup 2, got --speedup 3"):
        decompose(run, speedup=3, reporter=Collected())
    decompose(run, speedup=3, redo=True, reporter=Collected())
    assert (
        cost(network_file.load(run.model_dir), SHAPE).macs <= cost(network_file.load(run.original_dir), SHAPE).macs / 3
    )


def test_another_run_from_the_same_points_equals_one_of_its_own(run, tmp_path):
    decompose(tmp_path / "other", speedup=2, source_run=run.path, reporter=Collected())
    decompose(run, speedup=2, reporter=Collected())
    assert bytes_of(run) == bytes_of(RunDirectory.open(tmp_path / "other"))


def test_an_edited_plan_is_used_and_a_wrong_one_refused(run):
    decompose(run, speedup=2, plan_only=True, reporter=Collected())
    assert not run.model_dir.exists()
    data = json.loads(run.plan_json.read_text())
    data["layers"][1]["spatial_rank"] = 100
    run.plan_json.write_text(json.dumps(data))
    with pytest.raises(TargetError, match=r"3: spatial_rank must be in 1\.\.32"):
        decompose(run, speedup=2, reporter=Collected())
    data["layers"][1].update(spatial_rank=5, keep=7, channel_rank=None)
    run.plan_json.write_text(json.dumps(data))
    decompose(run, speedup=2, reporter=Collected())
    with safe_open(str(run.layer_file(1, "3")), "pt") as file:
        assert file.get_slice("vertical.weight").get_shape() == [5, 7, 3, 1]


def test_redoing_keeps_what_a_person_edited(run):
    decompose(run, speedup=2, reporter=Collected())
    ours = run.plan_json.read_text()
    decompose(run, speedup=2, redo=True, reporter=Collected())
    assert run.plan_json.read_text() == ours
    data = json.loads(ours)
    data["layers"][1].update(spatial_rank=5, keep=7, channel_rank=None)
    run.plan_json.write_text(json.dumps(data))
    decompose(run, speedup=2, redo=True, reporter=Collected())
    assert json.loads(run.plan_json.read_text()) == data
    assert network_file.load(run.model_dir).get_submodule("3.vertical").out_channels == 5
    decompose(run, speedup=3, redo=True, reporter=Collected())
    assert json.loads(run.plan_json.with_name("plan.previous.json").read_text()) == data
    assert json.loads(run.plan_json.read_text())["speedup"] == 3


def test_points_of_another_network_are_refused(run):
    network = network_file.load(run.original_dir)
    network.get_submodule("0").weight.data *= 2
    network_file.save(network, run.original_dir, input_shape=SHAPE)
    with pytest.raises(FileError, match="was frozen from the network"):
        decompose(run, speedup=2, reporter=Collected())


def test_out_of_reach_and_senseless_targets(run):
    with pytest.raises(TargetError, match=r"at most \d+\.\d+x can be reached"):
        decompose(run, speedup=5000, reporter=Collected())
    with pytest.raises(UsageError, match="must be a number above 1, got 1"):
        decompose(run, speedup=1, reporter=Collected())
    assert read_json(run.run_json)["stages"]["freeze"]


@pytest.mark.parametrize("allocation", ["energy", "uniform"])
@pytest.mark.parametrize("selector", ["lasso", "random"])
def test_other_allocations_and_selectors(run, allocation, selector):
    result = decompose(run, speedup=2, allocation=allocation, selector=selector, reporter=Collected())
    assert result.facts["macs_after"] <= result.facts["macs_before"] / 2


def test_a_network_with_nothing_to_treat_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "depth", lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(64, 10)))
    run = make_run(tmp_path / "run", "depth", n_images=30)
    with pytest.raises(DecompError, match="no layer can be treated with the steps spatial"):
        decompose(run, speedup=2, steps=("spatial",), reporter=Collected())


@pytest.mark.parametrize("run", ["residual", "dense"], indirect=True)
def test_whole_spaces_are_narrowed_before_the_layers_and_all_readers_fitted(run):
    decompose(run, speedup=2, coupled=0.75, multiple=1, reporter=Collected())
    network, original = decomp.load(run.path), network_file.load(run.original_dir)
    plan = json.loads(run.plan_json.read_text())
    assert plan["spaces"]["stem"] == 6 and network.get_submodule("stem").out_channels == 6
    assert cost(network, SHAPE).macs <= cost(original, SHAPE).macs / 2
    assert plan["macs_after"] == cost(network, SHAPE).macs and plan["params_before"] == cost(original, SHAPE).params
    # Narrower still by hand: chosen anew, and the layers fitted on what is left.
    data = {**plan, "spaces": {"stem": 3}}
    for item in data["layers"]:
        item.update(keep=None, spatial_rank=None, channel_rank=None)
    run.plan_json.write_text(json.dumps(data))
    decompose(run, speedup=2, coupled=0.75, multiple=1, redo=True, reporter=Collected())
    again = decomp.load(run.path)
    assert again.get_submodule("stem").out_channels == 3
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        x = frozen.images(0, 360)
        off = again(x) - original(x)
    assert off.mean(0).abs().max() < 1e-4 * original(x).std()  # the head, a reader, was fitted anew


@pytest.mark.parametrize("run", ["grouped"], indirect=True)
def test_groups_go_as_a_whole_with_the_channels_in_front_of_and_behind_them(run):
    decompose(run, speedup=1.5, coupled=0.5, multiple=1, reporter=Collected())
    network, original = decomp.load(run.path), network_file.load(run.original_dir)
    assert json.loads(run.plan_json.read_text())["spaces"] == {"stem": 4, "conv1": 2}
    assert network.get_submodule("conv2").groups == 2 and network.get_submodule("conv2").out_channels == 6
    assert cost(network, SHAPE).macs <= cost(original, SHAPE).macs / 1.5
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        x = frozen.images(0, 360)
        off = network(x) - original(x)
    assert off.mean(0).abs().max() < 1e-4 * original(x).std()


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory):
    """A frozen network whose first linear layer has more columns than are fitted."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "wide.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 256, 3, padding=1),\n"
        "        nn.ReLU(), nn.Flatten(), nn.Linear(16384, 40), nn.ReLU(), nn.Linear(40, 10))\n"
    )
    options = {"model": f"{folder / 'wide.py'}:build", "data": "digits", "n_images": 100, "n_points": 5}
    freeze(folder / "run", **options, reporter=Collected())
    return folder / "run"


@pytest.mark.parametrize("allocation", ["uniform", "joint"])
@pytest.mark.parametrize("steps", [("prune",), ("channel", "prune")])
def test_a_layer_too_large_to_be_fitted_keeps_its_outputs_and_the_plan_its_cost(wide_run, tmp_path, allocation, steps):
    shutil.copytree(wide_run, tmp_path / "run")
    result = decompose(
        tmp_path / "run", speedup=1.3, steps=steps, allocation=allocation, multiple=1, reporter=Collected()
    )
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [layer["keep"] for layer in plan["layers"]][2:] == [None, None]
    original = network_file.load(tmp_path / "run" / "original")
    for network in (decomp.load(tmp_path / "run"), decomp.load(tmp_path / "run", into=original)):
        assert cost(network, SHAPE).macs == plan["macs_after"] == result.facts["macs_after"]
        assert network.get_submodule("5").weight.shape == (40, 16384)


def test_what_only_the_outputs_of_a_layer_too_large_to_be_fitted_could_give_is_out_of_reach(wide_run, tmp_path):
    shutil.copytree(wide_run, tmp_path / "run")
    with pytest.raises(TargetError, match=r"2\.28"):
        decompose(tmp_path / "run", speedup=2.2894, steps=("prune",), multiple=1, reporter=Collected())


@pytest.mark.parametrize("mistake", [{"device": "cuda:99"}, {"device": "gpu"}, {"memory": 1}, {"memory": "4 apples"}])
def test_starting_over_deletes_nothing_where_device_or_memory_are_refused(run, mistake):
    decompose(run, speedup=2, reporter=Collected())
    before = bytes_of(run)
    with pytest.raises(UsageError, match="^--(device|memory): "):
        decompose(run, speedup=3, redo=True, reporter=Collected(), **mistake)
    assert bytes_of(run) == before and run.plan_json.is_file() and run.config("decompose")["macs_after"]


def test_starting_over_is_not_bound_to_the_limits_of_before(run):
    decompose(run, speedup=2, memory="3GiB", reporter=Collected())
    decompose(run, speedup=3, redo=True, memory=4 << 30, batch_size=50, reporter=Collected())
    assert run.config("decompose")["limits"]["batch_size"] == 50


def test_what_was_begun_is_said_to_be_begun_and_other_stages_name_the_way_on(run):
    decompose(run, speedup=2, plan_only=True, reporter=Collected())
    with pytest.raises(UsageError, match="was begun with --speedup 2, got --speedup 4"):
        decompose(run, speedup=4, reporter=Collected())
    for call in (finetune, summarise):
        with pytest.raises(FileError, match="the decomposition is not finished; go on with `decomp decompose .* 2x`"):
            call(run)


@pytest.mark.parametrize("run", ["grouped"], indirect=True)
def test_the_count_of_layers_is_of_those_that_get_a_file(run):
    command = f"decompose --run {run} --speedup 1.3x"
    decompose(run, speedup=1.3, reporter=Reporter(quiet=True, command=command), refine_blocks=False)
    record = run.config("decompose")
    assert len(list(run.layers_dir.glob("*.safetensors"))) == record["n_fitted"] == 4
    assert record["command"] == command


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_damaged_plan_costs_no_result_and_its_message_names_the_way_out(run):
    options = {"speedup": 2, "refine_blocks": False, "reporter": Collected()}
    decompose(run, **options)
    before, table, plan = bytes_of(run), layer_lines(summarise(run).layers), run.plan_json.read_bytes()
    run.plan_json.write_text('{"nope')
    assert decompose(run, **options).done_before and layer_lines(summarise(run).layers) == table
    with pytest.raises(FileError, match="plan.json: the file must be JSON, got .*; correct it, or delete it and give"):
        decompose(run, redo=True, **options)
    assert bytes_of(run) == before
    run.plan_json.unlink()
    assert decompose(run, **options).done_before and layer_lines(summarise(run).layers) == table
    decompose(run, redo=True, **options)
    assert bytes_of(run) == before and run.plan_json.read_bytes() == plan


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_doubt_of_freeze_is_said_again_beside_a_result_that_looks_good(run):
    record = run.config("freeze")
    sane = {
        "n_images": 100, "n_classes": 10, "accuracy": 0.9, "interval": [0.8, 0.95], "chance": 0.11,
        "near_chance": False, "order": None, "numbered": False, "largest_label": 9,
    }  # fmt: skip
    run.update_config("freeze", {**record, "facts": {**record.get("facts", {}), "sanity": sane}})
    result = decompose(run, speedup=1.4, steps=("prune",), allocation="uniform", reporter=Collected())
    assert not any("calibration images: 90" in line for line in result.lines())
    doubtful = {**sane, "accuracy": 0.1, "near_chance": True}
    run.update_config("freeze", {**record, "facts": {**record.get("facts", {}), "sanity": doubtful}})
    said, warning, following = result.lines()[-3:]
    assert said.startswith("accuracy of the original on the 100 calibration images: 10")
    assert warning.startswith("warning: near chance") and following.startswith("next: ")
