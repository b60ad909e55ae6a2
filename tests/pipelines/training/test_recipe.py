"""Recipes: what is refused when they are made, and the update rules of their groups."""

import math

import pytest

from decomp.errors import UsageError
from decomp.pipelines.training.recipe import ParameterGroup, Recipe

MILESTONES = {"schedule": "milestones", "milestones": (2, 4)}


def recipe(**options):
    return Recipe(**{"epochs": 6, "learning_rate": 0.1, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"batch_size": 0},
        {"schedule": "linear"},
        {"optimizer": "rprop"},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"clip_norm": 0.0},
        {"warmup_epochs": -1},
        {"milestones": (3,)},
        {"milestones": (), "schedule": "milestones"},
        {"milestones": (4, 2), "schedule": "milestones"},
        {"milestones": (2, 2), "schedule": "milestones"},
        {"milestones": (0, 2), "schedule": "milestones"},
        {"milestones": (2, 6), "schedule": "milestones"},
        {"milestones": (2.5,), "schedule": "milestones"},
        {"gamma": -0.1, **MILESTONES},
        {"gamma": (0.1,), **MILESTONES},
        {"gamma": (0.1, math.inf), **MILESTONES},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options):
    with pytest.raises(UsageError, match=f"^{next(iter(options)).replace('_', ' ')}: "):
        recipe(**options)


@pytest.mark.parametrize("options, suggestion", [({"schedule": "cosin"}, "cosine"), ({"optimizer": "Adam"}, "adam")])
def test_an_unknown_name_gets_the_closest_one(options, suggestion):
    with pytest.raises(UsageError, match=f"must be one of .*; did you mean {suggestion}"):
        recipe(**options)


def test_an_error_in_a_group_names_the_group():
    with pytest.raises(UsageError, match=r"^group scores: learning rate: must be a positive number, got -1"):
        recipe(groups=(ParameterGroup("scores", ("*",), learning_rate=-1),))


@pytest.mark.parametrize("names", [("weights",), ("biases",), ("",), ("scores", "scores")])
def test_groups_need_names_of_their_own(names):
    with pytest.raises(UsageError, match="parameter group: must have a name other than weights, biases"):
        recipe(groups=tuple(ParameterGroup(name, ("*",)) for name in names))


def test_biases_are_not_decayed_and_otherwise_follow_the_recipe():
    rules = recipe(weight_decay=0.3, momentum=0.5).rules()
    assert (rules["weights"].weight_decay, rules["biases"].weight_decay) == (0.3, 0.0)
    assert rules["biases"].momentum == rules["weights"].momentum == 0.5


def test_a_group_takes_from_the_recipe_what_it_does_not_set():
    groups = (ParameterGroup("scores", ("*",), optimizer="adam", learning_rate=0.02, weight_decay=0.0),)
    rule = recipe(groups=groups, warmup_epochs=0.5, weight_decay=0.3, **MILESTONES).rules()["scores"]
    assert (rule.optimizer, rule.learning_rate, rule.weight_decay) == ("adam", 0.02, 0.0)
    assert (rule.warmup_epochs, rule.milestones, rule.gammas) == (0.5, (2, 4), (0.1, 0.1))


def test_a_group_with_another_schedule_does_not_take_the_milestones():
    groups = (ParameterGroup("scores", ("*",), schedule="constant"),)
    assert recipe(groups=groups, **MILESTONES).rules()["scores"].milestones == ()
