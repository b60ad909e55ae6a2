"""Pruning of a named network: frozen first where it is not, and the ways in which names can be missing."""

import pytest

from decomp.errors import TargetError, UsageError
from decomp.pipelines.pruning.plan_file import PruningPlan, write_plan
from decomp.pipelines.recipes.prune_run import prune_run
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("known_networks")
FROZEN = {"n_images": 100}
WITHOUT_NORMALISATION = """
from torch import nn
def make():
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 10))
"""


def test_a_run_is_frozen_first_and_then_as_freeze_leaves_it(tmp_path):
    told = Collected()
    named = {"model": "plain", "data": "digits", "frozen": FROZEN}
    result = prune_run(tmp_path / "run", **named, ratio=0.5, reporter=told)
    assert "is frozen first" in told.messages[0] and result.run.config("freeze")["facts"]["n_images"] == 100
    frozen = result.run.frozen.read_bytes()
    again = prune_run(tmp_path / "run", **named, ratio=0.5, reporter=Collected())
    assert again.done_before and result.run.frozen.read_bytes() == frozen
    assert prune_run(tmp_path / "run", ratio=0.5, reporter=Collected()).done_before


def test_a_mistake_in_the_target_costs_no_freeze(tmp_path):
    with pytest.raises(UsageError, match="prune: one of --speedup, --ratio and --keep is needed"):
        prune_run(tmp_path / "run", model="plain", data="digits", frozen=FROZEN, reporter=Collected())
    assert not (tmp_path / "run").exists()


def test_names_that_are_missing_are_asked_for(run, tmp_path):
    with pytest.raises(UsageError, match="--model: a network must be named"):
        prune_run(tmp_path / "new", ratio=0.5, reporter=Collected())
    with pytest.raises(UsageError, match="--data: images must be named"):
        prune_run(tmp_path / "new", model="plain", ratio=0.5, reporter=Collected())
    with pytest.raises(UsageError, match="--model: goes with --data; give both or none"):
        prune_run(run, model="plain", ratio=0.5, reporter=Collected())
    assert not (tmp_path / "new").exists()


def test_other_images_than_those_of_the_run_are_refused(run):
    with pytest.raises(UsageError, match="was frozen with --images 400, got --images 100"):
        prune_run(run, model="plain", data="digits", frozen=FROZEN, ratio=0.5, reporter=Collected())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 0.5, "skip": ["nope"]}, UsageError, r"--skip: .*, got 'nope'; there are 0, 2, 6\."),
        ({"speedup": 1e6}, TargetError, r"at most [\d.]+x can be reached"),
        ({"ratio": 0.5, "criterion": "bn-scale"}, UsageError, "bn-scale compares the scale factors"),
        ({"ratio": 0.5, "recalibrate_bn": True}, UsageError, "--recalibrate-bn: .*the network has none"),
    ],
)
def test_a_mistake_that_the_network_shows_costs_no_freeze(tmp_path, options, error, message):
    (tmp_path / "nets.py").write_text(WITHOUT_NORMALISATION)
    named = {"model": f"{tmp_path}/nets.py:make", "data": "digits", "frozen": FROZEN}
    with pytest.raises(error, match=message):
        prune_run(tmp_path / "run", **named, reporter=Collected(), **options)
    assert not (tmp_path / "run").exists()


def test_a_plan_of_another_network_costs_no_freeze(run, tmp_path):
    other = tmp_path / "prune.json"
    write_plan(other, PruningPlan({"nope": [0]}, {"nope": 4}))
    with pytest.raises(TargetError, match="is for another network: this one has no channel space nope"):
        prune_run(tmp_path / "new", model="plain", data="digits", frozen=FROZEN, keep=other, reporter=Collected())
    assert not (tmp_path / "new").exists()


def test_a_run_without_a_network_is_not_said_to_be_frozen(tmp_path):
    told = Collected()
    with pytest.raises(UsageError, match="--model: a network must be named"):
        prune_run(tmp_path / "new", ratio=0.5, reporter=told)
    assert told.messages == []
