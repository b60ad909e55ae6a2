"""The whole path in one go, on a small shipped network and images that need no download.

Also the shortest example of how the stages are called from Python.
"""

from dataclasses import dataclass

from ..run.directory import RunDirectory
from ..stages.decompose import decompose
from ..stages.evaluate import evaluate
from ..stages.finetune import finetune
from ..stages.freeze import freeze

MODEL, DATA, SPEEDUP, EPOCHS = "zoo:vgg-digits", "digits", 4.0, 3


@dataclass(frozen=True)
class DemoResult:
    """What the demo ends with: the table of `evaluate`, and the run directory it is about."""

    run: RunDirectory
    evaluation: object

    def lines(self):
        """The result for a person, a line each."""
        yield from self.evaluation.lines()
        yield f"the fine-tuned network: decomp.load({str(self.run.finetune_dir / 'best')!r})"
        yield f"all of its files: {self.run.path}"


def demo(run="runs/demo", *, reporter):
    """Freeze, decompose, fine-tune and evaluate; what is done already is not done again.

    Parameters
    ----------
    run : path or RunDirectory
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    DemoResult
    """
    run = RunDirectory(run)
    reporter.step(f"1 of 4: freeze {MODEL} on {DATA}")
    _tell(freeze(run, model=MODEL, data=DATA, reporter=reporter), reporter)
    reporter.step(f"2 of 4: decompose, {SPEEDUP:g} times cheaper")
    _tell(decompose(run, speedup=SPEEDUP, reporter=reporter), reporter)
    reporter.step(f"3 of 4: finetune, {EPOCHS} epochs")
    _tell(finetune(run, epochs=EPOCHS, reporter=reporter), reporter)
    reporter.step("4 of 4: evaluate on the test images")
    return DemoResult(run, evaluate(run, reporter=reporter))


def _tell(result, reporter):
    for line in result.lines():
        if not line.startswith("next:"):
            reporter.step(f"  {line}")
