"""The group of commands: every error ends in one line on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from typing import Any

import click

import decomp
from decomp.errors import DecompError, UsageError, near_miss

from ..console.program import program
from ..distributed.launch import n_started, require_shared
from .interrupt import CODE, quick_end, stopped_line
from .processes import said_once

COMMAND_KEY = "decomp.command"  # under which click's context keeps the command line as given
_OPTION = re.compile(r"\boption (?=(classes|leaf|module)\b)")  # in messages that a Python caller sees too
JSON_KEY = "decomp.json"  # under which it keeps whether the result is printed as JSON
VERBOSE_KEY = "decomp.verbose"  # under which it keeps whether details are printed
COMMANDS = (
    "inspect", "freeze", "decompose", "prune", "sensitivity", "finetune", "evaluate", "export", "report",
    "compare", "status", "runs", "demo", "train", "slim", "tasks", "recipe",
)  # fmt: skip


class CommandGroup(click.Group):
    """A click group that prints errors in one line and suggests near misses."""

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        debug = "--debug" in args
        if not debug and not sys.warnoptions:
            # Our own warnings are steps of the reporter; those of libraries are for their developers.
            warnings.simplefilter("ignore")
        code, since = 0, time.time()
        try:
            with quick_end(args):
                result = super().main(args, prog_name or program(), complete_var, standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
        except BaseException as error:
            if debug and not isinstance(error, (click.exceptions.Exit, SystemExit)):
                traceback.print_exc()
            code, line = explain(error, args, since)
            line = said_once(line, error, args, since) if n_started() > 1 else line
            if line:
                click.echo(line, err=True)
        sys.exit(code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[COMMAND_KEY] = shlex.join(argument for argument in args if argument != "--debug")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:  # set while a shell completes the line
            rule = f"no such command, there are {', '.join(COMMANDS)}"
            raise UsageError(args[0], rule, fix=near_miss(args[0], COMMANDS) or f"see `{program()} --help`")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order of use; click sorts them by name.
        return [name for name in COMMANDS if name in self.commands]


def explain(error: BaseException, args: list[str], since: float = 0.0) -> tuple[int, str | None]:
    """Exit code and message line for an error; no line where there is nothing to say.

    Parameters
    ----------
    error : BaseException
    args : list of str
        The command line, for the advice on how to resume.
    since : float
        Seconds since the epoch at which the command began.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code, None
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), None
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return CODE, stopped_line(args, since)
    if isinstance(error, DecompError):
        return error.exit_code, f"error: {_OPTION.sub(r'--', str(error))}"
    if isinstance(error, click.UsageError):
        return error.exit_code, f"error: {_usage_line(error)}"
    if isinstance(error, click.ClickException):
        return error.exit_code, f"error: {_one_line(error.format_message())}"
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # The reader of our output has gone (`| head`); nothing more may be written there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, None
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        fix = "give --device cpu, or less at a time where the command has --batch-size or --memory"
        return 1, f"error: the GPU: its memory is used up; {fix}."
    text = _one_line(str(error)) or "no message"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("decomp"):
        return 1, f"error: {error.name}: required package is not installed; pip install {error.name}."
    if isinstance(error, OSError) and error.strerror:
        return 1, f"error: {error.filename or 'files'}: {error.strerror}; check the path, its permissions and the disk."
    name = type(error).__name__
    return 1, f"error: internal {name}: {text[:300]}; please report it, with the output of --debug."


def _usage_line(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else program()
    see = f"see `{command} --help`"
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        options = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
        close = near_miss(error.option_name, options)
        return f"{error.option_name}: no such option, there are {', '.join(options)}; {close or see}."
    if isinstance(error, click.MissingParameter) and error.param is not None:
        help_text = _one_line(getattr(error.param, "help", None) or "").rstrip(".")
        return f"{error.param.opts[0]}: this option is required ({help_text}); {see}."
    text = _one_line(error.format_message()).rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{error.param.opts[0]}: {_one_line(error.message).rstrip('.')}; {see}."
    return f"{text}; {see}."


def _one_line(text: str) -> str:
    return " ".join(text.split())


@click.group(cls=CommandGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(decomp.__version__, "--version", message="decomp %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Compress a trained convolutional network: several times fewer multiply-accumulates, without retraining.

    The usual sequence of commands, all on one run directory:

    \b
      decomp freeze     --model zoo:vgg-digits --data digits --run runs/vgg
      decomp decompose  --run runs/vgg --speedup 4x
      decomp finetune   --run runs/vgg
      decomp evaluate   --run runs/vgg

    `decomp status --run runs/vgg` shows what is done and what comes next; `decomp demo` runs the whole sequence on a
    small example. An interrupted command continues when it is run again.
    """
    require_shared(ctx.invoked_subcommand)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
