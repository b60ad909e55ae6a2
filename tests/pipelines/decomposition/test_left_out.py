"""Residual blocks that are left out: names, refusals, exact costs, plan.json, and files that go into the class."""

import json
import shutil

import pytest
import torch
from networks import randomise

import decomp
from decomp.cost.count import cost
from decomp.data import models
from decomp.data.formats import network_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.errors import TargetError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import refine_blocks
from decomp.pipelines.decomposition.left_out import blocks_of, named_blocks, place_of, without_blocks
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.finetune import finetune
from tests.pipelines.digit_runs import SHAPE, Blocks, Collected, Residual, bytes_of, layer_of, make_run, plain, planned

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def graph_of(module):
    return NetworkGraph(trace(module.eval()), SHAPE)


def hooked_macs(network):
    """Multiply-accumulates of one image, counted by hooks of the convolutions and linear layers that run."""
    total, hooks = [0], []

    def hook(module, inputs, output):
        kernel = module.weight[0].numel()
        total[0] += kernel * (output[0, 0].numel() if output.dim() == 4 else 1) * output.shape[1]

    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        network(torch.zeros(1, *SHAPE))
    for handle in hooks:
        handle.remove()
    return total[0]


def test_blocks_are_named_by_their_last_layers_or_the_modules_around_them_or_patterns():
    graph = graph_of(Blocks())
    assert [(block.name, place_of(block)) for block in blocks_of(graph)] == [
        ("a.bn2", "a"), ("b.bn2", "b"), ("c.bn2", "c"),
    ]  # fmt: skip
    for names in (["c", "a"], ["c.bn2", "a.bn2"], ["a*", "c"], ["[ac].bn2"]):
        assert named_blocks(graph, names, "--leave-out") == ["a.bn2", "c.bn2"]
    assert [place_of(block) for block in blocks_of(graph_of(Residual()))] == [""]  # of the network itself


@pytest.mark.parametrize(
    "module, names, line",
    [
        (Blocks(), ["d"], "d: --leave-out names a block that cannot be left out: it is no module of this network"),
        (Blocks(), ["stem"], "stem: .* it is not added to a shortcut; there are a.bn2, b.bn2, c.bn2"),
        (Blocks(), ["b.bn1"], "b.bn1: .*; did you mean b.bn2"),
        (Blocks(), ["a", "c"], "c.bn2: --leave-out leaves out a block with a layer that keeps its shape, got c.conv1"),
        (Blocks(), ["d.*"], r"d\.\*: --leave-out matches no residual block that can be left out; there are a.bn2, b.b"),
        (
            plain(),
            ["0"],
            "0: --leave-out names a block, and this network has no residual block .*; take it out of --le",
        ),
        (plain(), ["*"], r"\*: --leave-out names a block, and this network has no residual block .*; take it out of"),
    ],
)
def test_a_block_that_cannot_go_is_refused_with_the_reason_in_a_line(module, names, line):
    with pytest.raises(UsageError, match=f"^{line}") as caught:
        named_blocks(graph_of(module), names, "--leave-out", {"c.conv1"})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(TargetError) as caught:  # of a plan, which is a file
        named_blocks(graph_of(module), names, "the plan", {"c.conv1"})
    assert caught.value.exit_code == 1


def test_the_other_layers_keep_their_curves_and_the_whole_network_stays(blocks_run):
    with open_run(blocks_run, Resources(torch.device("cpu"))) as opened:
        surveyed = survey(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected())
        part = without_blocks(surveyed, ["b.conv2"])
        assert part.narrowed.left_out == ("b.conv2",) and part.narrowed.left_out_layers == ("b.conv1", "b.conv2")
        assert [la.name for la in surveyed.graph.layers if la.name not in ("b.conv1", "b.conv2")] == [
            la.name for la in part.graph.layers
        ]
        assert sum(part.narrowed.macs_by_layer.values()) == hooked_macs(part.graph.module)
        assert set(part.survey.own) == {la.name for la in part.graph.layers}
        assert part.survey.own["c.conv1"] is surveyed.survey.own["c.conv1"]
        assert "b.conv1" in dict(surveyed.graph.module.named_modules())
        assert without_blocks(surveyed, []) is surveyed
        opened.memory.count_passes(7)  # its work goes on from there
        after = without_blocks(surveyed, ["b.conv2"]).opened.memory
        assert after.forward_images == opened.memory.forward_images >= 7


def test_the_emitted_network_has_the_planned_cost_and_goes_into_its_class(blocks_run):
    decompose(blocks_run, speedup=1.8, leave_out=["b"], multiple=1, reporter=Collected())
    plan, facts = json.loads(blocks_run.plan_json.read_text()), blocks_run.config("decompose")
    assert plan["left_out"] == ["b.conv2"] and layer_of(plan, "b.conv1")["keep"] is None
    network, original = decomp.load(blocks_run.path), network_file.load(blocks_run.original_dir)
    whole = hooked_macs(original)
    assert plan["macs_before"] == whole and plan["macs_after"] == hooked_macs(network) == facts["macs_after"]
    assert whole / 1.8 * 0.9 < plan["macs_after"] <= whole / 1.8  # the others are split less for it
    assert plan["params_after"] == cost(network, SHAPE).params
    assert not any(path.startswith("b.") for path, _ in network.named_modules())
    into = network_file.load(blocks_run.model_dir, into=randomise(Blocks()))
    with FrozenFile(blocks_run.frozen) as frozen, torch.no_grad():
        x = frozen.images(0, 40)
        torch.testing.assert_close(into(x), network(x), rtol=1e-5, atol=1e-5)
    assert facts["into"]["verified"] is True
    gone = next(layer for layer in summarise(blocks_run).layers if layer.layer == "b.conv1")
    assert gone.becomes == "removed with its branch" and gone.macs_after == gone.params_after == 0


def test_a_plan_takes_blocks_out_and_back_and_is_refused_for_what_is_none(blocks_run):
    plan = planned(blocks_run, multiple=1, leave_out=["b"])
    sizes = {item["layer"]: item for item in plan["layers"]}
    assert list(sizes) == [la.name for la in graph_of(network_file.load(blocks_run.original_dir)).layers]

    def continued(**changes):
        blocks_run.plan_json.write_text(json.dumps({**plan, **changes}))
        decompose(blocks_run, speedup=2, multiple=1, leave_out=["b"], redo=True, reporter=Collected())
        return decomp.load(blocks_run.path)

    back = continued(left_out=[])  # with its layers as they were
    assert back.get_submodule("b.conv1").weight.shape == (8, 8, 3, 3)
    other = continued(left_out=["c.conv2"])  # the sizes of its layers in the plan have no effect
    there = dict(other.named_modules())
    assert "c.conv1" not in there and "c.projection" in there and "b.conv2" in there
    for wrong, line in (
        (["stem"], "stem: .*plan.json names a block"),
        ([3], "left_out must list names"),
        ("b", "a list"),
    ):
        with pytest.raises(TargetError, match=line):
            continued(left_out=wrong)


def test_a_run_that_goes_on_after_its_plan_ends_with_the_same_bytes(blocks_run, tmp_path):
    shutil.copytree(blocks_run.path, tmp_path / "other")
    other, options = RunDirectory.open(tmp_path / "other"), {"speedup": 2, "multiple": 1, "leave_out": ["b"]}
    decompose(blocks_run, **options, reporter=Collected())
    decompose(other, **options, plan_only=True, reporter=Collected())
    decompose(other, **options, reporter=Collected())
    assert bytes_of(blocks_run) == bytes_of(other) and blocks_run.plan_json.read_bytes() == other.plan_json.read_bytes()


def test_blocks_are_refined_towards_the_values_of_the_whole_original(blocks_run, monkeypatch):
    monkeypatch.setattr(refine_blocks, "STEPS", 30)
    decompose(blocks_run, speedup=2, multiple=1, leave_out=["b"], refine_blocks=True, reporter=Collected())
    found = blocks_run.config("decompose")["block_refinement"]
    assert found["divergence_after"] <= found["divergence_before"] * 1.2
    assert all("b.conv1" not in report["layers"] for report in found["blocks"])


def test_a_network_without_a_block_is_tuned_and_written_again(blocks_run):
    decompose(blocks_run, speedup=2, multiple=1, leave_out=["b"], reporter=Collected())
    finetune(blocks_run, epochs=1, batch_size=200, reporter=Collected())
    tuned = decomp.load(blocks_run.finetune_dir / "last")
    assert not any(path.startswith("b.") for path, _ in tuned.named_modules())
    into = network_file.load(blocks_run.finetune_dir / "last", into=randomise(Blocks()))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(into(x), tuned(x), rtol=1e-5, atol=1e-5)


def test_a_plan_from_a_file_says_itself_what_is_left_out(blocks_run, tmp_path):
    planned(blocks_run, multiple=1, leave_out=["b"])
    shutil.move(blocks_run.plan_json, tmp_path / "plan.json")
    blocks_run.update_config("decompose", None)
    with pytest.raises(UsageError, match="contains the value of --leave-out itself"):
        decompose(blocks_run, plan=tmp_path / "plan.json", leave_out=["a"], reporter=Collected())
    decompose(blocks_run, plan=tmp_path / "plan.json", reporter=Collected())
    assert not any(path.startswith("b.") for path, _ in decomp.load(blocks_run.path).named_modules())


def test_a_branch_that_gives_nothing_goes_without_any_loss(tmp_path, monkeypatch):
    network = randomise(Blocks())
    with torch.no_grad():
        network.b.bn2.weight.zero_()
        network.b.bn2.bias.zero_()
    loaded = models.LoadedModel(network, "quiet", SHAPE, "0" * 64, "random")
    monkeypatch.setattr(models, "load_model", lambda name, **options: loaded)
    run = make_run(tmp_path / "run", "quiet", n_images=120)
    original, before = network_file.load(run.original_dir), cost(network_file.load(run.original_dir), SHAPE)
    lost = sum(n for path, n in before.per_layer.items() if path.startswith("b."))
    speedup = before.macs / (before.macs - lost)
    reporter = Collected()
    planned(run, speedup=3, leave_out="auto", multiple=1, reporter=reporter)
    assert any(line.startswith("without b.conv2: change of the outputs 0, ") for line in reporter.messages)
    assert any(line.startswith("without 1 block (b.conv2)") for line in reporter.messages)  # so it is tried first
    decompose(run, speedup=speedup * 0.999, leave_out=["b"], multiple=1, redo=True, reporter=Collected())
    plan = json.loads(run.plan_json.read_text())
    assert plan["left_out"] == ["b.conv2"] and plan["macs_after"] == before.macs - lost
    assert "notes" not in plan
    assert not any(item.get(size) for item in plan["layers"] for size in ("keep", "spatial_rank", "channel_rank"))
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        x = frozen.images(0, 120)
        assert (decomp.load(run.path)(x) - original(x)).abs().max() < 1e-3 * original(x).abs().max()


def test_blocks_that_bring_more_than_the_asked_speedup_alone_are_said(blocks_run):
    whole = cost(network_file.load(blocks_run.original_dir), SHAPE)
    left = whole.macs - sum(n for path, n in whole.per_layer.items() if path.startswith("b."))
    reporter = Collected()
    plan = planned(blocks_run, speedup=1.05, leave_out=["b"], reporter=reporter)
    assert plan["macs_after"] == left and whole.macs / left > 1.1
    (note,) = plan["notes"]
    assert note.startswith(
        f"the plan is {whole.macs / left:.2f}x, more than the 1.05x asked for: leaving out 1 block (b.conv2) saves that"
    )
    assert any(note in line for line in reporter.messages)
