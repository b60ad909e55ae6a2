r"""How much an error in one layer matters at the network's output.

A relative error of one layer's responses says little about the network: the same 5 % can vanish in the next pooling
or turn a decision. So the error curves of a layer are rescaled by measurement: at a few sizes the layer alone is
replaced by its approximation, and the change of the network's output is put in the place of the layer's own error.
"""

import numpy as np
import torch

from decomp.problem.factors import Selection
from decomp.solvers import channel, selection, spatial

# Relative errors of the layer's responses at which the output is looked at.
LEVELS = (0.02, 0.08, 0.3)


def output_curve(curve, approximate, measure):
    """Put the change of the output in the place of a layer's own relative error.

    Parameters
    ----------
    curve : numpy.ndarray
        Relative error of the layer for every size; index 0 unused.
    approximate : callable
        ``approximate(size)`` gives a dense kernel (n, c, kh, kw) and bias.
    measure : callable
        ``measure(weight, bias)`` gives the mean change of the output with the layer replaced.

    Returns
    -------
    numpy.ndarray
        Of the same shape, not increasing with size.

    Notes
    -----
    Between the measured sizes the change of the output is interpolated linearly in the layer's error; above the
    largest it goes on in proportion to it.
    """
    sizes = sorted({_size_at(curve, level) for level in LEVELS}, reverse=True)
    points = {0.0: 0.0}
    for size in sizes:
        if curve[size] > 1e-9:
            points[float(curve[size])] = max(float(measure(*approximate(size))), 0.0)
    errors = np.array(sorted(points))
    changes = np.maximum.accumulate(np.array([points[e] for e in errors]))
    if len(errors) == 1:
        return curve.copy()
    result = np.interp(curve, errors, changes)
    beyond = curve > errors[-1]
    # Never flat: a step whose effect is too small to measure still costs in proportion to the layer's error.
    result[beyond] = changes[-1] * curve[beyond] / errors[-1]
    return result + 1e-9 * curve


def _size_at(curve, level):
    """The smallest size whose error is at most ``level``."""
    return int(np.argmax(curve[1:] <= level)) + 1 if curve[-1] <= level else len(curve) - 1


def approximations(problem, order=None):
    """For each step, the layer as a dense kernel at a given size.

    Parameters
    ----------
    problem : decomp.problem.layer_problem.LayerProblem
    order : sequence of int, optional
        For the prune step: its channels, the one to keep longest first.

    Returns
    -------
    dict of str to callable
        ``size -> (weight, bias)``.
    """

    def split(size):
        return spatial.split(problem, size).compose()

    def decompose(size):
        return channel.decompose(problem, size, activation_aware=False).compose()

    def prune(size):
        keep = torch.tensor(sorted(order[:size]))
        weight, bias = selection.reconstruct(problem, Selection(keep, problem.n_channels))
        full = torch.zeros_like(problem.weight)
        full[:, keep.to(full.device)] = weight
        return full, bias

    return {"spatial": split, "channel": decompose, "prune": prune}
