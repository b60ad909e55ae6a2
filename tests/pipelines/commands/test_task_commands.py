"""Declarations of the commands on tasks: options, defaults, mistakes."""

import pytest
from command_line import decomp_command

from decomp.pipelines.commands.task_commands import tasks as group
from decomp.pipelines.console.options import TaskOptions
from decomp.pipelines.stages import tasks as stage

ADD = ("tasks", "add", "--run", "r", "--name", "a", "--data", "npz:a.npz", "--goal")


class Shown:
    def lines(self):
        return ["done"]


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr(stage, "add", lambda run, **options: calls.append(options) or Shown())
    return calls


def test_the_commands_are_listed_in_the_order_of_use():
    assert group.list_commands(None) == ["add", "list", "verify", "export", "report"]
    assert decomp_command("tasks").out.index("tasks add") < decomp_command("tasks").out.index("tasks export")


def test_options_that_are_not_given_are_those_of_the_stage(called):
    assert decomp_command(*ADD, "95%").code == 0
    (options,) = called
    options = {key: value for key, value in options.items() if key not in ("reporter", "device", "redo")}
    assert TaskOptions(**options) == TaskOptions(name="a", data="npz:a.npz", goal=0.95)


def test_options_reach_the_stage_by_their_names(called):
    decomp_command(
        *ADD, "independent", "--model", "m", "--lr", "0.1", "--ladder", "0.2,0.5", "--no-picking", "--strict"
    )
    (options,) = called
    assert options["goal"] == "independent" and options["model"] == "m" and options["learning_rate"] == 0.1
    assert options["ladder"] == (0.2, 0.5) and options["picking"] is False and options["strict"] is True


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["95"], "error: --goal: must be an accuracy above 0 and at most 1, or independent, got '95'; write 95%."),
        (["0.9", "--ladder", "0.5,0.2"], "error: --ladder: must be increasing shares between 0 and 1, both excluded, "
                                         "got '0.5,0.2'; give for example 0.2,0.5,0.8."),
        (["0.9", "--max-width", "0.5"], "error: --max-width: must be a number from 1 and at most 100, got '0.5'."),
        (["0.9", "--name", "../x"], "error: --name: must be letters, digits, '-', '_' and '.', at most 64, got '../x'; "
                                    "give for example letters-2."),
        (["0.9", "--free-weights", "zeros"], "error: --free-weights: must be one of zero, kaiming, got 'zeros'; "
                                             "did you mean zero."),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(more, line):
    result = decomp_command(*ADD, *more)
    assert result.code == 2 and result.errors == [line]
