"""Options and functions that commands share."""

import dataclasses
import json
import os
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import decomp
from decomp.errors import UsageError
from decomp.pipelines.commands import shared
from decomp.pipelines.commands.group import JSON_KEY
from decomp.pipelines.console.finetune_options import FinetuneOptions
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.measure import memory


def called(options, line, **extra):
    """The values that a command with some options gets from a line, or the error it ends in."""
    values = {}
    command = click.Command("c", callback=lambda **given: values.update(given), params=[], **extra)
    for option in options:
        command = option(command)
    result = CliRunner().invoke(command, line.split())
    if result.exception is not None:
        raise result.exception
    return values


# -- kinds of options --------------------------------------------------------------------------------------------


def test_a_choice_is_refused_with_the_closest_one():
    colour = click.option("--colour", type=shared.Choice(("red", "green")))
    assert called([colour], "--colour green") == {"colour": "green"}
    with pytest.raises(UsageError) as caught:
        called([colour], "--colour gren")
    assert str(caught.value) == "--colour: must be one of red, green, got 'gren'; did you mean green."
    with pytest.raises(UsageError, match="^value: must be one of red, green"):
        shared.Choice(("red", "green")).convert("blue", None, None)


def test_a_number_has_its_limits_and_a_letter_for_its_kind():
    share = shared.number("--share", "part", kind=float, least=0, above=True, most=1)
    assert called([share], "--share 0.5") == {"part": 0.5}
    for value in ("0", "1.5", "x"):
        with pytest.raises(UsageError, match="^--share: must be a number above 0 and at most 1"):
            called([share], f"--share {value}")
    count = shared.number("--count")
    assert called([count], "--count 1") == {"count": 1}
    with pytest.raises(UsageError, match="^--count: must be a whole number from 1, got '0'"):
        called([count], "--count 0")
    metavars = [option(click.Command("c", params=[])).params[0].metavar for option in (share, count)]
    assert metavars == ["X", "N"]


def test_the_help_of_a_number_says_the_least_where_that_is_more_than_one():
    def help_of(**options):
        @click.command()
        @shared.number("--images", help="Images.  [default: all]", **options)
        def command(images):
            """Nothing."""

        return command.params[0].help

    assert help_of(least=10) == "Images. At least 10.  [default: all]" and help_of() == "Images.  [default: all]"


def test_defaults_are_those_of_the_options_class():
    assert shared.default_of(FinetuneOptions, "learning_rate") == FinetuneOptions().learning_rate
    assert shared.default_of(DecomposeOptions, "steps") == ",".join(DecomposeOptions(2).steps)
    assert shared.default_of(DecomposeOptions, "coupled") is None


def test_shared_options_come_in_the_order_given():
    @click.command
    @shared.shared_options("seed", "device", "common")
    def command(**_):
        pass

    names = [param.opts[0] for param in command.params]
    assert names == ["--seed", "--device", "--threads", "--quiet", "--json", "--debug"]


# -- effects of options ------------------------------------------------------------------------------------------


def test_threads_are_set_in_torch_and_for_the_libraries_below_it_only_where_given(monkeypatch):
    names, calls = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    for name in names:
        monkeypatch.setenv(name, "1")
    with click.Context(click.Command("c")):
        shared.begin(None)
        assert calls == [] and [os.environ[name] for name in names] == ["1"] * 3
        shared.begin(3)
    assert calls == [3] and [os.environ[name] for name in names] == ["3"] * 3


@pytest.mark.parametrize(("line", "shown"), [("", True), ("--quiet", False), ("--json", False), ("-v", True)])
def test_a_command_says_at_once_that_it_has_begun(line, shown):
    @click.command
    @shared.shared_options("verbose", "common")
    def command(threads, quiet):
        shared.begin(threads)

    result = CliRunner().invoke(command, line.split())
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr == (f"decomp {decomp.__version__}: loading …\n" if shown else "")


@pytest.mark.parametrize("line", ["", "-v", "--verbose"])
def test_details_are_asked_for_by_verbose(tmp_path, line):
    reporters = []

    @click.command
    @shared.shared_options("verbose", "common")
    def command(threads, quiet):
        reporters.extend([shared.open_run(str(tmp_path / "r"), quiet)[1], shared.reporter_without_run(quiet)])

    CliRunner().invoke(command, line.split(), catch_exceptions=False)
    assert [reporter.verbose for reporter in reporters] == [bool(line)] * 2


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("", None),
        ("--free 2", None),
        ("--size 1", "--size"),  # given, though it is the default
        ("-s 2", "--size"),
        ("--flag", "--flag"),
        ("--free 2 --flag", "--flag"),
    ],
)
def test_options_are_refused_beside_one_that_contains_them_where_they_were_given(line, refused):
    @click.command
    @click.option("--size", "-s", default=1)
    @click.option("--free", default=1)
    @click.option("--flag", is_flag=True)
    def command(**_):
        shared.refuse_beside("--plan", (name for name in ("size", "flag", "absent")))

    error = CliRunner().invoke(command, line.split()).exception
    expected = f"--plan: contains the value of {refused} itself, got {refused} beside it; leave one of them out."
    assert (None if error is None else str(error)) == (expected if refused else None)
    assert error is None or isinstance(error, UsageError)


def test_options_left_out_are_not_handed_on():
    assert shared.given({"a": None, "b": 0, "c": False, "d": ""}) == {"b": 0, "c": False, "d": ""}


@pytest.mark.parametrize(("line", "warned"), [("", False), ("--memory 1GiB", False), ("--memory 3GiB", True)])
def test_a_limit_above_the_memory_of_the_machine_is_warned_of(tmp_path, monkeypatch, line, warned):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * memory.GIB)

    @click.command
    @shared.shared_options("memory", "common")
    def command(threads, quiet, memory):
        shared.open_run(str(tmp_path / "r"), quiet)

    error = CliRunner().invoke(command, line.split(), catch_exceptions=False).stderr
    words = "warning: --memory 3GiB is more than this machine has, 2GiB: the work may be killed\n"
    assert error == (words if warned else "")


@pytest.mark.parametrize(("quiet", "as_json"), [(False, False), (True, False), (False, True)])
def test_a_reporter_is_quiet_where_the_result_is_json(tmp_path, quiet, as_json):
    silent = quiet or as_json
    with click.Context(click.Command("c")) as context:
        context.meta[JSON_KEY] = as_json
        directory, reporter = shared.open_run(str(tmp_path / "r"), quiet)
        assert reporter.quiet is silent and shared.reporter_without_run(quiet).quiet is silent
        assert reporter.log_path == directory.log and shared.reporter_without_run(quiet).log_path is None
        assert shared.wants_json() is as_json


# -- results -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    name: str
    path: Path
    values: object


class Table:
    def __init__(self, rows):
        self.rows = rows

    def to_json(self):
        return {"rows": self.rows}

    def lines(self):
        yield "one"
        yield "two"


def test_results_become_plain_json():
    rows = [Row("é", Path("a/b"), torch.tensor([[1, 2]])), Row("b", Path("c"), np.float64(0.5))]
    rows.append(Row("c", Path("d"), {1: None}))
    text = shared.as_json(Table(rows))
    assert json.loads(text) == {
        "rows": [
            {"name": "é", "path": "a/b", "values": [[1, 2]]}, {"name": "b", "path": "c", "values": 0.5},
            {"name": "c", "path": "d", "values": {"1": None}},
        ]
    }  # fmt: skip
    assert "é" in text and text.startswith('{\n  "rows"')
    assert json.loads(shared.as_json([torch.float32, 1 + 2j])) == ["torch.float32", "(1+2j)"]


def test_to_json_comes_before_the_fields_of_a_dataclass():
    @dataclasses.dataclass
    class Own:
        secret: int

        def to_json(self):
            return "mine"

    assert shared.as_json({"a": Own(1)}) == '{\n  "a": "mine"\n}'


@pytest.mark.parametrize(("as_json", "shown"), [(False, "one\ntwo\n"), (True, '{\n  "rows": []\n}\n')])
def test_a_result_is_shown_as_lines_or_as_json(capsys, as_json, shown):
    with click.Context(click.Command("c")) as context:
        context.meta[JSON_KEY] = as_json
        shared.show(Table([]))
    assert capsys.readouterr().out == shown
