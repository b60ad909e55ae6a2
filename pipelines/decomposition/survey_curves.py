"""Curves of the layers of a survey, those of each layer computed by one process, and changes of the output by all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from decomp.allocation.plan import STEPS
from decomp.graph.layer import Layer
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import Moments
from decomp.solvers.elimination import eliminate
from decomp.solvers.error_curves import channel_curve, selection_curve, spatial_curve
from decomp.solvers.linalg import EVIDENCE, LeastSquares, Ridge, least_squares
from decomp.solvers.output_curves import (
    Approximation,
    approximations,
    in_proportion,
    measured_sizes,
)
from decomp.solvers.spatial import closed_form, max_rank, require_splittable
from decomp.time_spent import part

from ..distributed.process_group import count, gathered, handed, number
from ..measure.parallel import in_parallel
from .gather import ProblemGatherer

# Error of every size of every step of a layer, by step; index = size.
Curves = dict[str, np.ndarray]
# The step of a layer whose change of the output is measured is the first of these that it has: its approximation takes
# the least work.
MEASURED_STEP = ("channel", "spatial", "prune")
# Layer, step and size.
_Key = tuple[str, str, int]
# The mean change of the network's output with other weights and bias in a layer.
Measure = Callable[[Tensor, Tensor | None], float]


@dataclass(frozen=True)
class KnownCurves:
    """Own curves of a layer, the process that computed them, and there its approximation of a size of a step."""

    curves: Curves
    owner: int
    approximate: Callable[[str, int], Approximation] | None = None


def known_curves(gatherer: ProblemGatherer, together: Sequence[Sequence[Layer]]) -> dict[str, KnownCurves]:
    """Own curves of some layers, those of the first of `together` computed by the first process, and so on."""
    problems: dict[str, tuple[list[str], LayerProblem, Moments]] = {}
    for owner, batch in enumerate(together):
        for layer in batch:
            problem = gatherer.problem_for(layer, owner)
            if problem is not None:
                problems[layer.name] = steps_of(layer), *problem
    computed = dict(zip(problems, in_parallel(_own_curves, list(problems.values()))))
    known: dict[str, KnownCurves] = {}
    for owner, of_one in enumerate(gathered({name: curves for name, (curves, _) in computed.items()})):
        known |= {name: KnownCurves(curves, owner) for name, curves in of_one.items()}
    for name, (_, shared) in computed.items():
        known[name] = replace(known[name], approximate=_approximate(problems[name][1], shared))
    return known


def changes_of_output(
    measure_of: Callable[[Layer], Measure], layers: Sequence[Layer], known: Mapping[str, KnownCurves]
) -> dict[tuple[str, str], dict[int, float]]:
    """Change of the network's output with one approximation of each layer, each measured by one process.

    Those by the other steps of a layer are in proportion to its error. Measurements at three sizes of each step gave
    results that are not nearer to the original, see docs/few-images.md.
    """
    measured = {layer.name: _measured_step(known[layer.name].curves) for layer in layers}
    wanted = [
        (name, step, size)
        for name, step in measured.items()
        if step is not None
        for size in measured_sizes(known[name].curves[step])
    ]
    made: dict[_Key, Approximation] = {}
    for place, (name, step, size) in enumerate(wanted):
        approximate = known[name].approximate
        if approximate is not None and place % count() != number():
            made[name, step, size] = _on_cpu(approximate(step, size))
    own: dict[_Key, Approximation | None] = {}
    for place, key in enumerate(wanted):
        source, target = known[key[0]].owner, place % count()
        got = handed(made.pop(key, None), source, target)
        if target == number():
            own[key] = got  # None where it is made here, right before it is measured
    found: dict[_Key, float] = {}
    for layer in layers:
        approximate, keys = known[layer.name].approximate, [key for key in own if key[0] == layer.name]
        measure = measure_of(layer) if keys else None
        for key in keys:
            approximation = own.pop(key)
            if approximation is None:
                assert approximate is not None
                approximation = approximate(*key[1:])
            assert measure is not None
            found[key] = measure(*approximation)
    changes: dict[tuple[str, str], dict[int, float]] = {
        (layer.name, step): {} for layer in layers for step in known[layer.name].curves
    }
    for of_one in gathered(found):
        for (name, step, size), value in of_one.items():
            changes[name, step][size] = value
    for layer in layers:
        curves, one = known[layer.name].curves, measured[layer.name]
        for step in curves:
            if one is not None and step != one:
                changes[layer.name, step] = in_proportion(curves[step], curves[one], changes[layer.name, one])
    return changes


def _measured_step(curves: Curves) -> str | None:
    """The step of a layer whose change of the output is measured."""
    return next((step for step in MEASURED_STEP if step in curves), None)


def _on_cpu(approximation: Approximation) -> Approximation:
    weight, bias = approximation
    return weight.cpu(), None if bias is None else bias.cpu()


@dataclass(frozen=True)
class _Shared:
    """Parts of the fits of one layer that its curves and its approximations need: each is computed once.

    Attributes
    ----------
    order : sequence of int or None
        The input channels, the one to drop last first.
    factors : tuple of Tensor or None
        See :func:`decomp.solvers.spatial.closed_form`, at full rank.
    solution : decomp.solvers.linalg.LeastSquares or None
        The fit on all inputs.
    ridge : float or 'evidence'
        Of largest evidence for all inputs, where the elimination found it.
    """

    order: Sequence[int] | None = None
    factors: tuple[Tensor, Tensor] | None = None
    solution: LeastSquares | None = None
    ridge: Ridge = EVIDENCE


def _own_curves(steps: Sequence[str], problem: LayerProblem, held_out: Moments) -> tuple[Curves, _Shared]:
    """Own error for every size of every step of one layer; the parts of its fits."""
    curves: Curves = {}
    shared = _Shared()
    if "prune" in steps:
        with part("curves: elimination of channels"):
            removed = eliminate(problem)
            (last,) = set(range(problem.n_channels)) - set(removed.order)
            order = [last, *reversed(removed.order)]
        shared = replace(shared, order=order, ridge=removed.report["ridge"])
        with part("curves: prune"):
            # The evidence for a ridge does not depend on the order of the inputs: that of the elimination holds here.
            curves["prune"] = selection_curve(problem, held_out, order=order, ridge=shared.ridge)
    if "spatial" in steps:
        require_splittable(problem)
        with part("curves: spatial"):
            factors = closed_form(problem.checked(), max_rank(problem))
            curves["spatial"] = spatial_curve(problem, held_out, factors=factors, ridge=shared.ridge)
        shared = replace(shared, factors=factors)
    if "channel" in steps:
        with part("curves: channel"):
            solution = least_squares(problem.checked().moments, ridge=EVIDENCE, prior=problem.matrix())
            curves["channel"] = channel_curve(problem, held_out, solution=solution)
        shared = replace(shared, solution=solution)
    return curves, shared


def _approximate(problem: LayerProblem, shared: _Shared) -> Callable[[str, int], Approximation]:
    """A function of step and size that gives the layer's approximation."""
    steps = approximations(problem, shared.order, factors=shared.factors, solution=shared.solution, ridge=shared.ridge)

    def approximate(step: str, size: int) -> Approximation:
        with part("approximations"):
            return steps[step](size)

    return approximate


def steps_of(layer: Layer) -> list[str]:
    return [step for step in STEPS if step not in layer.left_alone]
