"""Rehearsal of the end of a decomposition, with random weights: what it lets pass, what it refuses, and what stays."""

import json

import pytest
import torch
from named_networks import INPUT, NETWORKS, make
from networks import block

import decomp
from decomp.allocation.plan import limits
from decomp.errors import DecompError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition import rehearsal, run_plan
from decomp.pipelines.decomposition.make_plan import space_candidates
from decomp.pipelines.decomposition.rehearsal import rehearsal_plans, rehearse
from decomp.pipelines.decomposition.session import open_run
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import Collected, bytes_of

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")
CPU = torch.device("cpu")


def options(**changed):
    return DecomposeOptions(speedup=2.0, **changed)


@pytest.mark.parametrize("run", ["plain", "residual"], indirect=True)
def test_a_rehearsal_changes_neither_run_nor_network_nor_random_numbers(run):
    torch.manual_seed(3)
    expected = torch.rand(4)
    before = bytes_of(run)
    with open_run(run, Resources(CPU)) as opened:
        state = {name: value.clone() for name, value in opened.graph.module.state_dict().items()}
        names = [layer.name for layer in opened.graph.layers]
        torch.manual_seed(3)
        assert rehearse(opened, options(), {}).into is True
        assert torch.equal(torch.rand(4), expected)
        after = opened.graph.module.state_dict()
        assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)
        assert [layer.name for layer in opened.graph.layers] == names
    assert bytes_of(run) == before


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_every_allowed_step_of_every_layer_is_rehearsed_and_no_other(run):
    with open_run(run, Resources(CPU)) as opened:
        for chosen in ({}, {"steps": ("prune",)}, {"skip": ("conv*",)}, {"keep_first": True}):
            asked = options(**chosen)
            plans = rehearsal_plans(opened.graph, asked)
            for layer in opened.graph.layers:
                skipped = (
                    "skip" in chosen and layer.name.startswith("conv") or "keep_first" in chosen and layer.index == 0
                )
                for step, (size, largest, _) in limits(layer).items():
                    wanted = step in asked.steps and step not in layer.left_alone and not skipped
                    value = getattr(plans[layer.name], size)
                    assert (value is not None) == wanted and (value is None or 1 <= value <= max(1, largest // 4))


@pytest.mark.parametrize("run", ["residual"], indirect=True)
def test_narrowed_spaces_and_layers_without_samplers_are_rehearsed(run, monkeypatch):
    seen = []
    real = rehearsal.emit

    def emit(opened, network, folder, **arguments):
        seen.append((network.get_submodule("stem").weight.shape[0], arguments["edited"]))
        return real(opened, network, folder, **arguments)

    monkeypatch.setattr(rehearsal, "emit", emit)
    with open_run(run, Resources(CPU)) as opened:
        asked = options(steps=("prune",), coupled=0.5, sampler=False)
        (widths,) = space_candidates(run, asked, None, opened.graph).values()
        assert rehearse(opened, asked, widths).into is True
    assert seen[0][0] == 4 and "stem" in seen[0][1]


class Outside(Exception):
    pass


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_of_unusual_names_pass(kind, monkeypatch):
    verdicts = []

    def watched(*arguments, **named):
        verdicts.append(rehearse(*arguments, **named))
        raise Outside  # no long work

    monkeypatch.setattr(run_plan, "rehearse", watched)
    with pytest.raises(Outside):
        decomp.compress(make(kind), torch.randn(20, *INPUT), 2.0, n_points=2, quiet=True)
    assert [verdict.into for verdict in verdicts] == [True]


def test_a_class_that_does_not_take_the_network_is_told_before_the_survey(run, monkeypatch):
    order, told = [], Collected()
    told.warn = lambda message, **_: order.append(message)
    real = run_plan.surveyed_run
    monkeypatch.setattr(run_plan, "surveyed_run", lambda *a, **k: order.append("survey") or real(*a, **k))
    original = block()  # another class than that of the run
    result = decompose(run, speedup=2, original=original, reporter=told)
    assert order[0].startswith(
        "the result may be a traced network: one of random sizes stands alone; the original class does not"
    )
    assert order[1] == "survey" and result.facts["into"]["verified"] is False
    assert json.loads((run.model_dir / "structure.json").read_text())["edits"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "apply_solution",
            r"^0: cannot be exchanged and written .*IndexError: index 14.*; run freeze again with --leaf 0",
        ),
        ("emit", r"^the network: cannot be .*\(IndexError: index 14.*; run freeze again with --leaf MODULE"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_the_survey(run, monkeypatch, name, words):
    def fails(*arguments, **named):
        raise IndexError("index 14 is out of range")

    monkeypatch.setattr(rehearsal, name, fails)
    monkeypatch.setattr(run_plan, "surveyed_run", None)
    before = bytes_of(run)
    with pytest.raises(DecompError, match=words) as caught:
        decompose(run, speedup=2, reporter=Collected())
    assert "\n" not in str(caught.value) and "/" not in str(caught.value)
    assert {name: data for name, data in bytes_of(run).items() if name != "run.json"} == {
        name: data for name, data in before.items() if name != "run.json"
    }


def test_a_network_that_does_not_come_back_from_its_files_is_refused(run, monkeypatch):
    real = rehearsal.apply_solution

    def apply(network, graph, solution):
        changed = real(network, graph, solution)
        network.register_forward_hook(lambda module, inputs, output: output + 1)
        return changed

    monkeypatch.setattr(rehearsal, "apply_solution", apply)
    with pytest.raises(DecompError, match="the network read back from its files differs"):
        decompose(run, speedup=2, reporter=Collected())
