"""Dense reference for the steps of one layer with scikit-learn and numpy: all rows in memory, in float64.

The published method on all rows: the lasso on the dense (N·n, c) design, its penalty bisected to the count; least
squares on the kept channels; the plain SVD of the kernel with its second factor fitted; 25 + 25 sweeps of
half-quadratic splitting for the channel decomposition.
"""

import numpy as np
import torch
from sklearn.linear_model import Lasso

from decomp.problem.factors import ConvFactor, FactoredConv, Geometry


def select(X, Y, weight, keep, *, bisections=60):
    """Channels (of X (N, c, 3, 3)) that the lasso keeps where its penalty gives ``keep`` of them, or nearly."""
    n_rows, c, n = len(X), X.shape[1], Y.shape[1]
    design = np.empty((n_rows * n, c))
    for i in range(c):
        contribution = X[:, i].reshape(n_rows, 9) @ weight[:, i].reshape(n, 9).T
        design[:, i] = (contribution - contribution.mean(0)).reshape(-1)
    target = (Y - Y.mean(0)).reshape(-1)
    low, high = 0.0, np.abs(design.T @ target).max() / len(target)
    for _ in range(bisections):
        alpha = (low + high) / 2
        kept = np.flatnonzero(Lasso(alpha=alpha, fit_intercept=False, precompute=True).fit(design, target).coef_)
        if len(kept) == keep:
            break
        low, high = (low, alpha) if len(kept) < keep else (alpha, high)
    return kept


def least_squares(features, targets):
    """Coefficients and intercept."""
    means = features.mean(0), targets.mean(0)
    B = np.linalg.lstsq(features - means[0], targets - means[1], rcond=None)[0]
    return B, means[1] - means[0] @ B


def _features(X, V):
    return np.einsum("ncyx,cyr->nrx", X, V.reshape(X.shape[1], 3, -1)).reshape(len(X), -1)


def split(X, Y, coefficients, rank):
    """V (3c, rank), H (3·rank, n) fitted to the rows, and the responses they give."""
    c, n = X.shape[1], Y.shape[1]
    A = coefficients.T.reshape(n, c, 3, 3).transpose(1, 2, 0, 3).reshape(c * 3, n * 3)
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    V = U[:, :rank] * np.sqrt(s[:rank])
    features = _features(X, V)
    H, b = least_squares(features, Y)
    return V, H, features @ H + b


def decompose(responses, Y, rank, *, schedule=((0.01, 25), (1.0, 25))):
    """A map of low rank (encoder, decoder) on the centred responses, and the mean to add."""
    centred, wanted = responses - responses.mean(0), np.maximum(Y, 0)
    u = Y
    for penalty in [penalty for penalty, times in schedule for _ in range(times)]:
        mean = u.mean(0)
        solution = np.linalg.lstsq(centred, u - mean, rcond=None)[0]
        Vt = np.linalg.svd(centred @ solution, full_matrices=False)[2][:rank]
        z = centred @ (solution @ Vt.T) @ Vt + mean
        off, on = np.minimum(z, 0), np.maximum((penalty * z + wanted) / (1 + penalty), 0)
        off_cost, on_cost = (wanted**2 + penalty * (off - z) ** 2, (on - wanted) ** 2 + penalty * (on - z) ** 2)
        u = np.where(on_cost < off_cost, on, off)
    return solution @ Vt.T, Vt, mean


def assemble(X, V, H, encoder, decoder, mean):
    """The factors as a chain; the bias takes back the mean of the responses the map was centred on."""
    c, rank = X.shape[1], V.shape[1]
    bias = mean - _features(X.mean(0, keepdims=True), V)[0] @ H @ encoder @ decoder
    horizontal = (H @ encoder).reshape(rank, 3, -1).transpose(2, 0, 1)[:, :, None]
    weights = (V.T.reshape(rank, c, 3, 1), horizontal, decoder.T[:, :, None, None])
    biases = (None, None, torch.tensor(bias).float())
    factors = tuple(ConvFactor(torch.tensor(w).float(), b, Geometry()) for w, b in zip(weights, biases))
    return FactoredConv(factors, ("vertical", "horizontal", "pointwise"))
