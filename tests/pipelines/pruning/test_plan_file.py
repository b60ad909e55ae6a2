"""prune.json: what is written is read again, and edits that cannot be meant are refused."""

import json

import pytest
import torch
from networks import block

from decomp.errors import FileError, TargetError, UsageError
from decomp.pipelines.pruning.plan_file import PruningPlan, check_plan, prune_options, read_plan, write_plan
from decomp.pipelines.pruning.unfolded import unfolded

PLAN = PruningPlan({"conv1": [0, 3, 11], "stem": [1, 2]}, {"stem": 8, "conv1": 12}, {"model": "net"})


def edited(path, change):
    write_plan(path, PLAN)
    content = json.loads(path.read_text())
    change(content["spaces"][0])
    path.write_text(json.dumps(content))
    return path


def test_a_plan_is_read_as_it_was_written(tmp_path):
    write_plan(tmp_path / "prune.json", PLAN)
    again = read_plan(tmp_path / "prune.json")
    assert again.keep == PLAN.keep and again.widths == PLAN.widths and again.digest == PLAN.digest
    first = json.loads((tmp_path / "prune.json").read_text())["spaces"][0]
    assert first == {"space": "stem", "channels": 8, "stay": 2, "keep": [1, 2]}


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("keep", [2, 1], "stem: 'keep' must have ascending numbers in 0..7"),
        ("keep", [1, 1], "ascending"),
        ("keep", [0, 8], "in 0..7"),
        ("keep", [0, True], "ascending"),
        ("keep", None, "ascending"),
        ("channels", 0, "stem: 'channels' must be a number from 1"),
        ("space", "conv1", "a channel space of its own, got 'conv1'"),
    ],
)
def test_an_edit_that_cannot_be_meant_is_refused(tmp_path, key, value, rule):
    path = edited(tmp_path / "prune.json", lambda space: space.update({key: value}))
    with pytest.raises(FileError, match=rule):
        read_plan(path)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"format": "decomp pruning", "format_version": 1, "spaces": 3}')
    with pytest.raises(FileError, match="must have a list 'spaces'"):
        read_plan(tmp_path / "a.json")


def test_a_plan_of_another_network_is_refused():
    graph = unfolded(block(), "block", (3, 8, 8)).graph
    check_plan(PruningPlan({"conv1": [0]}, {"conv1": 12}), graph, "p.json")
    with pytest.raises(TargetError, match="p.json is for another network: conv1 has 12 channels in this one, got 9"):
        check_plan(PruningPlan({"conv1": [0]}, {"conv1": 9}), graph, "p.json")
    with pytest.raises(TargetError, match="this one has no channel space nope, got the spaces stem, conv1; give"):
        check_plan(PruningPlan({"nope": [0]}, {"nope": 9}), graph, "p.json")
    with pytest.raises(TargetError, match="head must keep its channels: it is the network's output"):
        check_plan(PruningPlan({"head": [0]}, {"head": 4}), graph, "p.json")


def test_options_of_a_plan_are_its_digest_and_a_target_beside_it_is_refused():
    options = prune_options(PLAN, criterion="random", multiple=8)
    assert options.keep == PLAN.digest and options == prune_options(PLAN)
    with pytest.raises(UsageError, match="only one of these can be given, got --speedup and --keep"):
        prune_options(PLAN, speedup=2)


def test_no_channel_stays_only_inside_a_residual_branch(tmp_path):
    path = edited(tmp_path / "prune.json", lambda space: space.update({"keep": []}))
    plan = read_plan(path)
    assert plan.keep["stem"] == []
    network = unfolded(block(), "block", (3, 8, 8)).graph
    with pytest.raises(TargetError, match="stem must keep a channel: it is not inside a residual branch that could go"):
        check_plan(plan, network, "prune.json", {"conv1"})


def test_a_list_of_channel_spaces_that_is_cut_says_so():
    network = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(15)))
    graph = unfolded(network, "long", (3, 4, 4)).graph
    with pytest.raises(TargetError, match=r"got the spaces 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and \d more; give the"):
        check_plan(PruningPlan({"nope": [0]}, {"nope": 9}), graph, "p.json")


def test_a_runtime_without_latency_as_the_cost_is_refused():
    with pytest.raises(UsageError, match="^--runtime: decides only where the cost is latency, got compile; give"):
        prune_options(speedup=2, runtime="compile")
