"""Messages for a Python caller: options become arguments, nothing else changes."""

import pytest

from decomp.errors import FileError, UsageError
from decomp.pipelines.console.python_words import said_for_options, said_for_python


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("--points", "must be from 1", got=0), "n_points: must be from 1, got 0."),
        (UsageError("net", "fails", fix="give --leaf or --input-size"), "net: fails; give leaves or input_size."),
        (UsageError("net", "fails", fix="(option leaf, option module)"), "net: fails; (leaves, module)."),
        (FileError("a--b", "is one - of -- many"), "a--b: is one - of -- many."),
        (UsageError("--redo", "must be True", fix="use --redo"), "redo: must be True; use redo=True."),
        (UsageError("r", "was", fix="give --no-refine-blocks"), "r: was; give refine_blocks=False."),
        (UsageError("--layout", "no", fix="give --cost latency too"), "layout: no; give cost latency too."),
        (UsageError("r", "was", fix="give --refine-blocks, --no-mix"), "r: was; give refine_blocks=True, mix=False."),
        (FileError("r", "no", fix="run freeze --run r-2x first"), "r: no; run freeze --run r-2x first."),
        (FileError("r", "no", fix="run `decomp prune --redo`"), "r: no; run `decomp prune --redo`."),
        (FileError("r", "no", fix="run freeze again with --points 3"), "r: no; run freeze again with n_points 3."),
        (UsageError("r", "was", fix="or --run OTHER --from r to keep both"), "r: was; or another run to keep both."),
    ],
)  # fmt: skip
def test_options_are_named_as_arguments(error, line):
    with pytest.raises(type(error)) as caught, said_for_python({"points": "n_points", "leaf": "leaves"}):
        raise error
    assert str(caught.value) == line and caught.value.exit_code == error.exit_code


def test_other_errors_pass():
    with pytest.raises(KeyError, match="--points"), said_for_python({"points": "n_points"}):
        raise KeyError("--points")


def test_an_error_about_an_argument_of_these_names_is_about_the_option():
    with pytest.raises(UsageError, match="^--ratio: must be small, got 2; ask ratio\\.$"), said_for_options("ratio"):
        raise UsageError("ratio", "must be small", got=2, fix="ask ratio")
    with pytest.raises(UsageError, match="^net: fails"), said_for_options("ratio"):
        raise UsageError("net", "fails")
