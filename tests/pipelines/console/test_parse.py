"""Values of options, as text and as Python values."""

import pytest

from decomp.errors import UsageError
from decomp.pipelines.console import parse


@pytest.mark.parametrize(
    "given, value",
    [("4x", 4.0), ("4", 4.0), ("2.5x", 2.5), (" 3X ", 3.0), ("1.01×", 1.01), (4, 4.0), (1.0003, 1.0003), (1e2, 100.0)],
)
def test_a_speedup_is_text_or_a_number(given, value):
    assert parse.speedup(given) == value


@pytest.mark.parametrize("given", [None, "1x", "0.5", "fast", "nan", "inf", 1, 0, -2, True, float("nan"), [2]])
def test_a_speedup_is_above_one(given):
    with pytest.raises(UsageError, match="^--speedup: must be a number above 1, got .*; give for example 4x.$"):
        parse.speedup(given)


def test_several_speedups_keep_their_order():
    assert parse.speedups("2x,3, 2.5x") == (2.0, 3.0, 2.5) and parse.speedups("4x") == (4.0,)


@pytest.mark.parametrize("given", ["", ",", "2x,2.0"])
def test_several_speedups_are_different_ones(given):
    with pytest.raises(UsageError, match="--speedup: must be one number, or several different ones"):
        parse.speedups(given)


def test_several_words_come_in_the_order_of_the_choices_or_as_given():
    possible = ("spatial", "channel", "prune")
    assert parse.several("--steps", "prune, spatial,prune", possible, "x") == ("spatial", "prune")
    assert parse.several("--steps", ["prune", "spatial"], possible, "x") == ("spatial", "prune")
    assert parse.several("--steps", "prune,spatial,prune", possible, "x", ordered=False) == ("prune", "spatial")


@pytest.mark.parametrize("given", ["chanel", ["chanel"], ("prune", "chanel")])
def test_an_unknown_word_gets_the_closest_choice(given):
    with pytest.raises(UsageError, match="got '.*chanel'; did you mean channel"):
        parse.several("--steps", given, ("spatial", "channel", "prune"), "x")


@pytest.mark.parametrize("given", ["", ",", []])
def test_no_word_gets_the_advice(given):
    with pytest.raises(UsageError, match="; leave it out"):
        parse.several("--steps", given, ("spatial", "channel"), "leave it out")


@pytest.mark.parametrize(
    "text, value",
    [
        ("4GiB", 4 << 30), ("4", 4 << 30), ("0.5g", 1 << 29), ("512MiB", 512 << 20), ("4GB", 4 * 10**9),
        ("1 TiB", 1 << 40),
    ],
)  # fmt: skip
def test_memory_has_a_unit_or_is_in_gibibytes(text, value):
    assert parse.memory(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "4 apples", "GiB", "4b", "inf"])
def test_an_amount_of_memory_is_positive(text):
    with pytest.raises(UsageError, match="--memory: must be an amount of memory.*say for example 4GiB"):
        parse.memory(text)


@pytest.mark.parametrize("given", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_by_name(given):
    assert parse.device(given) == given


def test_an_unknown_device_gets_the_closest_one():
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:N, got 'cdua'; did you mean cuda"):
        parse.device("cdua")


@pytest.mark.parametrize("given", ["-1", "0", "1.5", "inf", "nan", "x", "", 0, 1.5, True, None, [3], float("inf")])
def test_counts_are_whole_and_positive(given):
    with pytest.raises(UsageError, match="--n: must be a whole number from 1, got "):
        parse.number("--n", int, 1)(given)


def test_numbers_come_in_their_type():
    assert parse.number("--n", int, 1)("3") == 3 and parse.number("--n", int, 1)(3.0) == 3
    assert isinstance(parse.number("--n", int, 1)(3.0), int)
    assert parse.number("--x", float, 0, above=True, most=1)(1) == 1.0


def test_a_word_is_accepted_in_place_of_a_number_or_of_names():
    share = parse.number("--share", float, 0, above=True, most=1, word="auto")
    assert share("auto") == "auto" and share("0.5") == 0.5
    with pytest.raises(UsageError, match="--share: must be a number above 0 and at most 1, or auto, got 'Auto'"):
        share("Auto")
    names = parse.names_or_auto("--names", lambda value: tuple(value))
    assert names(["auto"]) == ("auto",) and names(["a", "b"]) == ("a", "b") and names([]) == ()
    with pytest.raises(UsageError, match="--names: must be auto alone, or names, got a, auto; leave one of them out"):
        names(["a", "auto"])


@pytest.mark.parametrize("given", ["0", 0, 1.001, "2"])
def test_a_range_is_told(given):
    with pytest.raises(UsageError, match="--x: must be a number above 0 and at most 1, got "):
        parse.number("--x", float, 0, above=True, most=1)(given)


@pytest.mark.parametrize("given", ["no", 1, None])
def test_a_flag_is_true_or_false(given):
    with pytest.raises(UsageError, match="refine: must be True or False"):
        parse.flag("refine", given)


@pytest.mark.parametrize(("value", "fix"), [("50", "write 50%"), ("1.5", "0.5 or 50%"), ("2", "0.5 or 50%")])
def test_a_share_just_above_one_is_not_taken_for_percent(value, fix):
    with pytest.raises(UsageError, match=f"got '{value}'; .*{fix}"):
        parse.share_below_one("--ratio")(value)
    assert parse.share_below_one("--ratio")("50%") == 0.5


@pytest.mark.parametrize(("value", "fix"), [("95", "write 95%"), ("2", "give for example 0.95")])
def test_a_goal_just_above_one_is_not_taken_for_percent(value, fix):
    with pytest.raises(UsageError, match=f"got '{value}'; {fix}"):
        parse.goal(value)
    assert parse.goal("95%") == 0.95


@pytest.mark.parametrize(
    "given, line",
    [
        ({"runtime": "compile"}, "--runtime: decides only where the cost is latency, got compile"),
        ({"latency_layout": "channels-last"}, "--layout: decides only where the cost is latency, got channels-last"),
        ({"latency_batch": 1}, "--batch-size: decides only where the cost is latency, got 1"),
    ],
)
def test_conditions_of_time_measurements_are_refused_where_no_time_is_measured(given, line):
    with pytest.raises(UsageError, match=f"^{line}; give --cost latency too, or leave it out.$"):
        parse.refuse_without_latency("macs", given)
    parse.refuse_without_latency("latency", given)
    parse.refuse_without_latency("macs", {"runtime": None, "latency_layout": "contiguous", "latency_batch": 64})
