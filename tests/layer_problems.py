"""Small layer problems with known rows, for the tests of the solvers."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from decomp.problem.factors import Geometry
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import Moments


@dataclass
class Rows:
    """A layer problem and the rows it was made of: X (N, c, kh, kw), Y (N, n)."""

    problem: LayerProblem
    X: torch.Tensor
    Y: torch.Tensor

    @property
    def flat(self):
        return self.X.flatten(1)

    def fitted(self, factored):
        """Responses of a chain of factors (or of weight and bias) on the rows."""
        weight, bias = factored if isinstance(factored, tuple) else factored.compose()
        return self.flat @ weight.flatten(1).T + bias


def make(
    n_rows=300, n=6, c=4, kernel=(3, 3), *, noise=0.2, activation="relu", seed=0, dtype=torch.float64, geometry=None,
    change=None, with_rows=True,
):  # fmt: skip
    """Correlated, non-negative inputs off zero mean; responses of a random layer on inputs without the noise.

    ``change(X, Y, weight)`` may alter the tensors in place before the moments are taken.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = c * kernel[0] * kernel[1]
    mixing = normal(p, p) / p**0.5 * torch.logspace(0.5, -1.5, p, dtype=torch.float64)[:, None]
    X = (normal(n_rows, p) @ mixing + 0.3).clamp_min(0).reshape(n_rows, c, *kernel)
    weight = normal(n, c, *kernel) / p**0.5
    bias = normal(n) * 0.3
    Y = X.flatten(1) @ weight.flatten(1).T + bias
    X = X + noise * normal(*X.shape) * X.std()
    if change is not None:
        change(X, Y, weight)
    X, Y, weight, bias = (tensor.to(dtype) for tensor in (X, Y, weight, bias))

    def rows():
        return zip(X.split(97), Y.split(97))

    problem = LayerProblem(
        "conv", weight, bias, geometry or Geometry(), Moments.of_rows(X, Y), activation, rows if with_rows else None
    )
    return Rows(problem, X, Y)


def relative(wanted, got, metric=None):
    """Relative squared error with the best constant added, the slow way."""
    difference, wanted = wanted - got, wanted - wanted.mean(0)
    difference = difference - difference.mean(0)
    F = torch.eye(wanted.shape[1], dtype=wanted.dtype) if metric is None else metric
    return float(((difference @ F) * difference).sum() / ((wanted @ F) * wanted).sum())


def output_metric(n, seed=0, floor=0.1):
    """A random positive definite output metric."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, max(1, n // 2), generator=generator, dtype=torch.float64)
    F = A @ A.T
    return F + floor * F.diagonal().mean() * torch.eye(n, dtype=torch.float64)


sizes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 7),
        "c": st.integers(1, 5),
        "kernel": st.tuples(st.integers(2, 4), st.integers(2, 4)),
        "seed": st.integers(0, 1000),
    }
)
