"""Families: several speed-ups of one frozen network, each the same as a run of its own."""

import re
import shutil

import pytest

from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError, TargetError, UsageError
from decomp.pipelines.recipes import family as recipe
from decomp.pipelines.recipes.family import family
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import DecomposeResult, decompose
from decomp.pipelines.stages.freeze import freeze
from decomp.pipelines.stages.status import status
from tests.pipelines.digit_runs import Collected, bytes_of

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("family") / "run"
    freeze(path, model="zoo:vgg-digits", data="digits", n_images=200, reporter=Collected())
    return path


@pytest.fixture
def vgg_run(frozen, tmp_path):
    shutil.copytree(frozen, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


def test_each_member_has_the_bytes_of_a_run_of_its_own_and_shares_points_and_curves(vgg_run, tmp_path):
    result = family(vgg_run, speedups=(2.0, 3.0), reporter=Collected())
    members = [RunDirectory.open(f"{vgg_run}-{name}") for name in ("2x", "3x")]
    for member, speedup in zip(members, (2.0, 3.0)):
        assert 0.98 <= cost(network_file.load(member.model_dir), SHAPE).macs * speedup / cost(
            network_file.load(vgg_run.original_dir), SHAPE
        ).macs <= 1  # fmt: skip
        for name in ("frozen.h5", "curves.npz"):
            assert (member.path / name).samefile(vgg_run.path / name)
        assert [stage.state for stage in status(member).stages[:2]] == ["done", "done"]
    alone = RunDirectory(tmp_path / "alone")
    decompose(alone, speedup=3.0, source_run=vgg_run.path, reporter=Collected())
    assert bytes_of(alone) == bytes_of(members[1])
    lines = list(result.lines())
    assert lines[0].split()[:2] == ["run", "target"]
    assert [line.split()[1] for line in lines[1:3]] == ["2x", "3x"] and str(members[0]) in lines[1]
    assert lines[-3:] == [
        *(f"next: decomp evaluate --run {member}" for member in members),
        f"next: decomp compare {members[0]} {members[1]}",
    ]
    assert vgg_run.config("decompose") is None and not vgg_run.model_dir.exists()


def test_finished_members_are_not_made_again(vgg_run):
    whole = family(vgg_run, speedups=(2.0,), reporter=Collected())
    before = bytes_of(whole.members[0].run)
    again = family(vgg_run, speedups=(2.0, 3.0), reporter=Collected())
    assert [member.done_before for member in again.members] == [True, False]
    assert bytes_of(again.members[0].run) == before


def test_starting_over_that_was_stopped_goes_on_with_the_members_that_it_has_not_reached(vgg_run, monkeypatch):
    options = {"plan_only": True, "selector": "l1", "reporter": Collected()}
    family(vgg_run, speedups=(2.0, 3.0), **options)
    plans = [RunDirectory(f"{vgg_run}-{name}x").plan_json for name in (2, 3)]
    for plan in plans:
        plan.write_text(plan.read_text() + "\n")  # so that a new one is known by its bytes
    earlier = [plan.read_bytes() for plan in plans]

    def stopped_at_3x(run, *, speedup, **options):
        if speedup == 3:
            raise KeyboardInterrupt
        return decompose(run, speedup=speedup, **options)

    options["selector"] = "lasso"
    monkeypatch.setattr(recipe, "decompose", stopped_at_3x)
    with pytest.raises(KeyboardInterrupt):
        family(vgg_run, speedups=(2.0, 3.0), redo=True, **options)
    monkeypatch.undo()
    made = plans[0].read_bytes()
    assert made != earlier[0] and plans[1].read_bytes() == earlier[1]
    assert family(vgg_run, speedups=(2.0, 3.0), **options).exit_code == 0
    assert plans[0].read_bytes() == made and plans[1].read_bytes() != earlier[1]


def test_one_member_out_of_reach_is_refused_before_any_work(vgg_run):
    with pytest.raises(TargetError, match="got 5000x"):
        family(vgg_run, speedups=(2.0, 5000.0), reporter=Collected())
    assert not RunDirectory(f"{vgg_run}-2x").path.exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DecompError("conv", "has no solution", got="NaN"), "conv: has no solution, got NaN."),
        (IndexError("index 14"), "IndexError: index 14; with --run .*-2x --from .* --speedup 2x --debug it shows"),
    ],
)
def test_one_member_that_fails_does_not_keep_the_others_from_being_made(vgg_run, monkeypatch, error, words):
    def fails_at_2x(run, *, speedup, **options):
        if speedup == 2:
            raise error
        return decompose(run, speedup=speedup, **options)

    monkeypatch.setattr(recipe, "decompose", fails_at_2x)
    reporter = Collected()
    result = family(vgg_run, speedups=(2.0, 3.0), reporter=reporter)
    assert [str(member.run) for member in result.members] == [f"{vgg_run}-3x"] and result.exit_code == 1
    lines = list(result.findings())
    assert [line.split()[1] for line in lines[1:2]] == ["3x"]
    assert f"made: {vgg_run}-3x; failed: {vgg_run}-2x. The same command" in lines[-2]
    assert re.match(f"{vgg_run}-2x: {words}", lines[-1])
    assert list(result.lines()) == [*lines, *result.next_steps()]
    monkeypatch.undo()
    again = family(vgg_run, speedups=(2.0, 3.0), reporter=Collected())
    assert [member.done_before for member in again.members] == [False, True] and again.exit_code == 0
    assert not any("failed" in line for line in again.lines())


def test_a_family_of_which_none_is_made_names_each(vgg_run, monkeypatch):
    def fails(run, **options):
        raise DecompError("conv", "has no solution")

    monkeypatch.setattr(recipe, "decompose", fails)
    result = family(vgg_run, speedups=(2.0, 3.0), plan_only=True, reporter=Collected())
    reasons = [f"{vgg_run}-{name}x: conv: has no solution." for name in (2, 3)]
    assert list(result.lines())[1:] == reasons and result.exit_code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "mine.json"}, "--plan: is for one speed-up, got 2x, 3x"),
        ({"allocation": "jiont"}, "--allocation: .*did you mean joint"),
        ({"alocation": "joint"}, "alocation: is no option of decompose; did you mean allocation"),
    ],
)
def test_a_mistake_is_refused_before_any_run_is_touched(vgg_run, options, message):
    before = vgg_run.run_json.read_bytes()
    with pytest.raises(UsageError, match=message):
        family(vgg_run, speedups=(2.0, 3.0), reporter=Collected(), **options)
    assert vgg_run.run_json.read_bytes() == before and not RunDirectory(f"{vgg_run}-2x").path.exists()


@pytest.mark.parametrize(
    ("close", "columns", "cells"),
    [
        ({"images": 40, "kl": 0.01234, "agreement": 0.9, "relative": 0.1}, ["KL divergence", "agreement"], ["0.0123"]),
        ({"images": 40, "relative": 0.1234}, ["outputs differ by"], ["12 %"]),
    ],
)
def test_the_table_has_the_closeness_that_the_outputs_have(close, columns, cells):
    counts = {"macs_before": 4e6, "macs_after": 2e6, "params_before": 10, "params_after": 5}
    facts = {"asked": {"speedup": 2.0}, "fidelity": close, **counts}
    header, row = list(recipe.FamilyResult([DecomposeResult("r-2x", False, facts)]).lines())[:2]
    assert re.split(r"\s{2,}", header.strip())[5:] == columns
    assert all(cell in row for cell in cells) and ("90.0 % (76.9–96.0)" in row) == ("kl" in close)


def test_the_refinement_of_blocks_is_told_for_each_member_that_had_one():
    facts = {"asked": {"speedup": 2.0}, "macs_before": 4e6, "macs_after": 2e6, "params_before": 10, "params_after": 5}
    blocks = [{"layers": ["a"], "error_before": 0.2, "error_after": 0.1, "step": 3}]
    refined = {"blocks": blocks, "images": 10, "divergence_before": 0.5, "divergence_after": 0.25, "kept": True}
    members = [
        DecomposeResult("r-2x", False, {**facts, "block_refinement": refined}),
        DecomposeResult("s", False, facts),
    ]
    lines = [line for line in recipe.FamilyResult(members).findings() if "refined" in line]
    assert lines == ["r-2x: 1 of 1 block refined; change of the outputs on 10 held-out images: 0.5 before, 0.25 after"]
