"""What the texts of options mean."""

import pytest

from decomp.data.formats import exported
from decomp.errors import UsageError
from decomp.pipelines.console import options
from decomp.pipelines.run import networks


def test_the_choices_offered_are_those_of_the_stages():
    from decomp.allocation import plan
    from decomp.pipelines.training import recipe
    from decomp.solvers import solve_layer as layers

    assert options.STEPS == plan.STEPS
    assert set(options.SELECTORS) == set(layers.SELECTORS)
    assert options.FORMATS == tuple(exported.FORMATS) and options.NETWORKS == networks.NETWORKS
    assert {"cosine", "constant"} < set(recipe.SCHEDULES)


@pytest.mark.parametrize("text, value", [("4x", 4.0), ("4", 4.0), ("2.5x", 2.5), (" 3X ", 3.0), ("1.01×", 1.01)])
def test_speedups_are_read_as_people_write_them(text, value):
    assert options.speedup(text) == value


def test_several_speedups_are_read_in_their_order():
    assert options.speedups("2x,3, 2.5x") == (2.0, 3.0, 2.5) and options.speedups("4x") == (4.0,)


def test_the_options_of_decompose_say_what_the_stage_does_by_itself():
    """Each default of the command is the stage's own."""
    from inspect import signature

    from decomp.pipelines.stages.decompose import decompose

    parameters = signature(decompose).parameters
    for name, declared in options.DECOMPOSE.items():
        name = declared.get("dest", name.strip("-").replace("-", "_"))
        default = declared.get("type", lambda value: value)(declared["default"]) if "default" in declared else None
        if default is not None:
            assert parameters[name].default == default, name


def test_steps_come_in_the_order_in_which_they_are_taken():
    assert options.steps("prune, spatial,prune") == ("spatial", "prune")


@pytest.mark.parametrize(
    "text, value",
    [
        ("4GiB", 4 << 30),
        ("4", 4 << 30),
        ("0.5g", 1 << 29),
        ("512MiB", 512 << 20),
        ("4GB", 4 * 10**9),
        ("1 TiB", 1 << 40),
    ],
)
def test_memory_is_read_as_people_write_it(text, value):
    assert options.memory(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "4 apples", "GiB", "4b", "inf"])
def test_memory_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--memory: must be an amount of memory.*say for example 4GiB"):
        options.memory(text)


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "inf", "nan", "x", ""])
def test_counts_are_whole_and_positive(text):
    with pytest.raises(UsageError, match="--n"):
        options.number("--n", int, 1)(text)
