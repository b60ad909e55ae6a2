"""Options and helper functions that several commands share."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import decomp
from decomp.errors import UsageError, check_choice

from ..console import parse
from ..distributed.launch import n_started, own_number
from .group import COMMAND_KEY, JSON_KEY, VERBOSE_KEY

if TYPE_CHECKING:
    from ..console.reporter import Reporter
    from ..run.directory import RunDirectory

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

MODEL_HELP = "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory."
DATA_HELP = (
    "digits, fashion-mnist[:DIR], mnist[:DIR], cifar10[:DIR], cifar100[:DIR], imagefolder:DIR, "
    "webdataset:PATTERN, npz:FILE, or FILE.py:FUNCTION (or package.module:function), which returns a Dataset, a "
    "DataLoader or arrays."
)


class Choice(click.Choice):
    """One of several texts; a mistake is reported as the Python API reports it, with a near miss."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = param.opts[0] if param is not None else "value"
        return check_choice(name, value, [str(choice) for choice in self.choices])


def number(
    name: str,
    *rest: str,
    least: float = 1,
    kind: type = int,
    above: bool = False,
    most: float = float("inf"),
    word: str = "",
    **extra: Any,
) -> Decorator:
    """An option that takes a number of at least `least`, or a word; the help says a least that is more than one."""
    if least > 1 and "help" in extra:
        words, *default = extra["help"].partition("  [")
        extra["help"] = f"{words} At least {least:g}.{''.join(default)}"
    metavar = extra.pop("metavar", "N" if kind is int else "X")
    return click.option(name, *rest, type=parse.number(name, kind, least, above, most, word), metavar=metavar, **extra)


def default_of(options: type, name: str) -> Any:
    """Default of one field of an options class, as click shows it."""
    value = next(entry.default for entry in dataclasses.fields(options) if entry.name == name)
    return ",".join(value) if isinstance(value, tuple) else value


_threads = number("--threads", help="Number of CPU threads.  [default: all]")
_quiet = click.option("--quiet", is_flag=True, help="Print only the result and errors.")
_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
_json = click.option(
    "--json", is_flag=True, expose_value=False, help="Print the result as JSON, without progress.",
    callback=lambda ctx, _, given: ctx.meta.update({JSON_KEY: given}),
)  # fmt: skip

_verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, help="Print more, such as a line for each layer.",
    callback=lambda ctx, _, given: ctx.meta.update({VERBOSE_KEY: given}),
)  # fmt: skip

_SHARED: dict[str, Decorator] = {
    "run": click.option(
        "--run", required=True, type=click.Path(), metavar="DIR", help="Run directory: all files of one experiment."
    ),
    "device": click.option(
        "--device", type=parse.device, default="auto", show_default=True, metavar="auto|cpu|cuda",
        help="Device to compute on.",
    ),
    "memory": click.option(
        "--memory", type=parse.memory, metavar="SIZE",
        help="Memory limit, e.g. 8GiB; a number alone is in GiB.  [default: half of the machine's memory]",
    ),
    "precision": click.option(
        "--precision", type=Choice(parse.PRECISIONS), default=parse.AUTO, show_default=True,
        help="Precision of the computation in training; weights and validation are in float32. auto: bfloat16 on a "
        "GPU, float32 on a CPU; there a training that is given --minutes takes bfloat16 where it is measured to be at "
        "least 1.15 times as fast.",
    ),
    "seed": number("--seed", least=0, default=0, show_default=True, help="Random seed."),
    "skip-bad": click.option("--skip-bad", is_flag=True, help="Leave out images that are unreadable or hold NaN."),
    "part": click.option(
        "--module", "part", metavar="NAME",
        help="Compress only this submodule; it must take the images as its input.  [default: the whole network]",
    ),
    "leaf": click.option(
        "--leaf", "leaves", multiple=True, metavar="MODULE",
        help="Do not trace this module and leave it unchanged; can be given several times.  [default: none]",
    ),
    "redo": click.option("--redo", is_flag=True, help="Start over; replace what this command did in the run before."),
    "verbose": _verbose,
    "json": _json,
    "debug": _debug,
}  # fmt: skip


def shared_options(*names: str) -> Decorator:
    """Options of the table above, by name; 'common' stands for those of every command."""

    def add(function: Command) -> Command:
        for name in reversed(names):
            if name == "common":
                function = _threads(_quiet(_json(_debug(function))))
            else:
                function = _SHARED[name](function)
        return function

    return add


def begin(threads: int | None) -> None:
    """Say that the command has begun, before the libraries load, and limit the CPU threads that they will use."""
    if not wants_json() and not click.get_current_context().params.get("quiet") and own_number() == 0:
        click.echo(f"decomp {decomp.__version__}: loading …", err=True)
    if threads is not None:
        _limit_threads(threads)
    if n_started() > 1:
        from ..distributed.process_group import join
        from .processes import end_with_others

        end_with_others(shlex.split(click.get_current_context().meta.get(COMMAND_KEY, "")))
        join()


def _limit_threads(threads: int) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)  # read when the libraries load, which is after this
    import torch

    torch.set_num_threads(threads)


def open_run(run: str, quiet: bool) -> tuple[RunDirectory, Reporter]:
    """A run directory by its path, and a reporter that logs into it."""
    from ..console.reporter import Reporter
    from ..run.directory import RunDirectory

    directory = RunDirectory(run)
    if n_started() > 1:
        from ..distributed.own_copy import copied_folder

        directory = RunDirectory(copied_folder(directory.path))
        if own_number() > 0:
            return directory, Reporter(quiet=True)
    context = click.get_current_context()
    command = context.meta.get(COMMAND_KEY)
    quiet, verbose = quiet or wants_json(), bool(context.meta.get(VERBOSE_KEY))
    reporter = Reporter.for_run(directory, quiet=quiet, command=command, verbose=verbose)
    if (limit := context.params.get("memory")) is not None:
        from ..measure.memory import above_the_machine

        if words := above_the_machine(limit):
            reporter.warn(words)
    return directory, reporter


def take_inputs(options: dict[str, Any]) -> None:
    """Let the other processes of a job see the run and the plan that only the first one may see, in place."""
    if n_started() == 1:
        return
    from ..distributed.own_copy import copied_files, copied_folder

    if options["source_run"] is not None:
        options["source_run"] = copied_folder(Path(options["source_run"]))
    if options["plan"] is not None:
        options["plan"] = copied_files([Path(options["plan"])])[0]


def own_file(out: str | None, model: str) -> str | None:
    """The file for trained weights; of several processes all but the first write into a folder of their own."""
    if n_started() == 1:
        return out
    from ..distributed.own_copy import copied_files
    from ..training.training_record import weights_file

    file = weights_file(out, model)
    return os.fspath(copied_files([file, file.with_suffix(".json"), file.with_suffix(".checkpoint")])[0])


def reporter_without_run(quiet: bool) -> Reporter:
    """A reporter that logs nowhere."""
    from ..console.reporter import Reporter

    verbose = bool(click.get_current_context().meta.get(VERBOSE_KEY))
    return Reporter(quiet=quiet or wants_json() or own_number() > 0, verbose=verbose)


def wants_json() -> bool:
    """Whether ``--json`` was given."""
    return bool(click.get_current_context().meta.get(JSON_KEY, False))


def refuse_beside(option: str, names: Iterable[str]) -> None:
    """Refuse options whose values `option` contains already.

    Raises
    ------
    UsageError
    """
    context, refused = click.get_current_context(), set(names)
    for parameter in context.command.params:
        if parameter.name is None or parameter.name not in refused:
            continue
        if context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
            rule = f"contains the value of {parameter.opts[0]} itself"
            raise UsageError(option, rule, got=f"{parameter.opts[0]} beside it", fix="leave one of them out")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those left out, so that the stage's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def show(result: Any) -> None:
    """Print a stage's result: its lines, or JSON where that was asked for."""
    if own_number() > 0:
        return
    if wants_json():
        click.echo(as_json(result))
        return
    for line in result.lines():
        click.echo(line)


def as_json(result: Any) -> str:
    """A result as JSON text: its ``to_json()`` where it has one, otherwise its fields by name."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_json"):
            return value.to_json()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if dataclasses.is_dataclass(value):
            return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return value.tolist() if hasattr(value, "tolist") else str(value)

    return json.dumps(result, indent=2, ensure_ascii=False, default=plain)
