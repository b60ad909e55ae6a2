"""Channel selection, and least-squares reconstruction of the weights on the selected channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError, check_choice
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import LayerProblem, matrix_to_weight
from decomp.solvers import lasso
from decomp.solvers.elimination import eliminate
from decomp.solvers.linalg import EVIDENCE, Ridge, least_squares
from decomp.solvers.selectors import CHANNEL_SELECTORS


def select(problem: LayerProblem, keep: int, selector: str = "lasso", *, seed: int = 0) -> Selection:
    """Choose exactly ``keep`` input channels.

    Parameters
    ----------
    problem : LayerProblem
        Its output metric counts in 'lasso', 'backward' and 'max-response'.
    keep : int
        In 1..c.
    selector : str
        'lasso'
            The lasso path, see `lasso.select`.
        'backward'
            Backward elimination of the least-squares fit, see `eliminate`.
        'l1'
            Largest sum of absolute weights on the channel.
        'max-response'
            Largest variance of the channel's contribution to the responses.
        'first-k'
            The first ones.
        'random'
            Drawn with ``seed``.
    seed : int
        For 'random' only.

    Returns
    -------
    Selection
        Ties go to the lower channel.

    Raises
    ------
    DecompError
        Unknown selector, or count out of range.
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    check_choice("selector", selector, CHANNEL_SELECTORS)
    problem.checked()
    c = problem.n_channels
    if not 1 <= keep <= c:
        raise DecompError(problem.name, f"the number of channels kept must be in 1..{c} (c)", got=keep)
    if selector == "lasso":
        return lasso.select(problem, keep)
    if selector == "backward":
        removed = eliminate(problem, stop_at=keep).order
        chosen = sorted(set(range(c)) - set(removed))
    else:
        chosen = sorted(retention_order(problem, selector, seed=seed)[:keep])
    return Selection(torch.tensor(chosen, dtype=torch.int64), c, {"selector": selector})


def select_by(problem: LayerProblem, keep: int, scores: Tensor, name: str) -> Selection:
    """Choose the ``keep`` input channels with the highest scores.

    Parameters
    ----------
    problem : LayerProblem
    keep : int
        In 1..c.
    scores : Tensor of shape (c,)
    name : str
        Of the scores, for the report.

    Raises
    ------
    DecompError
        Count out of range.
    """
    c = problem.n_channels
    if not 1 <= keep <= c:
        raise DecompError(problem.name, f"the number of channels kept must be in 1..{c} (c)", got=keep)
    chosen = sorted(_descending(scores)[:keep])
    return Selection(torch.tensor(chosen, dtype=torch.int64), c, {"selector": name})


def retention_order(problem: LayerProblem, selector: str, *, seed: int = 0) -> list[int]:
    """All channels, the one to keep longest first.

    The first k are those that `select` keeps, except for 'lasso': a channel may leave its path again, and the
    order here is that of first entry.
    """
    check_choice("selector", selector, CHANNEL_SELECTORS)
    c = problem.n_channels
    if selector == "lasso":
        return lasso.entry_order(problem)
    if selector == "backward":
        removed = eliminate(problem, stop_at=1).order
        return (sorted(set(range(c)) - set(removed)) + removed[::-1])[:c]
    if selector == "l1":
        return _descending(problem.weight.detach().to(torch.float64).abs().sum(dim=(0, 2, 3)))
    if selector == "max-response":
        return _descending(lasso.channel_gram(problem)[0].diagonal())
    if selector == "first-k":
        return list(range(c))
    assert selector == "random", selector  # a name in CHANNEL_SELECTORS without a branch here
    return torch.randperm(c, generator=torch.Generator().manual_seed(seed)).tolist()


def _descending(scores: Tensor) -> list[int]:
    return np.argsort(-scores.cpu().numpy(), kind="stable").tolist()


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A layer's weights on the selected channels; unpacks as ``weight, bias``.

    Parameters
    ----------
    weight : Tensor of shape (n, n_kept, kh, kw)
    bias : Tensor of shape (n,)
    report : dict
        ``error``: relative on the moments, in the problem's metric; ``error_before``: with the old weights on
        the kept channels; ``ridge``, ``ridge_raised``.
    """

    weight: Tensor
    bias: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.weight, self.bias))


def reconstruct(problem: LayerProblem, selection: Selection, *, ridge: Ridge = EVIDENCE) -> Reconstruction:
    """Least squares of the layer's weights and bias on the kept channels.

    The ridge pulls towards the old weights on these channels, so weights that the rows do not determine (of a dead
    channel) stay as they were, and keeping all channels of an unchanged network returns the layer itself. The output
    metric does not change the solution.

    Parameters
    ----------
    problem : LayerProblem
        On all channels.
    selection : Selection
    ridge : float or 'evidence'
        See `linalg.least_squares`.

    Returns
    -------
    Reconstruction

    Raises
    ------
    NumericalError
        NaN or Inf in the problem, or no factorisation.
    """
    problem.checked()
    if selection.n_total != problem.n_channels:
        raise DecompError(
            problem.name, f"the selection must be of {problem.n_channels} channels", got=selection.n_total
        )
    narrowed = problem.narrowed(selection)
    prior = narrowed.matrix()
    fit = least_squares(narrowed.moments, ridge=ridge, prior=prior)
    report = {
        "step": "prune",
        "keep": len(selection),
        "error_before": narrowed.moments.error(prior, metric=problem.metric),
        "error": narrowed.moments.error(fit.weight, metric=problem.metric),
        **fit.report,
    }
    weight = matrix_to_weight(fit.weight, problem.weight, problem.kernel)
    return Reconstruction(weight, fit.bias.to(weight), report)
