"""Trial of a plan: its layers fitted, and the change of the outputs measured on images that no fit has seen."""

from __future__ import annotations

from torch import Tensor

from decomp.allocation.choices import LayerPlans
from decomp.solvers.solve_layer import FitSettings
from decomp.time_spent import part

from ..console.options import DecomposeOptions
from .fit_layer import exchange_layer, fit_layer
from .judge import Judge
from .session import SurveyedRun


@part("trials of plans")
def changes_of_plan(surveyed: SurveyedRun, plans: LayerPlans, options: DecomposeOptions, judge: Judge) -> Tensor:
    """Change of the outputs for each held-out image when the layers have planned sizes.

    The layers are fitted as for the result, but channels are chosen by backward elimination alone. Their refinement is
    part of it: it helps a plan with many small factors more than one with few.

    Parameters
    ----------
    surveyed : SurveyedRun
        Not changed.
    plans : dict of str to LayerPlan
    options : DecomposeOptions
    judge : Judge

    Returns
    -------
    torch.Tensor, shape (N,), float64
    """
    graph = surveyed.graph.copied()
    gatherer = surveyed.gatherer(options, graph)
    settings = FitSettings("backward", options.activation_aware, options.refine)
    for layer in graph.layers:
        if layer.recorded:
            solution, _ = fit_layer(gatherer, layer, plans[layer.name], settings, reported=False)
            exchange_layer(gatherer, solution)
    surveyed.opened.memory.clear()
    return judge.changes_of_first(graph.module)
