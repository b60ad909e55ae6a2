"""The tools on twelve small graphs that are not chains, with a target of 2x and without training.

The graphs are those of the package's own tests, with random weights and normalisation statistics; the images are
random, the labels the original's own predictions. Cells are the counted speed-up, or *no*, with the tool's message
below. A tool that returns another shape of output, or one that is not finite, has failed. The difference of the
outputs is not shown: with random weights it says nothing about trained networks. AIMET gets the graphs as its own
`prepare_model` makes them, without which it follows none of them.
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.peers import driver
from benchmarks.peers.methods import METHODS, named
from benchmarks.peers.subject import Subject
from benchmarks.peers.worker import serve

TESTS = Path(__file__).resolve().parent.parent.parent / "tests"
N_IMAGES, SPEEDUP = 200, 2
CHOSEN = (
    "decomp/all-steps", "decomp/prune", "torch-pruning/l2-uniform", "torch-pruning/l2-global", "tensorly/tucker-2",
    "aimet-torch/spatial-svd-uniform", "aimet-torch/channel-pruning-uniform",
)  # fmt: skip


def _small_graphs():
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    import small_graphs

    return small_graphs


class GraphSubject(Subject):
    """A small graph with random images, in the shape of :class:`benchmarks.peers.subject.Subject`."""

    def __init__(self, name, seed=0):
        graphs = _small_graphs()
        self.name, self.seed, self.n_images = name, seed, N_IMAGES
        self.model, self.shape = graphs.make(name), tuple(graphs.INPUT)
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(2 * N_IMAGES, *self.shape, generator=generator)
        with torch.no_grad():
            answers = self.model(self.images)
        self.images, self.judged_on = self.images.split(N_IMAGES)
        self.labels = answers[:N_IMAGES].argmax(1)
        self.macs = self.count(self.model)

    @torch.no_grad()
    def judge(self, module, kept=None):
        """Counted cost, where the outputs are whole on images that no tool has seen."""
        wanted, got = self.model(self.judged_on), module.eval()(self.judged_on)
        if got.shape != wanted.shape:
            raise ValueError(f"gives outputs of shape {tuple(got.shape)} in place of {tuple(wanted.shape)}")
        if not torch.isfinite(got).all():
            raise ValueError("gives outputs that are not finite")
        return {"counted": self.macs / self.count(module)}


def make(out, row):
    """Fill a row in; nothing is kept in `out`."""
    subject = GraphSubject(row["network"], row["seed"])
    torch.manual_seed(row["seed"])
    method = METHODS[row["method"]]
    if method.tool == "aimet-torch":
        from aimet_torch.model_preparer import prepare_model

        subject.model = prepare_model(subject.fresh()).eval()
    if method.tool == "decomp":
        import decomp

        network, _ = decomp.compress(subject.fresh(), subject.images, speedup=row["speedup"], **method.options)
    else:
        with tempfile.TemporaryDirectory() as work:
            network, _ = method.compress(subject, row["speedup"], Path(work))
    return {**row, **subject.judge(network)}


def measure(out):
    """Run what is missing; all rows by graph and method."""
    asked = driver.rows_asked(list(_small_graphs().GRAPHS), "random", [0], [SPEEDUP], [0], CHOSEN)
    driver.run(folder(out), asked, worker=(sys.executable, "-m", "benchmarks.peers.graphs"))


def folder(out):
    """Where the rows are kept."""
    return Path(out) / "graphs"


def rows(out):
    """One row for each graph, with a cell for each method; a list, and the failures in words."""
    table, failures = {}, []
    for row in driver.read(folder(out) / "results.jsonl").values():
        name = " ".join(named(row["method"]))
        line = table.setdefault(row["network"], {"graph": row["network"]})
        if "error" in row:
            line[name] = "no"
            failures.append(f"- {row['network']}, {name}: `{row['error']}`")
        else:
            line[name] = f"{row['counted']:.2f}x"
    return list(table.values()), failures


if __name__ == "__main__":
    serve(make)
