"""Commands on tasks that one network learns one after another: tasks add, list, verify, export."""

from __future__ import annotations

from typing import Any

import click

from decomp.errors import UsageError, near_miss

from ..console import parse
from ..console.options import FORMATS, FREE_WEIGHTS, TaskOptions, formats
from ..console.program import program
from .group import main
from .shared import (
    DATA_HELP,
    MODEL_HELP,
    Choice,
    begin,
    default_of,
    given,
    number,
    open_run,
    shared_options,
    show,
)  # fmt: skip


class TaskGroup(click.Group):
    """The commands in the order of use; a mistyped one is answered with the closest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-") and not ctx.resilient_parsing:
            rule = f"no such command of tasks, there are {', '.join(self.commands)}"
            raise UsageError(args[0], rule, fix=near_miss(args[0], self.commands) or f"see `{program()} tasks --help`")
        return super().resolve_command(ctx, args)


@main.group(cls=TaskGroup, invoke_without_command=True)
@click.pass_context
def tasks(ctx: click.Context) -> None:
    """Learn tasks one after another in one network.

    The tasks learned before stay as they are, to the last bit.

    \b
      decomp tasks add    --run runs/tasks --model zoo:vgg-tasks --data npz:task1.npz --name letters --goal 0.95
      decomp tasks add    --run runs/tasks --data npz:task2.npz --name digits --goal 0.90
      decomp tasks list   --run runs/tasks
      decomp tasks verify --run runs/tasks
      decomp tasks export --run runs/tasks --name digits --format pt2,onnx
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _option(name: str, field: str, help: str, **extra: Any) -> Any:
    """A number of the task's options with its default."""
    return number(name, field, default=default_of(TaskOptions, field), show_default=True, help=help, **extra)


@tasks.command(
    epilog="""\b
Examples:
  decomp tasks add --run runs/tasks --model zoo:vgg-tasks --data npz:task1.npz --name letters --goal 0.95
  decomp tasks add --run runs/tasks --data npz:task2.npz --name digits --goal independent --max-width 2
"""
)
@shared_options("run")
@click.option("--name", required=True, metavar="TASK", help="Name of the task.")
@click.option("--data", required=True, metavar="NAME", help=DATA_HELP + " With labels from 0.")
@click.option(
    "--goal", required=True, type=parse.goal, metavar="SHARE",
    help="Accuracy on held-out images, such as 0.95; or independent: that of a network of its own, trained first.",
)  # fmt: skip
@click.option("--model", metavar="NAME", help="For the first task: " + MODEL_HELP + "  [default: that of the run]")
@click.option("--weights", metavar="FILE", help="For the first task: weights to begin with.  [default: random ones]")
@click.option("--input-size", metavar="[CxHx]W", help="For the first task: size of one image.  [default: theirs]")
@number("--seed", least=0, help="For the first task: random seed of the run.  [default: 0]")
@number("--classes", least=2, help="Number of classes.  [default: the largest label + 1]")
@_option("--epochs", "epochs", "Epochs of fine-tuning at each width.")
@_option("--prune-epochs", "prune_epochs", "Epochs of each rung of pruning.")
@_option("--retrain-epochs", "retrain_epochs", "Most epochs of learning the picks anew.")
@_option("--batch-size", "batch_size", "Images per step.")
@_option("--lr", "learning_rate", "Learning rate of fine-tuning.", least=0, kind=float, above=True)
@_option("--prune-lr", "prune_learning_rate", "That of pruning and retraining.", least=0, kind=float, above=True)
@_option("--weight-decay", "weight_decay", "Weight decay of the task's own weights.", least=0, kind=float)
@_option("--width-step", "width_step", "Growth of the parameters in one step.", least=0, kind=float, above=True)
@_option("--max-width", "max_width", "Largest multiple of the parameters; 1 never grows.", kind=float, most=100)
@number("--planned", most=255, help="Tasks that the run shall hold in the end.  [default: one more than now]")
@click.option("--strict", is_flag=True, help="Do not let a goal be missed by one standard error.")
@_option("--train-gate", "train_gate", "Training accuracy to exceed as well.", least=0, kind=float, most=1)
@click.option(
    "--ladder", type=parse.ladder, metavar="LIST", default=",".join(map(str, TaskOptions.ladder)), show_default=True,
    help="Shares of the task's weights that are released, one rung after the other.",
)  # fmt: skip
@click.option(
    "--free-weights", type=Choice(FREE_WEIGHTS), default=TaskOptions.free_weights, show_default=True,
    help="Values with which a task begins in released weights.",
)  # fmt: skip
@click.option(
    "--picking/--no-picking", default=True, show_default=True,
    help="Choose among earlier weights; without it all are used, as in PackNet.",
)  # fmt: skip
@shared_options("redo", "device", "verbose", "common")
def add(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Learn a task and commit it.

    An interrupted command continues when it is run again.
    """
    begin(threads)
    from ..stages.tasks import add as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **given(options)))


@tasks.command(name="list")
@shared_options("run", "verbose", "json", "debug")
@click.pass_context
def list_tasks(ctx: click.Context, run: str) -> None:
    """List tasks: accuracies, owners, width and what is free.

    The exit code is 1 where the file of a task is damaged; the tasks before it are listed.
    """
    begin(None)
    from ..stages.tasks import listed

    result = listed(run)
    show(result)
    if result.unreadable:
        ctx.exit(1)


@tasks.command()
@shared_options("run", "json", "debug")
@click.pass_context
def verify(ctx: click.Context, run: str) -> None:
    """Compare every task with what was committed, to the last bit.

    The exit code is 1 where a task is not as it was committed.
    """
    begin(None)
    from ..stages.tasks import verify as stage

    result = stage(run)
    show(result)
    if not result.good:
        ctx.exit(1)


@tasks.command(
    epilog="""\b
Examples:
  decomp tasks export --run runs/tasks --name digits --format pt2,onnx
"""
)
@shared_options("run")
@click.option("--name", required=True, metavar="TASK", help="Name of the task.")
@click.option(
    "--format", "formats", type=formats, metavar="LIST", default="pt2,state-dict", show_default=True,
    help=f"Comma-separated: {', '.join(FORMATS)}; onnx needs decomp[export].",
)  # fmt: skip
@click.option("--out", type=click.Path(), metavar="DIR", help="Folder to write to.  [default: export/ in the run]")
@shared_options("verbose", "common")
def export(run: str, threads: int | None, quiet: bool, **options: Any) -> None:
    """Write one task as an ordinary network.

    Channels that the task does not use are removed.
    """
    begin(threads)
    from ..stages.tasks import export as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter, **options))


@tasks.command()
@shared_options("run")
@shared_options("verbose", "common")
def report(run: str, threads: int | None, quiet: bool) -> None:
    """Write the report of the tasks: HTML, PNG and CSV."""
    begin(threads)
    from ..stages.tasks import report as stage

    directory, reporter = open_run(run, quiet)
    show(stage(directory, reporter=reporter))
