"""Ablation of the solvers on a frozen network: error of each layer and of the network's output for each option.

    python -m benchmarks.ablation --run runs/vgg --speedup 4

First table: every way to choose half of a layer's input channels, the weights fitted on them; relative squared error of
the layer's responses on held-out calibration images, each layer on the original network's inputs.
Second table: the whole network at one speed-up by the spatial split alone and by the channel decomposition alone, each
with linear and with activation-aware fits, in the plain and in the output metric, before and after joint refinement;
mean relative error of the layers on held-out rows, and Kullback-Leibler divergence and agreement of the network's
output with the original's on the held-out calibration images. One plan serves all variants of a step.
"""

import argparse
import itertools

import torch

from benchmarks.common import markdown
from decomp.allocation import objective
from decomp.allocation.allocator import Allocator
from decomp.cost import models
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.decomposition.gather import ProblemGatherer
from decomp.pipelines.decomposition.session import narrow, open_run, survey
from decomp.pipelines.measure import fidelity
from decomp.pipelines.measure.resources import Resources
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import open_frozen
from decomp.pipelines.run.outputs import frozen_outputs
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import columns_of, weight_to_matrix
from decomp.solvers import selection
from decomp.solvers.selectors import CHANNEL_SELECTORS
from decomp.solvers.solve_layer import FitSettings, solve_layer
from decomp.surgery.apply_solution import apply_solution


class Study:
    """One frozen network."""

    def __init__(self, path):
        self.run = RunDirectory.open(path)
        self.frozen, self.original = open_frozen(self.run)
        self.shape = tuple(self.frozen.meta["input_shape"])
        reporter = Reporter()
        with open_run(self.run, Resources(torch.device("cpu"))) as opened:
            self.survey = survey(opened, narrow(opened, {}, reporter=reporter), reporter=reporter).survey
            self.original_cost = opened.cost

    def view(self):
        """A fresh copy of the original network."""
        fitting = FittingLimits(self.frozen.n_images)
        return NetworkGraph(trace(self.original), self.shape, fitting=fitting)

    def selectors(self):
        """Rows (layer, kept, error of each selector)."""
        view = self.view()
        problems, rows = ProblemGatherer(self.frozen, view), []
        for layer in view.layers:
            if layer.input_space is None:
                continue
            problem, held_out = problems.problem(layer)
            keep = max(1, problem.n_channels // 2)
            errors = []
            for name in CHANNEL_SELECTORS:
                chosen = selection.select(problem, keep, selector=name)
                fitted = selection.reconstruct(problem, Selection(chosen.channels, problem.n_channels))
                rows_held_out = held_out.take_inputs(columns_of(chosen.channels, problem.kernel))
                errors.append(rows_held_out.error(weight_to_matrix(fitted.weight)))
            rows.append((layer.name, f"{keep}/{problem.n_channels}", *errors))
        return rows

    def variant(self, items, aware, metric, refined):
        """Mean held-out error of the layers, divergence and agreement of the output."""
        view = self.view()
        problems = ProblemGatherer(self.frozen, view, metrics=self.survey.metrics if metric else None)
        errors, settings = [], FitSettings(activation_aware=aware, refined=refined)
        for layer in (layer for layer in view.layers if layer.fitted):
            problem, held_out = problems.problem(layer)
            solution, report = solve_layer(problem, items[layer.name], settings, held_out=held_out)
            apply_solution(view.module, view, solution)
            if items[layer.name].treated:
                errors.append(list(report["errors"].values())[-1]["held_out"])
        close = fidelity.compare(
            self.original, view.module, self.frozen, problems.n_fit, 100, "cpu", frozen_outputs(self.frozen)
        )
        return sum(errors) / len(errors), close["kl"], close["agreement"]

    def variants(self, step, speedup):
        """Rows (fit, metric, refinement, error, divergence, agreement) of one step."""
        view = self.view()
        usable = objective.for_steps(objective.geometric_means(self.survey.own, self.survey.output), view, (step,))
        items = Allocator(view, usable, models.MacsCost(view, self.original_cost.per_layer)).joint(speedup)
        for refined, metric, aware in itertools.product((False, True), repeat=3):
            if step == "spatial" and aware and not refined:
                continue  # the split itself has no activation-aware form
            words = (
                "activation-aware" if aware else "linear",
                "output" if metric else "plain",
                "yes" if refined else "no",
            )
            yield (*words, *self.variant(items, aware, metric, refined))


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--speedup", type=float, default=4.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    study = Study(options.run)
    head = ("layer", "kept", *CHANNEL_SELECTORS)
    print(markdown(head, [dict(zip(head, row)) for row in study.selectors()]))
    for step in ("spatial", "channel"):
        print(f"\n{step} alone at {options.speedup:g}x", flush=True)
        head = ("fit", "metric", "refined", "mean layer error", "output divergence", "agreement")
        print(markdown(head, [dict(zip(head, row)) for row in study.variants(step, options.speedup)]), flush=True)


if __name__ == "__main__":
    main()
