from collections import OrderedDict

import pytest

from decomp.errors import DecompError, FileError, NumericalError, UsageError, check_choice, kind_of, near_miss


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("conv", "rank must be in 1..8", 9, "lower it"), "conv: rank must be in 1..8, got 9; lower it."),
        (("conv", "rank must be in 1..8", 0), "conv: rank must be in 1..8, got 0."),
        (("conv", "needs rows", None, "freeze first"), "conv: needs rows; freeze first."),
        (("conv", "needs rows"), "conv: needs rows."),
        (("a\nb", "two\n  lines", "x\ty"), "a b: two lines, got x y."),
    ],
)
def test_an_error_is_one_line_of_name_rule_value_and_fix(arguments, line):
    assert str(DecompError(*arguments)) == line


def test_the_parts_of_an_error_can_be_read():
    error = NumericalError("conv", "must be finite", got=[1], fix="check")
    assert (error.thing, error.rule, error.got, error.fix) == ("conv", "must be finite", [1], "check")


def test_mistakes_in_usage_end_with_code_2_and_all_others_with_1():
    assert UsageError("x", "y").exit_code == 2
    assert FileError("x", "y").exit_code == NumericalError("x", "y").exit_code == DecompError("x", "y").exit_code == 1


def test_the_nearest_entry_is_suggested_and_only_if_it_is_near():
    assert near_miss("laso", ["backward", "lasso", "last"]) == "did you mean lasso"
    assert near_miss("zzz", ["backward", "lasso"]) is None
    assert near_miss(7, ["backward"]) is None
    assert near_miss("L1norm", ["random", "taylor", "l1", "l2"]) == "did you mean l1"
    assert near_miss("mean-l1-norm", ["mean", "mean-l1", "mean-l2"]) == "did you mean mean-l1"
    assert near_miss("skipbad", ["skip", "skip_bad"]) == "did you mean skip_bad"
    assert near_miss("lasos", ["l", "lasso"]) == "did you mean lasso"


def test_a_choice_is_the_entry_itself_or_an_error_that_lists_all():
    entries = ("best", "lasso")
    assert check_choice("selector", "lasso", entries) is entries[1]
    with pytest.raises(UsageError) as error:
        check_choice("selector", "bset", entries)
    assert str(error.value) == "selector: must be one of best, lasso, got 'bset'; did you mean best."
    with pytest.raises(UsageError, match=r"selector: must be one of best, lasso, got None\.$"):
        check_choice("selector", None, entries)


def test_the_kind_of_a_value_has_its_article():
    values = (3, 0.5, None, [], "x", True, OrderedDict())
    kinds = ["a whole number", "a number", "None", "a list", "a str", "a bool", "an OrderedDict"]
    assert [kind_of(value) for value in values] == kinds
