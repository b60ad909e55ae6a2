"""Options of prune: one target, and defaults that go by the criterion."""

import pytest

from decomp.errors import UsageError
from decomp.pipelines.console.prune_options import BIASES, SCORINGS, PruneOptions, SensitivityOptions


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "prune: one of --speedup, --ratio and --keep is needed; give for example --speedup 2x"),
        ({"speedup": 2, "ratio": 0.5}, "prune: only one of these can be given, got --speedup and --ratio; leave the"),
        ({"ratio": 1.0}, "--ratio: must be"),
        ({"speedup": 2, "cap": 1.5}, "--cap: must be"),
        ({"speedup": 2, "scoring": "greed"}, "--scoring: must be one of greedy, independent, got 'greed'"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        PruneOptions(**options)


def test_ranking_and_normalisation_go_by_the_criterion_where_a_criterion_chooses():
    def rules(**options):
        made = PruneOptions(**options)
        return made.ranking, made.normalise

    assert rules(speedup=2) == ("layer", "mean")
    assert rules(speedup=2, criterion="bn-scale") == ("global", "none")
    assert rules(speedup=2, ranking="global", normalise="l2") == ("global", "l2")
    assert rules(keep="0" * 64) == (None, None)


def test_settings_of_the_measurement_are_recorded_where_latency_is_measured_alone():
    def settings(**options):
        made = PruneOptions(**options)
        return made.latency_batch, made.latency_layout, made.runtime

    assert settings(speedup=2) == (None, None, None)
    assert settings(speedup=2, cost="latency", latency_batch=3) == (3, "contiguous", "eager")
    assert settings(ratio=0.5, cost="latency") == (None, None, None)


def test_choices_and_shares_of_the_defaults():
    assert (SCORINGS[0], BIASES[0]) == (PruneOptions(ratio=0.1).scoring, PruneOptions(ratio=0.1).bias)
    assert SensitivityOptions(ratios="50%,0.25").ratios == SensitivityOptions(ratios=[0.25, 0.5]).ratios
