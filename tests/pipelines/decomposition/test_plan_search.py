"""Search for the share of coupled channels and for blocks that go: the least change of the outputs is taken."""

import json

import pytest
import torch

import decomp
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError, TargetError, UsageError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition import best_of_trials, make_plan, plan_search
from decomp.pipelines.decomposition.left_out import without_blocks
from decomp.pipelines.decomposition.make_plan import space_candidates
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.stages.decompose import decompose
from decomp.surgery.random_network import random_network
from tests.pipelines.digit_runs import SHAPE, Collected, bytes_of, make_run, planned
from tests.pipelines.pretended_clock import by_macs

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")
CPU = torch.device("cpu")


def as_tried(monkeypatch, changes):
    """Trials give these mean changes by what is left out or narrowed; None is out of reach."""

    def change(surveyed):
        return changes[surveyed.narrowed.left_out or tuple(surveyed.narrowed.widths.values())]

    monkeypatch.setattr(plan_search, "_proposed", lambda surveyed, *_: None if change(surveyed) is None else {})
    monkeypatch.setattr(
        best_of_trials, "changes_of_plan",
        lambda surveyed, *_: torch.full((4,), change(surveyed), dtype=torch.float64),
    )  # fmt: skip


ORDER = ("a.conv2", "b.conv2", "c.conv2")
A, B, C, AB, AC, BC, ABC = ORDER[:1], ORDER[1:2], ORDER[2:], ORDER[:2], ORDER[::2], ORDER[1:], ORDER


def blocks_found(run, monkeypatch, changes, order=ORDER, **options):
    monkeypatch.setattr(plan_search._Search, "_order", lambda self: list(order))
    as_tried(monkeypatch, changes)
    reporter = Collected()
    plan = planned(run, multiple=1, leave_out="auto", reporter=reporter, **options)
    return plan.get("left_out", []), reporter.messages


@pytest.mark.parametrize(
    "changes, found, line",
    [
        ({(): 0.3, A: 0.2, AB: 0.25, AC: 0.25}, A,
         "left out: a.conv2; change of the outputs 0.2 instead of 0.3, at the same speed-up"),
        ({(): 0.3, A: 0.35, B: 0.25, BC: 0.2}, BC,  # one that costs more than it brings stays, and the next is tried
         "left out: b.conv2, c.conv2; change of the outputs 0.2 instead of 0.3, at the same speed-up"),
        ({(): 0.3, A: 0.3, B: 0.5, C: 0.4}, (),
         "no block is left out: none lowers the change of the outputs at this speed-up"),
        ({(): None, A: None, AB: 0.5, ABC: 0.6}, AB,
         "left out: a.conv2, b.conv2; change of the outputs 0.5, out of reach with all blocks, at the same speed-up"),
        ({(): 0.5, A: 0.4, AB: None, AC: 0.3}, AC,
         "left out: a.conv2, c.conv2; change of the outputs 0.3 instead of 0.5, at the same speed-up"),
    ],
)  # fmt: skip
def test_the_set_of_blocks_with_the_least_change_is_left_out(blocks_run, monkeypatch, changes, found, line):
    left_out, messages = blocks_found(blocks_run, monkeypatch, changes)
    assert tuple(left_out) == found and line in messages


def test_of_many_blocks_several_neighbours_are_tried_at_a_time(blocks_run, monkeypatch):
    monkeypatch.setattr(plan_search, "MOST_SETS", 2)
    left_out, _ = blocks_found(blocks_run, monkeypatch, {(): 0.3, AB: 0.2, ABC: 0.25})  # a alone is not tried
    assert tuple(left_out) == AB


def test_the_search_ends_when_several_trials_in_a_row_bring_nothing(blocks_run, monkeypatch):
    monkeypatch.setattr(plan_search, "PATIENCE", 2)
    left_out, _ = blocks_found(blocks_run, monkeypatch, {(): 0.3, A: 0.4, B: 0.3})  # c is not tried
    assert left_out == []


def test_what_is_out_of_reach_or_far_past_the_target_gets_no_trial(blocks_run):
    def proposed(speedup, *names, **options):
        asked = DecomposeOptions(speedup=speedup, multiple=1, **options)
        return plan_search._proposed(without_blocks(surveyed, names), asked, Collected())

    with open_run(blocks_run, Resources(CPU)) as opened:
        surveyed = survey(opened, narrow(opened, {}, reporter=Collected()), reporter=Collected())
        plans = proposed(1.2)
        assert set(plans) == {layer.name for layer in surveyed.graph.layers}
        assert any(plan.treated for plan in plans.values())
        assert proposed(1.2, "a.conv2", "b.conv2", "c.conv2") is None  # 3x without any change of a layer
        assert proposed(1000) is None and proposed(2, skip=("*",)) is None


def test_blocks_are_tried_by_the_change_of_the_outputs_for_the_cost_that_they_save(blocks_run, monkeypatch):
    tried, reporter = [], Collected()
    monkeypatch.setattr(plan_search, "_proposed", lambda part, *rest: tried.append(part.narrowed.left_out))
    planned(blocks_run, leave_out="auto", reporter=reporter)
    original = network_file.load(blocks_run.original_dir)
    costs = cost(original, SHAPE).per_layer
    loss = {}
    with open_run(blocks_run, Resources(CPU)) as opened, torch.no_grad():
        x = opened.frozen.images(90, 100)
        p = original(x).double().log_softmax(1)
        for name in "abc":
            broken = network_file.load(blocks_run.original_dir)
            broken.get_submodule(f"{name}.conv2").weight.zero_()
            broken.get_submodule(f"{name}.conv2").bias.zero_()
            change = (p.exp() * (p - broken(x).double().log_softmax(1))).sum(1).mean()
            loss[f"{name}.conv2"] = change / (costs[f"{name}.conv1"] + costs[f"{name}.conv2"])
    order = sorted(loss, key=loss.get)
    # All are out of reach here, so that all go one after the other.
    assert [set(names) for names in tried] == [set(order[:size]) for size in range(4)]


def test_a_target_that_layers_alone_do_not_reach_is_reached_without_blocks(blocks_run):
    skip = ["stem", "c.projection", "head", "b.*"]
    with pytest.raises(TargetError, match="at most"):
        decompose(blocks_run, speedup=2.2, skip=skip, steps=("channel",), reporter=Collected())
    reporter = Collected()
    decompose(blocks_run, speedup=2.2, skip=skip, steps=("channel",), multiple=1, leave_out="auto", reporter=reporter)
    plan = json.loads(blocks_run.plan_json.read_text())
    assert plan["left_out"] and "b.conv2" not in plan["left_out"]  # a block with a skipped layer stays
    assert plan["macs_before"] / plan["macs_after"] >= 2.2
    assert cost(decomp.load(blocks_run.path), SHAPE).macs == plan["macs_after"]


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_what_cannot_be_searched_is_refused_in_a_line(run):
    for options, error, line in (
        ({"leave_out": ["auto", "b"]}, UsageError, "--leave-out: must be auto alone, or names, got auto, b"),
        ({"leave_out": [3]}, UsageError, "--leave-out: must be a text"),
        ({"leave_out": "auto", "max_layer_speedup": 2}, TargetError, "--leave-out: takes layers away, .*layer-speedup"),
        ({"coupled": "most"}, UsageError, "--coupled: must be a number above 0 and at most 1, or auto, got 'most'"),
    ):
        with pytest.raises(error, match=line):
            decompose(run, speedup=2, reporter=Collected(), **options)
    for asked in ("auto", "nothing"):
        reporter = Collected()
        with pytest.raises(DecompError, match="no residual block that can be left out"):
            decompose(run, speedup=2, leave_out=asked, reporter=reporter)
        assert not any("survey" in line for line in reporter.messages)  # before any work
    with pytest.raises(TargetError, match="--coupled: no channel space of this network"):
        decompose(run, speedup=2, coupled="auto", reporter=Collected())
    assert run.config("decompose") is None


def test_shares_that_leave_the_same_channels_are_tried_once(blocks_run, monkeypatch):
    monkeypatch.setattr(make_plan, "SHARES", (0.95, 0.93, 0.5))
    with open_run(blocks_run, Resources(CPU)) as opened:
        found = space_candidates(
            blocks_run, DecomposeOptions(speedup=2, coupled="auto", multiple=1), None, opened.graph
        )
    assert list(found) == [1.0, 0.95, 0.5] and found[1.0] == {} and found[0.95] != found[0.5]


@pytest.mark.parametrize("run", ["residual"], indirect=True)
@pytest.mark.parametrize("best", [(), (6,), (4,)])
def test_the_share_with_the_least_change_is_taken_and_only_its_files_stay(run, monkeypatch, best):
    monkeypatch.setattr(make_plan, "SHARES", (0.75, 0.5))
    as_tried(monkeypatch, {key: 0.1 if key == best else 0.2 for key in ((), (6,), (4,))})
    reporter = Collected()
    decompose(run, speedup=2, coupled="auto", multiple=1, reporter=reporter)
    plan = json.loads(run.plan_json.read_text())
    assert tuple(plan.get("spaces", {}).values()) == best
    share = {(): 100, (6,): 75, (4,): 50}[best]
    assert f"coupled: {share} % of the channels stay" in reporter.messages
    assert [path.name for path in run.layers_dir.iterdir() if path.is_dir()] == []
    other, options = run.path.parent / "other", {"speedup": 2, "multiple": 1, "reporter": Collected()}
    decompose(other, source_run=run.path, coupled=share / 100, **options)
    weights = network_file.load(other / "model").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in decomp.load(run.path).state_dict().items())


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_a_search_that_was_stopped_ends_with_the_same_bytes(run, monkeypatch, tmp_path):
    other = make_run(tmp_path / "other", "residual")
    options = {"speedup": 2, "coupled": "auto", "leave_out": "auto", "multiple": 1}
    decompose(run, **options, reporter=Collected())
    real, calls = best_of_trials.changes_of_plan, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(best_of_trials, "changes_of_plan", stopped)
    with pytest.raises(KeyboardInterrupt):
        decompose(other, **options, reporter=Collected())
    decompose(other, **options, reporter=Collected())
    assert bytes_of(run) == bytes_of(other) and run.plan_json.read_bytes() == other.plan_json.read_bytes()


def test_the_work_of_all_trials_is_counted(blocks_run):
    with open_run(blocks_run, Resources(CPU)) as opened:
        work = plan_search.Work(opened.memory)
        one = plan_search._copy(opened, "one").memory
        one.count_passes(30)
        work.add(one)
        opened.memory.count_passes(3)
        work.add(opened.memory)  # a candidate that is tried in the common memory itself
        two = plan_search._copy(opened, "two").memory
        two.count_passes(50)
        work.add(two)
        opened.memory.count_passes(5)
        work.pass_on(two)
        assert two.forward_images == 88


def test_a_branch_with_much_to_lose_stays(blocks_run):
    reporter = Collected()
    plan = planned(blocks_run, speedup=1.1, leave_out="auto", multiple=1, reporter=reporter)
    assert "left_out" not in plan and any(line.startswith("no block is left out") for line in reporter.messages)


def test_blocks_and_shares_are_tried_with_sizes_whose_measured_time_is_as_asked(blocks_run, machine, monkeypatch):
    """Half of the time of a whole network is outside of its layers, so that the table of times promises too much."""

    def with_a_rest(network, shape):
        return by_macs(network, shape) + (0.3 if len(list(network.modules())) > 8 else 0.0)

    machine(with_a_rest)
    monkeypatch.setattr(make_plan, "SHARES", (0.75,))
    original = with_a_rest(network_file.load(blocks_run.original_dir), (16, *SHAPE))
    tried = []

    def changes(surveyed, plans, options, judge):
        network = random_network(surveyed.graph, plans)
        left = surveyed.narrowed.left_out or tuple(surveyed.narrowed.widths.values())
        tried.append((left, original / with_a_rest(network, (16, *SHAPE))))
        return torch.full((4,), 1.0 / len(tried), dtype=torch.float64)

    monkeypatch.setattr(best_of_trials, "changes_of_plan", changes)
    common = {"cost": "latency", "latency_batch": 16, "multiple": 1, "speedup": 1.3}
    reporter = Collected()
    left_out = planned(blocks_run, leave_out="auto", reporter=reporter, **common)
    assert any(line.startswith("plan by multiply-accumulates, 1.3") for line in reporter.messages)
    assert sum(line.startswith("measured again") for line in reporter.messages) >= len(tried)  # each as a whole network
    assert left_out["left_out"] and len({left for left, _ in tried}) > 1
    coupled = planned(blocks_run, coupled="auto", redo=True, **common)
    assert coupled["spaces"]
    for plan in (left_out, coupled):
        assert 1.3 * 0.97 <= plan["latency"]["measured_speedup"] <= 1.3 * 1.10
    assert all(1.3 * 0.97 <= speedup <= 1.3 * 1.10 for _, speedup in tried)
