"""The commands that make something of a finished run, for the command line to take in: click's second and last place.

They are apart from ``cli.py``, which is as long as a file should be; what commands share is handed in by it, so that
the direction of imports stays.
"""

import click

from ..console import options as parse


def add(main, door):
    """Add the commands to the group.

    Parameters
    ----------
    main : click.Group
    door : object
        What ``cli.py`` has for every command: ``options("run", "common")`` adds shared options, ``use_threads(n)``,
        ``enter(run, quiet)`` gives the run directory and its reporter, ``reporter(quiet)`` one without
        a run, ``show(result)`` prints; ``model_help`` and ``data_help`` say how models and images are named.
    """
    _add_inspect(main, door)
    _add_export(main, door)
    _add_report(main, door)
    _add_compare(main, door)


def _add_inspect(main, door):
    @main.command(
        epilog="""\b
Examples:
  decomp inspect --model zoo:resnet20-fashion
  decomp inspect --model torchvision:resnet50 --dot resnet50.dot
  decomp inspect --model nets.py:detector --module backbone --input-size 3x320x320
"""
    )
    @click.option("--model", required=True, metavar="NAME", help=door.model_help)
    @click.option("--data", metavar="NAME", help=door.data_help + " Tells the size of the images.")
    @click.option("--input-size", metavar="[CxHx]W", help="Of one image, where neither model nor data tell.")
    @door.options("part", "leaf")
    @click.option("--dot", metavar="FILE", help="Write layers and channel spaces as a drawing for graphviz.")
    @click.option("--png", metavar="FILE", help="Draw it; needs graphviz' dot.")
    @door.options("common")
    def inspect(threads, quiet, model, **options):
        """Say what each convolution's channels are bound to, what each step can do there, and what is left alone."""
        door.use_threads(threads)
        from ..stages.inspection import inspect as stage

        door.show(stage(model, **options))


def _add_export(main, door):
    @main.command(
        epilog="""\b
Examples:
  decomp export --run runs/vgg --format pt2,onnx
  decomp export --run runs/vgg --which decomposed --format state-dict --out deploy
"""
    )
    @door.options("run")
    @click.option(
        "--format", "formats", type=parse.formats, metavar="LIST", default="pt2,state-dict", show_default=True,
        help=f"Any of {', '.join(parse.FORMATS)}; onnx needs decomp[export].",
    )  # fmt: skip
    @click.option("--which", type=click.Choice(parse.NETWORKS), help="Which network.  [default: the best there is]")
    @click.option("--out", type=click.Path(), metavar="DIR", help="Where to write.  [default: export/ in the run]")
    @door.options("common")
    def export(run, threads, quiet, **options):
        """Write a network in formats that load without this package, each checked against it."""
        door.use_threads(threads)
        from ..stages.export import export as stage

        run, reporter = door.enter(run, quiet)
        door.show(stage(run, reporter=reporter, **options))


def _add_report(main, door):
    @main.command(
        epilog="""\b
Examples:
  decomp report --run runs/vgg
"""
    )
    @door.options("run")
    @click.option("--out", type=click.Path(), metavar="DIR", help="Where to write.  [default: the run]")
    @door.options("common")
    def report(run, threads, quiet, **options):
        """Draw what there is of a run: one HTML sheet, PNGs, and every figure's numbers as CSV."""
        door.use_threads(threads)
        from ..stages.report import report as stage

        run, reporter = door.enter(run, quiet)
        door.show(stage(run, reporter=reporter, **options))


def _add_compare(main, door):
    @main.command(
        epilog="""\b
Examples:
  decomp compare runs/vgg-2x runs/vgg-4x --out comparison
"""
    )
    @click.argument("runs", nargs=-1, required=True, type=click.Path())
    @click.option("--out", type=click.Path(), metavar="DIR", default="comparison", show_default=True)
    @door.options("common")
    def compare(runs, threads, quiet, **options):
        """Put several evaluated runs on one sheet."""
        door.use_threads(threads)
        from ..stages.report import compare as stage

        door.show(stage(runs, reporter=door.reporter(quiet), **options))
