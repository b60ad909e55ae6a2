"""One layer, all its steps: from a problem and its planned sizes to what the layer becomes."""

from dataclasses import replace

import torch

from decomp.problem.factors import FactoredConv, LayerSolution, Selection
from decomp.problem.layer_problem import columns_of, weight_to_matrix
from decomp.solvers import channel, refine, selection, spatial

SELECTORS = ("best", *selection.SELECTORS)


def choose(problem, keep, selector="best", seed=0):
    """Choose the input channels of a layer.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
    keep : int
    selector : str
        One of :func:`decomp.solvers.selection.select`, or 'best': the lasso and backward elimination both, and of
        the two
        the one whose least-squares fit on the rows leaves the smaller error.
    seed : int

    Returns
    -------
    decomp.problem.factors.Selection
    """
    if selector != "best":
        return selection.select(problem, keep, selector=selector, seed=seed)
    candidates = [selection.select(problem, keep, selector=name) for name in ("backward", "lasso")]
    errors = [selection.reconstruct(problem, candidate).report["error"] for candidate in candidates]
    best = candidates[errors.index(min(errors))]
    report = {"error_backward": errors[0], "error_lasso": errors[1], **best.report}
    report["selector"] = ("backward", "lasso")[errors.index(min(errors))]
    return replace(best, report=report)


def solve_layer(problem, item, *, held_out=None, selector="best", activation_aware=True, refined=True, seed=0):
    """Prune the input, split, decompose, refine: the steps of one layer in order, all on the same rows.

    The channels it reads are chosen first, and its weights fitted to the rows on those that stay; the spatial split
    then factors the fitted weights, and the channel decomposition its responses. At last all factors are refined
    together. With an output metric in the problem, every step counts errors as the network's output feels them.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
        Over all input channels, from the network as compressed so far.
    item : decomp.allocation.plan.LayerPlan
    held_out : decomp.problem.moments.Moments, optional
        Rows that no fit sees, for the report.
    selector : str
        How input channels are chosen, see :func:`choose`.
    activation_aware : bool
        Fit the channel decomposition and the refinement behind the activation, where that is known.
    refined : bool
        Refine a chain of factors jointly; a layer that was only narrowed is fitted anew behind its activation.
    seed : int
        For the random selector.

    Returns
    -------
    solution : decomp.problem.factors.LayerSolution
    report : dict
        Relative squared error of the responses after each step, on the fitted and on the held-out rows, and on the
        fitted ones in the output metric (``output_error``).
    """
    report = {"layer": problem.name, "activation": problem.activation, "rows": problem.moments.n_rows}
    errors = report["errors"] = {}
    _note(errors, "before", problem.weight, problem, held_out)
    chosen = everything = Selection(torch.arange(problem.n_channels), problem.n_channels)
    if item.keep is not None:
        chosen = choose(problem, item.keep, selector, seed)
        report["selection"] = chosen.report
    fitted = selection.reconstruct(problem, chosen)
    report["least_squares"] = fitted.report
    problem = replace(problem.narrowed(chosen), weight=fitted.weight, bias=fitted.bias)
    if held_out is not None:
        held_out = held_out.take_inputs(columns_of(chosen.channels, problem.kernel))
    _note(errors, "refit" if chosen is everything else "prune", problem.weight, problem, held_out)
    factored = FactoredConv.dense(problem.weight, problem.bias, problem.geometry)
    if item.spatial_rank is not None:
        factored = spatial.split(problem, item.spatial_rank)
        report["spatial"] = factored.report
        _note(errors, "spatial", factored.compose()[0], problem, held_out)
    if item.channel_rank is not None:
        base = factored if item.spatial_rank is not None else None
        factored = channel.decompose(problem, item.channel_rank, base=base, activation_aware=activation_aware)
        report["channel"] = factored.report
        _note(errors, "channel", factored.compose()[0], problem, held_out)
    if refined and (len(factored.factors) > 1 or chosen is not everything):
        if activation_aware and problem.rows is not None and problem.activation in ("relu", "relu6"):
            factored = refine.refine_responses(problem, factored)
        else:
            factored = refine.refine(problem, factored)
        report["refine"] = {key: value for key, value in factored.report.items() if key.startswith("refine")}
        _note(errors, "refine", factored.compose()[0], problem, held_out)
    return LayerSolution(problem.name, None if chosen is everything else chosen, factored), report


def _note(errors, step, weight, problem, held_out):
    """Relative errors of the responses; with an output metric, also the error in that metric."""
    matrix = weight_to_matrix(weight).to(problem.moments.K.device)
    errors[step] = {"fitted": problem.moments.error(matrix)}
    if held_out is not None and held_out.n_rows:
        errors[step]["held_out"] = held_out.error(matrix)
    if problem.metric is not None:
        errors[step]["output_error"] = problem.error(weight)
