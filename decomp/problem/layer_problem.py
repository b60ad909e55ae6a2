"""The fitting problem of one layer: its weights, moments and rows of its inputs and responses, the activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Geometry, Selection
from decomp.problem.finite import count_not_finite
from decomp.problem.holders import ALONE, Holders
from decomp.problem.moments import Moments

# Inputs X (m, c, kh, kw) and responses Y (m, n) of some rows.
RowBatch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """A convolution to be approximated on rows of its inputs and original responses.

    Parameters
    ----------
    name : str
        For messages.
    weight : Tensor of shape (n, c, kh, kw)
        A linear layer is a convolution whose kernel is the whole map.
    bias : Tensor of shape (n,) or None
    geometry : Geometry
    moments : Moments
        Of X (N, c·kh·kw), in the order of ``weight.reshape(n, -1)``, taken from the network as compressed so
        far; and Y (N, n), the responses of the original network before the activation, bias included.
    activation : str
        Applied to the responses: 'identity', 'relu', 'relu6', or another name (fitted linearly).
    rows : callable returning an iterator of (X (m, c, kh, kw), Y (m, n)), optional
        The rows, from the start at each call; only the activation-aware fit needs them. Of several holders each
        gives its share.
    metric : Tensor of shape (n, n), optional
        Output metric F, symmetric positive semi-definite: an error e costs eᵀFe. None is the identity.
    holders : Holders
        Of the rows; the moments are those of all rows.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry
    moments: Moments
    activation: str = "identity"
    rows: Callable[[], Iterator[RowBatch]] | None = None
    metric: Tensor | None = None
    holders: Holders = ALONE

    def __post_init__(self) -> None:
        n, p = self.weight.shape[0], self.weight[0].numel()
        if self.moments.C.shape != (p, n):
            raise DecompError(
                self.name, f"moments must be of {p} inputs and {n} responses", got=tuple(self.moments.C.shape)
            )
        if self.metric is not None and self.metric.shape != (n, n):
            raise DecompError(self.name, f"the output metric must be {n} x {n}", got=tuple(self.metric.shape))

    @property
    def n_channels(self) -> int:
        """Input channels c."""
        return self.weight.shape[1]

    @property
    def n_filters(self) -> int:
        """Output channels n."""
        return self.weight.shape[0]

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel size (kh, kw)."""
        return self.weight.shape[2], self.weight.shape[3]

    def row_batches(self) -> Iterator[RowBatch]:
        """All rows in batches (X (m, c, kh, kw), Y (m, n)); `DecompError` where the problem has no ``rows``."""
        if self.rows is None:
            raise DecompError(self.name, "an activation-aware fit needs the rows", got="moments only")
        return self.rows()

    def checked(self) -> LayerProblem:
        """This problem, after a check that all of its entries are finite.

        Raises
        ------
        NumericalError
            NaN or Inf in the moments, the weights or the metric; or no rows at all.
        """
        named = {"the weights": self.weight, "the bias": self.bias, "the output metric": self.metric}
        for part, tensor in named.items():
            if tensor is not None:
                require_finite(tensor, self.name, part)
        self.moments.check(self.name)
        return self

    def matrix(self) -> Tensor:
        """The weights as coefficients of a regression: (c·kh·kw, n), float64, on the device of the moments."""
        return weight_to_matrix(self.weight).to(self.moments.C.device)

    def matrix_by_columns(self) -> Tensor:
        """The weights as A[(c, y), f, x]: (c·kh, n, kw), float64, on the device of the moments."""
        (n, c), (kh, kw) = self.weight.shape[:2], self.kernel
        weight = self.weight.detach().to(self.moments.C.device, torch.float64)
        return weight.permute(1, 2, 0, 3).reshape(c * kh, n, kw)

    def float64_metric(self) -> Tensor | None:
        """The output metric in float64 on the device of the moments, or None."""
        return None if self.metric is None else self.metric.to(self.moments.C.device, torch.float64)

    def narrowed(self, channels: Selection | Tensor) -> LayerProblem:
        """The same problem on some of the input channels: weights, moments and rows restricted.

        Parameters
        ----------
        channels : Selection, or Tensor of int64
            Channels that stay, in the order wanted.
        """
        index = channels.channels if isinstance(channels, Selection) else torch.as_tensor(channels, dtype=torch.int64)
        weight = self.weight[:, index.to(self.weight.device)]
        moments = self.moments.take_inputs(columns_of(index, self.kernel))
        rows = self.rows
        if rows is None:
            return replace(self, weight=weight, moments=moments)

        def narrowed_rows() -> Iterator[RowBatch]:
            for inputs, responses in rows():
                yield inputs[:, index.to(inputs.device)], responses

        return replace(self, weight=weight, moments=moments, rows=narrowed_rows)

    def error(self, weight: Tensor, *, moments: Moments | None = None) -> float:
        """Relative squared error of a dense kernel (n, c, kh, kw) in this problem's metric, best bias included."""
        moments = self.moments if moments is None else moments
        return moments.error(weight_to_matrix(weight).to(moments.C.device), metric=self.metric)


def require_finite(tensor: Tensor, name: str, part: str) -> None:
    """Raise `NumericalError` naming ``part`` of layer ``name`` if an entry is NaN or Inf."""
    bad = count_not_finite(tensor)
    if bad:
        raise NumericalError(
            name,
            f"{part} must be finite",
            got=f"{bad} of {tensor.numel()} entries NaN or Inf",
            fix="check the weights and images",
        )


def weight_to_matrix(weight: Tensor) -> Tensor:
    """(n, c, kh, kw) → (c·kh·kw, n), float64."""
    return weight.detach().reshape(weight.shape[0], -1).to(torch.float64).T


def matrix_to_weight(matrix: Tensor, like: Tensor, kernel: tuple[int, int]) -> Tensor:
    """(c·kh·kw, n) → contiguous (n, c, kh, kw), of the type and device of ``like``."""
    n = matrix.shape[1]
    return matrix.T.reshape(n, -1, *kernel).to(like.device, like.dtype).contiguous()


def columns_of(channels: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Columns of X (order: channel, y, x) that belong to the given channels, in their order."""
    area = kernel[0] * kernel[1]
    return (channels[:, None] * area + torch.arange(area, device=channels.device)).reshape(-1)
