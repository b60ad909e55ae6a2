"""The group of commands: exit code and line for each kind of error, near misses, order of the commands."""

import errno
import sys
import warnings

import click
import pytest
import torch
from command_line import Result, decomp_command

from decomp import cli
from decomp.errors import DecompError, MissingError, UsageError
from decomp.pipelines.commands.group import COMMANDS, CommandGroup, explain
from tests.pipelines.commands.recorded_calls import Recorded

COMMAND = click.Command(
    "freeze",
    params=[
        click.Option(["--model"], required=True, help="A\nnetwork."),
        click.Option(["--data"]),
        click.Option(["-q", "--quiet"]),
    ],
)
CONTEXT = click.Context(COMMAND, info_name="decomp freeze")
MODEL = COMMAND.params[0]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decomp"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (click.exceptions.Exit(3), 3, None),
        (SystemExit(4), 4, None),
        (SystemExit("text"), 1, None),
        (DecompError("a", "must be b"), 1, "error: a: must be b."),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            1,
            "error: the GPU: its memory is used up; give --device cpu, or less at a time where the command has "
            "--batch-size or --memory.",
        ),
        (UsageError("--a", "must be b", got=3), 2, "error: --a: must be b, got 3."),
        (
            click.NoSuchOption("--modle", ctx=CONTEXT),
            2,
            "error: --modle: no such option, there are --model, --data, --quiet; did you mean --model.",
        ),
        (
            click.NoSuchOption("--zzz", ctx=CONTEXT),
            2,
            "error: --zzz: no such option, there are --model, --data, --quiet; see `decomp freeze --help`.",
        ),
        (
            click.MissingParameter(ctx=CONTEXT, param=MODEL),
            2,
            "error: --model: this option is required (A network); see `decomp freeze --help`.",
        ),
        (
            click.BadParameter("is not\na name.", ctx=CONTEXT, param=MODEL),
            2,
            "error: --model: is not a name; see `decomp freeze --help`.",
        ),
        (click.UsageError("Got one\nmore.", ctx=CONTEXT), 2, "error: Got one more; see `decomp freeze --help`."),
        (click.UsageError("Got one more"), 2, "error: Got one more; see `decomp --help`."),
        (click.ClickException("two\nlines"), 1, "error: two lines"),
        (
            ModuleNotFoundError("No module named 'h5py'", name="h5py"),
            1,
            "error: h5py: required package is not installed; pip install h5py.",
        ),
        (
            ModuleNotFoundError("No module named 'decomp.x'", name="decomp.x"),
            1,
            "error: internal ModuleNotFoundError: No module named 'decomp.x'; please report it, with the output of "
            "--debug.",
        ),
        (
            RuntimeError("first\n  second"),
            1,
            "error: internal RuntimeError: first second; please report it, with the output of --debug.",
        ),
        (RuntimeError(), 1, "error: internal RuntimeError: no message; please report it, with the output of --debug."),
        (
            RuntimeError("x" * 400),
            1,
            f"error: internal RuntimeError: {'x' * 300}; please report it, with the output of --debug.",
        ),
        (
            OSError(errno.ENOSPC, "No space left"),
            1,
            "error: files: No space left; check the path, its permissions and the disk.",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            1,
            "error: a/b: Permission denied; check the path, its permissions and the disk.",
        ),
        (MissingError("a/b", "there is no such plan"), 2, "error: a/b: there is no such plan."),
    ],
)
def test_exit_code_and_line_of_each_kind_of_error(error, code, line):
    assert explain(error, ["freeze"]) == (code, line)


def test_an_option_that_a_message_names_in_words_is_written_as_it_is_typed():
    error = DecompError("net", "has no option modules", fix="treat a part (option module), or leave it (option leaf)")
    assert explain(error, [])[1] == "error: net: has no option modules; treat a part (--module), or leave it (--leaf)."


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
@pytest.mark.parametrize(("started", "program"), [("decomp", "decomp"), ("/x/cli.py", "python /x/cli.py")])
def test_an_interrupted_command_names_the_line_that_resumes_it(monkeypatch, error, started, program):
    monkeypatch.setattr(sys, "argv", [started])
    line = f"stopped; nothing of this command is kept. To begin again: {program} freeze --run 'my run'"
    assert explain(error, ["freeze", "--run", "my run"]) == (130, line)


def test_after_the_reader_has_gone_nothing_more_is_written(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert explain(BrokenPipeError(errno.EPIPE, "Broken pipe"), []) == (1, None)
        out.write("the rest")
    assert (tmp_path / "out").read_text() == ""


def failing(monkeypatch, error):
    def stage(*_, **__):
        raise error

    monkeypatch.setattr("decomp.pipelines.stages.status.status", stage)


def test_the_line_goes_to_standard_error_and_the_code_to_the_shell(monkeypatch):
    for error in (
        DecompError("conv1", "must be x"),
        UsageError("--x", "must be y"),
        KeyboardInterrupt(),
        OSError(5, "x"),
    ):
        failing(monkeypatch, error)
        code, line = explain(error, ["status", "--run", "x"])
        begin = "\n" if isinstance(error, KeyboardInterrupt) else ""  # by click, since a terminal shows ^C
        assert decomp_command("status", "--run", "x") == Result(code, "", f"{begin}{line}\n")


@pytest.mark.parametrize("arguments", [["--debug", "status", "--run", "x"], ["status", "--run", "x", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, arguments):
    failing(monkeypatch, RuntimeError("first"))
    result = decomp_command(*arguments)
    assert result.code == 1 and "Traceback" in result.err and result.err.splitlines()[-1] == result.errors[0]
    failing(monkeypatch, SystemExit(3))
    assert decomp_command(*arguments) == Result(3, "", "")


@pytest.mark.parametrize(("arguments", "shown"), [([], 0), (["--debug"], 1)])
def test_warnings_of_libraries_are_shown_to_developers_alone(monkeypatch, arguments, shown):
    def stage(*_, **__):
        warnings.warn("deprecated", stacklevel=1)
        raise DecompError("a", "b")

    monkeypatch.setattr("decomp.pipelines.stages.status.status", stage)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decomp_command("status", "--run", "x", *arguments)
    assert len(caught) == shown


def test_used_from_python_the_group_raises(monkeypatch):
    failing(monkeypatch, DecompError("a", "b"))
    with pytest.raises(DecompError):
        cli.main(["status", "--run", "x"], standalone_mode=False)


def test_the_command_line_is_kept_as_given_without_debug(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, "stages.report.report")
    decomp_command("--debug", "report", "--run", "my run", "--debug")
    assert stage.reporters[0].command == "report --run 'my run'"


@pytest.mark.parametrize(("word", "fix"), [("frieze", "did you mean freeze"), ("qqq", "see `decomp --help`")])
def test_an_unknown_command_gets_the_list_and_the_closest_one(word, fix):
    rule = f"no such command, there are {', '.join(COMMANDS)}"
    assert decomp_command(word) == Result(2, "", f"error: {word}: {rule}; {fix}.\n")


def test_commands_are_listed_in_the_order_of_use():
    group = CommandGroup(
        "g", commands={name: click.Command(name) for name in ("train", "other", "decompose", "freeze")}
    )
    assert group.list_commands(click.Context(group)) == ["freeze", "decompose", "train"]
    assert tuple(cli.main.list_commands(click.Context(cli.main))) == COMMANDS
