"""Goals: a number with its tolerance, or an independent network."""

import shutil
from dataclasses import replace

import pytest

from decomp.pipelines.continual import goal
from decomp.pipelines.continual.goal import goal_of
from decomp.schemes.cpg_decision import standard_error
from tests.pipelines.continual.learnings import learning


@pytest.fixture
def third(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    return learning(tmp_path, tmp_path / "run")


def asked(third, **options):
    return replace(third, options=replace(third.options, **options))


def test_a_number_may_be_missed_by_one_standard_error_unless_it_is_strict(third):
    found, independent = goal_of(asked(third, goal=0.9))
    assert found.accuracy == 0.9 and found.tolerance == standard_error(0.9, 16) and independent is None
    assert goal_of(asked(third, goal=0.9, strict=True))[0].least == 0.9


def test_an_independent_network_is_trained_for_the_same_steps_and_only_once(third, monkeypatch):
    calls, real = [], goal.fit
    monkeypatch.setattr(
        goal, "fit", lambda module, recipe, **k: calls.append((recipe, module)) or real(module, recipe, **k)
    )
    found, independent = goal_of(asked(third, goal="independent"))
    ((recipe, module),) = calls
    assert recipe == goal.phases.finetune_recipe(third) and not module.pick_values
    assert all((owner == 1).all() for owner in module.owners.values())
    assert found.accuracy == independent["validation"] == third.images.validation(module, third.device)
    assert independent["test"] == third.images.test(module, third.device)
    assert goal_of(asked(third, goal="independent")) == (found, independent) and len(calls) == 1
    assert not (third.work / "independent.checkpoint").exists()
