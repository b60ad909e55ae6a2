"""Error lines for a speed-up out of reach."""

import pytest

from decomp.allocation.rules import Rules
from decomp.allocation.target import LimitingFactors, OutOfReach
from decomp.pipelines.decomposition.target_errors import limiting_options, out_of_reach

ALL = ("spatial", "channel", "prune")


def options_of(factors, rules=Rules(), skip=(), keep_first=False, steps=ALL):  # noqa: B008 (it is frozen)
    return limiting_options(factors, rules=rules, skip=skip, keep_first=keep_first, steps=steps)


def test_each_option_that_binds_comes_with_the_speedup_without_it():
    factors = LimitingFactors(2.0, rules={"skip": 2.567, "max_layer_speedup": 3.0})
    rules = Rules(skip=frozenset(["7"]), max_layer_speedup=4.0)
    assert options_of(factors, rules, skip=["7", "1*"], keep_first=True) == [
        "--skip 7 and --skip 1* and --keep-first (without: 2.56x)", "--max-layer-speedup 4 (without: 3.00x)",
    ]  # fmt: skip


def test_options_that_bind_only_together_are_one_cause():
    factors = LimitingFactors(2.0, rules={"skip": 2.0, "max_layer_speedup": 2.0}, together=True)
    rules = Rules(skip=frozenset(["7"]), max_layer_speedup=4.0)
    assert options_of(factors, rules, skip=["7"]) == ["--skip 7 together with --max-layer-speedup 4"]


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (LimitingFactors(2.0, steps=True), "--steps prune"),
        (
            LimitingFactors(2.0, untouched=(("a", "grouped"), ("b", "called twice")), untouched_share=0.4),
            "2 layers that cannot be compressed, with 40 % of the cost (the largest, a: grouped)",
        ),
        (
            LimitingFactors(2.0, untouched=(("a", "grouped"),), untouched_share=0.25),
            "1 layer that cannot be compressed, with 25 % of the cost (a: grouped)",
        ),
        (LimitingFactors(2.0, rest=0.25), "25 % of it outside the layers"),
        (LimitingFactors(2.0, per_call=True), "the time that every call takes, however narrow"),
    ],
)
def test_each_other_cause_has_its_words(factors, words):
    assert options_of(factors, steps=("prune",)) == [words]


def test_the_error_names_the_greatest_speedup_and_its_causes():
    error = OutOfReach(LimitingFactors(2.346, rest=0.5), "parameters", 4.0)
    options = {"rules": Rules(), "skip": (), "keep_first": False, "steps": ALL}
    assert str(out_of_reach(error, **options)) == (
        "--speedup: at most 2.34x can be reached on this network in parameters, limited by 50 % of it outside the "
        "layers, got 4x; lower the target or lift a limit."
    )
    unlimited = OutOfReach(LimitingFactors(2.346), "parameters", 4.0)
    assert str(out_of_reach(unlimited, **options)).endswith("in parameters, got 4x; lower the target.")
