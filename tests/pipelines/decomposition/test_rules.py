"""Rules of a plan: skipped layers, the first convolution, the largest speed-up of a layer."""

import math

import pytest
from networks import CHAIN_INPUT, chain

from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition.rules import layer_rules
from tests.pipelines.digit_runs import layer_of, planned


def rules_of(**options):
    given = {"skip": (), "keep_first": False, "max_layer_speedup": None, "multiple": 8, **options}
    return layer_rules(NetworkGraph(trace(chain()), CHAIN_INPUT), **given)


def test_options_become_rules_and_the_first_option_that_names_a_layer_is_recorded():
    names = [layer.name for layer in NetworkGraph(trace(chain()), CHAIN_INPUT).layers]
    made = rules_of(skip=(names[1], "*"), keep_first=True, max_layer_speedup=3.0, multiple=4)
    assert made.rules.skip == set(names) and made.rules.multiple == 4 and made.rules.max_layer_speedup == 3.0
    assert made.skipped[names[1]] == f"--skip {names[1]}" and made.skipped[names[0]] == "--skip *"
    assert made.of_layer(names[0]) == {"skip": "--skip *", "max_speedup": 3.0}


def test_without_options_no_layer_has_a_limit():
    made = rules_of()
    assert made.rules.skip == frozenset() and made.rules.max_layer_speedup == math.inf
    assert made.of_layer("0") == {}


def test_the_plan_lists_every_limit_of_a_layer_and_meets_it(vgg_run):
    plan = planned(vgg_run, skip=["1*"], keep_first=True, max_layer_speedup=3.0, speedup=1.5)
    for name in ("0", "10", "16"):
        layer = layer_of(plan, name)
        assert [layer[key] for key in ("keep", "spatial_rank", "channel_rank")] == [None] * 3
        assert layer["limits"] == {"skip": "--keep-first" if name == "0" else "--skip 1*", "max_speedup": 3.0}
    assert layer_of(plan, "7")["limits"] == {"max_speedup": 3.0}
    assert plan["macs_before"] / plan["macs_after"] >= 1.5


def test_a_pattern_that_matches_no_layer_is_refused_with_the_nearest_name(vgg_run):
    with pytest.raises(UsageError, match=r"--skip: must be a layer's name .* got '77'; did you mean 7"):
        planned(vgg_run, skip=["77"])
    with pytest.raises(UsageError, match=r"got 'features\.\*'; there are 0, 3, 7, 10, 16"):
        planned(vgg_run, skip=["features.*"])
    assert vgg_run.config("decompose") is None
