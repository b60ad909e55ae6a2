"""Whole channel spaces: numbers of remaining channels, the choice of channels, and its file."""

import json
import shutil

import pytest
import torch

from decomp.allocation.rules import Rules
from decomp.data.formats.json_files import read_json, write_json
from decomp.errors import FileError, TargetError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import shared_channels
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.decomposition.shared_channels import check_widths, choose_channels, widths_for_share
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import SHAPE, Collected, Grouped, Residual, bytes_of, plain

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def graph_of(module):
    return NetworkGraph(trace(module.eval()), SHAPE)


def test_widths_are_the_share_rounded_down_to_the_multiple_but_never_below_it():
    graph = graph_of(Residual())  # one shared space, of 8 channels
    assert widths_for_share(graph, 0.75, Rules()) == {"stem": 6}
    assert widths_for_share(graph, 0.7, Rules()) == {"stem": 5}
    assert widths_for_share(graph, 0.01, Rules()) == {"stem": 1}
    assert widths_for_share(graph, 1.0, Rules()) == {}
    assert widths_for_share(graph_of(Grouped()), 0.5, Rules()) == {"stem": 4, "conv1": 2}  # groups, not channels


def test_a_space_of_a_skipped_layer_stays_whole():
    graph = graph_of(Grouped())
    assert widths_for_share(graph, 0.5, Rules(skip=frozenset(["conv2"]))) == {"stem": 4}
    with pytest.raises(TargetError, match="--coupled: no channel space .* belongs to a layer that keeps its shape"):
        widths_for_share(graph_of(Residual()), 0.5, Rules(skip=frozenset(["conv2"])))
    with pytest.raises(TargetError, match="--coupled: no channel space of this network can be narrowed as a whole"):
        widths_for_share(graph_of(plain()), 0.5, Rules())


def test_widths_of_a_plan_are_checked_by_space():
    graph = graph_of(Residual())
    check_widths({"stem": 8}, graph, "plan.json")
    for widths, message in (
        ({"stem": 0}, r"stem: channels that stay in the space must be in 1\.\.8, got 0; change it in plan.json"),
        ({"conv1": 3}, "conv1: the space cannot be narrowed as a whole, got it is frozen, one layer's own"),
    ):
        with pytest.raises(TargetError, match=message):
            check_widths(widths, graph, "plan.json")


def chosen(opened, widths, reporter=None):
    path = opened.run.layers_dir / "spaces.json"
    return choose_channels(
        path, widths, opened.frozen, opened.graph,
        device=opened.device, memory=opened.memory, reporter=reporter or Collected(),
    )  # fmt: skip


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_channels_that_are_always_zero_go_first_and_the_choice_is_read_again(run, monkeypatch):
    reporter = Collected()
    with open_run(run, Resources(torch.device("cpu"))) as opened:
        with torch.no_grad():  # channels 2 and 5 of the space are always zero: they tell its readers nothing
            for name in ("stem", "conv2"):
                module = opened.graph.module.get_submodule(name)
                module.weight[[2, 5]] = 0
                module.bias[[2, 5]] = 0
        assert chosen(opened, {"stem": 6}, reporter) == {"stem": [0, 1, 3, 4, 6, 7]}
        assert "stem: 6 of 8 channels stay in all layers that write or read them" in reporter.messages
        monkeypatch.setattr(shared_channels, "_choose", lambda *args: [0, 1])
        assert chosen(opened, {"stem": 6}) == {"stem": [0, 1, 3, 4, 6, 7]}
        assert chosen(opened, {"stem": 2}) == {"stem": [0, 1]}  # other widths: chosen again
        path = run.layers_dir / "spaces.json"
        record = read_json(path, kind=shared_channels.KIND)
        write_json(path, {"parent": record["parent"], "keep": [0, 1]}, kind=shared_channels.KIND)
        with pytest.raises(FileError, match="spaces.json: must list the channels that stay; run decompose again"):
            chosen(opened, {"stem": 2})


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_choice_that_takes_too_much_memory_is_refused(run, monkeypatch):
    monkeypatch.setattr(shared_channels, "BUDGET", 10_000)
    with open_run(run, Resources(torch.device("cpu"))) as opened:
        with pytest.raises(TargetError, match="stem: choosing its channels would take about .* GiB, more than"):
            chosen(opened, {"stem": 6})


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_run_with_narrowed_spaces_resumes_to_the_same_bytes(run):
    wanted, options = None, {"speedup": 2, "coupled": 0.5, "reporter": Collected()}
    decompose(run, **options)
    wanted = bytes_of(run)
    for path in sorted(run.layers_dir.glob("*.safetensors"))[1:]:
        path.unlink()
    shutil.rmtree(run.model_dir)
    run.update_config("decompose", {k: v for k, v in run.config("decompose").items() if k in ("asked", "plan_digest")})
    decompose(run, **options)
    assert bytes_of(run) == wanted


@pytest.mark.parametrize("run", ["residual"], indirect=True)
@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"stem": 9}, r"stem: channels that stay in the space must be in 1\.\.8, got 9"),
        ({"stem": True}, r"stem: channels that stay in the space must be in 1\.\.8, got True"),
        ({"head": 2}, "head: the space cannot be narrowed as a whole"),
        ({"nowhere": 2}, "nowhere: the space cannot be narrowed as a whole"),
        ([3], "spaces must be an object"),
    ],
)
def test_spaces_that_a_plan_cannot_have_are_refused(run, spaces, message):
    decompose(run, speedup=2, plan_only=True, reporter=Collected())
    data = {**json.loads(run.plan_json.read_text()), "spaces": spaces}
    run.plan_json.write_text(json.dumps(data))
    with pytest.raises(TargetError, match=message):
        decompose(run, speedup=2, reporter=Collected())


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_shared_channels_of_skipped_layers_stay_and_costs_that_do_not_add_up_are_refused(run):
    with pytest.raises(TargetError, match="no channel space .* belongs to a layer that keeps its shape"):
        decompose(run, speedup=1.2, coupled=0.5, skip=["stem"], reporter=Collected())
    with pytest.raises(UsageError, match="--max-layer-speedup"):
        decompose(run, speedup=1.2, coupled=0.5, max_layer_speedup=2.0, reporter=Collected())


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_chain_has_no_shared_channels_to_narrow(run):
    with pytest.raises(TargetError, match="--coupled: no channel space of this network can be narrowed as a whole"):
        decompose(run, speedup=1.2, coupled=0.5, reporter=Collected())
