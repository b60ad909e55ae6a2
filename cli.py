"""The command line. Each command builds a configuration, calls one stage and prints its result.

Nothing heavy is imported before a command is known, so that ``decomp --help`` answers at once.
"""

import errno
import os
import shlex
import sys
import traceback
import warnings
from types import SimpleNamespace

import click

import decomp
from decomp.errors import DecompError, UsageError
from decomp.pipelines.commands import click_commands as commands
from decomp.pipelines.console import options as parse
from decomp.pipelines.console.options import guess
from decomp.pipelines.console.options import program as _program

_COMMAND = "decomp.command"  # under which the context keeps what was given
_JSON = "decomp.json"  # under which it keeps that JSON is to be printed
COMMANDS = (
    "inspect", "freeze", "decompose", "finetune", "evaluate", "export", "report", "compare", "status", "demo", "train",
)  # fmt: skip


class Door(click.Group):
    """The group of commands; every mistake ends in one line on standard error and an exit code."""

    def main(self, args=None, prog_name=None, complete_var=None, standalone_mode=True, **extra):
        args = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        debug = "--debug" in args
        if not debug and not sys.warnoptions:
            # Ours are told as steps; a library's own are for its developers.
            warnings.simplefilter("ignore")
        code = 0
        try:
            result = super().main(args, prog_name or _program(), complete_var, standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
        except BaseException as error:
            if debug and not isinstance(error, (click.exceptions.Exit, SystemExit)):
                traceback.print_exc()
            code, line = explain(error, args)
            if line:
                click.echo(line, err=True)
        sys.exit(code)

    def parse_args(self, ctx, args):
        ctx.meta[_COMMAND] = shlex.join(argument for argument in args if argument != "--debug")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx, args):
        known = self.get_command(ctx, args[0]) is not None or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:  # which it is while a shell completes the line
            rule = f"no such command, there are {', '.join(COMMANDS)}"
            raise UsageError(args[0], rule, fix=guess(args[0], COMMANDS) or f"see `{_program()} --help`")
        return super().resolve_command(ctx, args)


def explain(error, args):
    """The exit code and the one line for a person that `error` ends in; no line where there is nothing to say."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code, None
    if isinstance(error, SystemExit):
        return (error.code if isinstance(error.code, int) else 1), None
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        command = shlex.join([*_program().split(), *args])
        return 130, f"stopped; what was finished is kept. To go on: {command}"
    if isinstance(error, DecompError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, click.UsageError):
        return error.exit_code, f"error: {_usage_line(error)}"
    if isinstance(error, click.ClickException):
        return error.exit_code, f"error: {_one_line(error.format_message())}"
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # Whoever read our output has gone (`| head`); nothing more may be written there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, None
    text = _one_line(str(error)) or "no message"
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("decomp"):
        return 1, f"error: {error.name}: this package is needed and is not installed; pip install {error.name}."
    return 1, f"error: unexpected {type(error).__name__}: {text[:300]}; run with --debug for the traceback."


def _usage_line(error):
    command = error.ctx.command_path if error.ctx is not None else _program()
    see = f"see `{command} --help`"
    if isinstance(error, click.NoSuchOption):
        options = [name for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
        close = guess(error.option_name, options)
        return f"{error.option_name}: no such option, there are {', '.join(options)}; {close or see}."
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{error.param.opts[0]}: this option is needed ({_one_line(error.param.help).rstrip('.')}); {see}."
    text = _one_line(error.format_message()).rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{error.param.opts[0]}: {_one_line(error.message).rstrip('.')}; {see}."
    return f"{text}; {see}."


def _one_line(text):
    return " ".join(text.split())


def _options(*names):
    """Options that several commands share, by name."""

    def add(function):
        for name in reversed(names):
            function = _SHARED[name](function)
        return function

    return add


def _declared(options):
    """Options that are declared as data, see :data:`decomp.pipelines.console.options.DECOMPOSE`."""

    def add(function):
        for name, keywords in reversed(options.items()):
            keywords = dict(keywords)
            if "choices" in keywords:
                keywords["type"] = click.Choice(keywords.pop("choices"))
            names = [name, keywords.pop("dest")] if "dest" in keywords else [name]
            shown = keywords.get("default") is not None
            function = click.option(*names, show_default=shown, **keywords)(function)
        return function

    return add


def _number(name, *rest, least=1, kind=int, above=False, **extra):
    """An option that takes a number of at least `least`."""
    metavar = "N" if kind is int else "X"
    return click.option(name, *rest, type=parse.number(name, kind, least, above), metavar=metavar, **extra)


_SHARED = {
    "run": click.option(
        "--run", required=True, type=click.Path(), metavar="DIR", help="The run directory: all of one experiment."
    ),
    "device": click.option(
        "--device",
        type=parse.device,
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda",
        help="Where to compute.",
    ),
    "memory": click.option(
        "--memory", type=parse.memory, metavar="SIZE", help="To stay within, such as 8GiB.  [default: half of it all]"
    ),
    "seed": _number("--seed", least=0, default=0, show_default=True, help="Of every draw."),
    "skip-bad": click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and go on."),
    "part": click.option("--module", "part", metavar="NAME", help="Treat only this submodule, which takes the images."),
    "leaf": click.option(
        "--leaf",
        "leaves",
        multiple=True,
        metavar="MODULE",
        help="Do not look into this module, leave it alone; repeatable.",
    ),
    "redo": click.option("--redo", is_flag=True, help="Start over, dropping what this command did in the run before."),
    "common": lambda function: _threads(_quiet(_json(_debug(function)))),
}
_threads = _number("--threads", help="How many CPU threads to use.  [default: all]")
_json = click.option(
    "--json", is_flag=True, expose_value=False, help="Print the result as JSON, and no progress.",
    callback=lambda ctx, _, given: ctx.meta.update({_JSON: given}),
)  # fmt: skip
_quiet = click.option("--quiet", is_flag=True, help="Print the result and errors, no progress.")
_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")

_MODEL_HELP = "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:factory or package.module:factory."
_DATA_HELP = (
    "digits, fashion-mnist[:DIR], mnist[:DIR], cifar10[:DIR], cifar100[:DIR], imagefolder:DIR, npz:FILE "
    "or package.module:function."
)


@click.group(cls=Door, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(decomp.__version__, "--version", message="decomp %(version)s")
@_debug
@click.pass_context
def main(ctx):
    """Make a trained convolutional network several times cheaper, without training it again.

    The way of a network through its run directory:

    \b
      decomp freeze     --model zoo:vgg-digits --data digits --run runs/vgg
      decomp decompose  --run runs/vgg --speedup 4x
      decomp finetune   --run runs/vgg
      decomp evaluate   --run runs/vgg

    `decomp status --run runs/vgg` says what is done and what is next; `decomp demo` goes the whole way by itself.
    A command that was stopped goes on where it was when it is given again.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(
    epilog="""\b
Examples:
  decomp freeze --model zoo:vgg-digits --data digits --run runs/vgg
  decomp freeze --model torchvision:vgg16 --weights DEFAULT --data imagefolder:photos --run runs/vgg16
  decomp freeze --model nets.py:build --weights net.safetensors --data npz:images.npz --run runs/mine
"""
)
@click.option("--model", required=True, metavar="NAME", help=_MODEL_HELP)
@click.option("--data", required=True, metavar="NAME", help=_DATA_HELP + " Its training images are used.")
@_options("run")
@click.option("--weights", metavar="FILE", help="safetensors or a torch state dict; DEFAULT for torchvision's own.")
@click.option(
    "--input-size", metavar="[CxHx]W", help="Of one image, where model and data do not tell: 224, 28x28, 3x224x224."
)
@_options("part", "leaf")
@_number("--images", "n_images", default=5000, show_default=True, help="At most.")
@_number("--points", "n_points", default=10, show_default=True, help="Per image.")
@_number("--batch-size", default=100, show_default=True, help="Images at a time.")
@_options("memory", "seed", "device", "skip-bad", "common")
def freeze(run, threads, quiet, **options):
    """Record how the original network responds: images, points and every conv's outputs, once and for all."""
    _use_threads(threads)
    from decomp.pipelines.stages.freeze import freeze as stage

    run, reporter = _enter(run, quiet)
    _print(stage(run, reporter=reporter, **options))


@main.command(
    epilog="""\b
Examples:
  decomp decompose --run runs/vgg --speedup 4x
  decomp decompose --run runs/vgg --speedup 4x --plan-only
  decomp decompose --run runs/vgg --speedup 2x,3x,4x,5x
  decomp decompose --run runs/fast --from runs/vgg --speedup 2x --cost latency --batch-size 1
  decomp decompose --run runs/mine --from runs/vgg --plan plan.json
  decomp decompose --run runs/vgg-spatial --from runs/vgg --speedup 2.5x --steps spatial
"""
)
@_options("run")
@_declared(parse.DECOMPOSE)
@_options("redo", "memory", "device", "common")
def decompose(run, threads, quiet, linear, speedup, **options):
    """Replace each conv by cheaper ones that respond alike, layer by layer from the front."""
    _use_threads(threads)
    from decomp.pipelines.stages.decompose import decompose as stage

    run, reporter = _enter(run, quiet)
    options.update(activation_aware=not linear, reporter=reporter)
    for name in ("refine", "recovery", "sampler"):
        options[name] = not options.pop(f"no_{name}")
    if options["plan"] is not None:
        _refuse_beside(
            "--plan", ("speedup", "steps", "allocation", "cost", "multiple", "skip", "keep_first", "coupled")
        )
    if speedup is not None and len(speedup) > 1:
        from decomp.pipelines.recipes.family import family

        _print(family(run, speedups=speedup, **options))
    else:
        _print(stage(run, speedup=None if speedup is None else speedup[0], **options))


@main.command(
    epilog="""\b
Examples:
  decomp finetune --run runs/vgg
  decomp finetune --run runs/vgg --labels none --epochs 10
  decomp finetune --run runs/vgg --distill --lr 0.005 --schedule constant
"""
)
@_options("run")
@_number("--epochs", default=5, show_default=True)
@_number("--lr", "--learning-rate", "learning_rate", least=0, kind=float, above=True, help="Learning rate.")
@_number("--batch-size", default=128, show_default=True)
@click.option("--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True)
@click.option(
    "--labels",
    type=click.Choice(["train", "none"]),
    default="train",
    show_default=True,
    help="The training set's, or none: the original's outputs on the calibration images.",
)
@click.option("--distill", is_flag=True, help="With labels, follow the original's outputs as well.")
@_number("--weight-decay", least=0, kind=float)
@_options("redo", "seed", "device", "common")
def finetune(run, threads, quiet, **options):
    """Train the decomposed network a little; goes on after the last finished epoch."""
    _use_threads(threads)
    from decomp.pipelines.stages.finetune import finetune as stage

    run, reporter = _enter(run, quiet)
    _print(stage(run, reporter=reporter, **_given(options)))


@main.command(
    epilog="""\b
Examples:
  decomp evaluate --run runs/vgg
  decomp evaluate --run runs/vgg --batch-size 1 --json
"""
)
@_options("run")
@_number("--batch-size", default=64, show_default=True, help="For the latency.")
@_number("--repeats", help="How often the latency is measured.")
@click.option(
    "--layout", type=click.Choice(parse.LAYOUTS), default="contiguous", show_default=True,
    help="Of images and weights in memory, for the latency.",
)  # fmt: skip
@_options("redo", "device", "common")
def evaluate(run, threads, quiet, **options):
    """Compare the original, the decomposed and the fine-tuned network on the test images."""
    _use_threads(threads)
    from decomp.pipelines.stages.evaluate import evaluate as stage

    run, reporter = _enter(run, quiet)
    _print(stage(run, reporter=reporter, **_given(options)))


@main.command()
@_options("run")
@_json
@_debug
def status(run):
    """Say what is done in a run directory, what is next, and where things lie."""
    from decomp.pipelines.stages.status import status as stage

    _print(stage(run, program=_program()))


@main.command()
@click.option("--run", default="runs/demo", show_default=True, metavar="DIR", help="Where its files go.")
@_options("common")
def demo(run, threads, quiet):
    """Go the whole way on a small shipped network and images that need no download."""
    _use_threads(threads)
    from decomp.pipelines.recipes.demo import demo as stage

    run, reporter = _enter(run, quiet)
    _print(stage(run, reporter=reporter))


@main.command(
    epilog="""\b
Examples:
  decomp train --model zoo:vgg-fashion --data fashion-mnist --out vgg.safetensors
"""
)
@click.option("--model", required=True, metavar="NAME", help=_MODEL_HELP)
@click.option("--data", metavar="NAME", help=_DATA_HELP + "  [default for zoo networks: their own]")
@click.option(
    "--out", metavar="FILE", help="Where the weights go, with a JSON beside them.  [default: NAME.safetensors]"
)
@_number(
    "--epochs",
)
@_number("--lr", "--learning-rate", "learning_rate", least=0, kind=float, above=True, help="Learning rate.")
@_number("--batch-size")
@_options("seed", "device", "common")
def train(threads, quiet, model, **options):
    """Train a network from the start, so that there is one to make cheaper."""
    _use_threads(threads)
    from decomp.pipelines.stages.train import train as stage

    _print(stage(model, reporter=_reporter(quiet), **_given(options)))


def _use_threads(threads):
    if threads is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)  # read when the libraries load, which is after this
    import torch

    torch.set_num_threads(threads)


def _enter(run, quiet):
    from decomp.pipelines.console.reporter import Reporter
    from decomp.pipelines.run.directory import RunDirectory

    run = RunDirectory(run)
    command = click.get_current_context().meta.get(_COMMAND)
    return run, Reporter.for_run(run, quiet=quiet or _wants_json(), command=command)


def _reporter(quiet):
    from decomp.pipelines.console.reporter import Reporter

    return Reporter(quiet=quiet or _wants_json())


def _wants_json():
    return click.get_current_context().meta.get(_JSON, False)


def _refuse_beside(option, names):
    """No option may be given whose value `option` says already."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in names and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(option, "says that itself", got=parameter.opts[0], fix="leave one of them out")


def _given(options):
    """Without the options that were left out, so that a stage's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def _print(result):
    if _wants_json():
        from decomp.pipelines.console.options import as_json

        click.echo(as_json(result))
        return
    for line in result.lines():
        click.echo(line)


_door = SimpleNamespace(
    options=_options, use_threads=_use_threads, enter=_enter, reporter=_reporter, show=_print,
    model_help=_MODEL_HELP, data_help=_DATA_HELP,
)  # fmt: skip
commands.add(main, _door)


if __name__ == "__main__":
    # Run as a file, this folder is first on the path, where its data/ and pipelines/ would hide a person's own.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    main()
