"""Joint channel selection for several layers that read the same channels: one backward elimination over all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decomp.errors import DecompError
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import LayerProblem
from decomp.solvers.elimination import EliminationRegression
from decomp.solvers.linalg import EVIDENCE, Ridge


def grouped(problem: LayerProblem, columns: Tensor) -> LayerProblem:
    """The same problem with channels that are kept or removed together merged into one.

    Parameters
    ----------
    problem : LayerProblem
    columns : Tensor of int64, shape (width, r)
        Input channels that belong together, a row each; all of the problem's channels.

    Returns
    -------
    LayerProblem
        Of ``width`` channels whose kernels are r times as high.
    """
    width, r = columns.shape
    if r == 1 and torch.equal(columns.flatten(), torch.arange(problem.n_channels)):
        return problem
    ordered = problem.narrowed(columns.flatten())
    (kh, kw), n = problem.kernel, problem.n_filters
    return LayerProblem(
        problem.name, ordered.weight.reshape(n, width, r * kh, kw), problem.bias, problem.geometry, ordered.moments,
        problem.activation, metric=problem.metric,
    )  # fmt: skip


def select_jointly(
    problems: list[LayerProblem], members: list[Tensor], keep: int, *, ridge: Ridge = EVIDENCE
) -> Selection:
    r"""Choose the channels of one space for all of its readers.

    Each step removes the channel i of least summed cost

    .. math:: \sum_j tr\,F_j B_{ji}^T (P_{j,ii})^{-1} B_{ji} - \lambda_j\,tr\,F_j W_{ji}^T W_{ji}

    over the readers j, as `elimination.eliminate` does for one. With output metrics in all problems the costs are
    in the units of the network's output; otherwise each counts relative to its reader's responses.

    Parameters
    ----------
    problems : list of LayerProblem
        One for each reader.
    members : list of Tensor of int64, shape (width,)
        ``members[j][i]`` is the channel of reader j that is the space's channel i. A reader may have further channels.
    keep : int
        In 1..width.
    ridge : float or 'evidence'

    Returns
    -------
    Selection
        Of the space's channels.

    Raises
    ------
    DecompError
        No readers, or a count out of range.
    NumericalError
        NaN or Inf in a problem, or no factorisation.
    """
    width = len(members[0]) if members else 0
    if not 1 <= keep <= width:
        raise DecompError("joint selection", f"the number of channels kept must be in 1..{width}", got=keep)
    regressions = [EliminationRegression(problem.checked(), ridge) for problem in problems]
    comparable = all(problem.metric is not None for problem in problems)
    scales = [1.0 if comparable or not one.total > 0 else 1 / one.total for one in regressions]
    space_of = [{int(channel): i for i, channel in enumerate(own)} for own in members]
    alive = np.ones(width, dtype=bool)
    while alive.sum() > keep:
        # Started anew each time half of the channels are removed.
        target = max(keep, int(alive.sum()) // 2)
        stages = [
            one.on(torch.tensor([c for c in range(one.problem.n_channels) if c not in own or alive[own[c]]]))
            for one, own in zip(regressions, space_of)
        ]
        while alive.sum() > target:
            costs_and_factors = [stage.costs() for stage in stages]
            total = np.where(alive, 0.0, np.inf)
            for stage, scale, own, (costs, _) in zip(stages, scales, space_of, costs_and_factors):
                for number, cost in zip(stage.numbers, costs):
                    if number in own and alive[own[number]]:
                        total[own[number]] += scale * cost
            removed = int(np.argmin(total))
            alive[removed] = False
            for stage, channels, (_, factors) in zip(stages, members, costs_and_factors):
                index = stage.numbers.index(int(channels[removed]))
                stage.remove(index, factors[index])
    report = {"selector": "joint", "readers": [problem.name for problem in problems]}
    return Selection(torch.from_numpy(np.flatnonzero(alive)), width, report)
