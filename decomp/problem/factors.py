"""Values returned by the solvers: chains of convolutions and selections of channels.

Everything here is tensors and plain numbers. A :class:`FactoredConv` stands for one convolution of the
original network, as the chain of cheaper ones that replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from decomp.errors import DecompError

FACTOR_NAMES = ("dense", "vertical", "horizontal", "filters", "pointwise")


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution, as ``torch.nn.Conv2d`` names them.

    A transposed convolution is one of stride 1 over its input with (stride − 1) zeros between the entries, with the
    kernel turned by 180°. All kernels of a :class:`ConvFactor` are those of that convolution, so that solvers need not
    tell the two apart.

    Parameters
    ----------
    stride, dilation : tuple of int
        (vertical, horizontal).
    padding : tuple of int, or {'same', 'valid'}
        Rows and columns added on each side, (vertical, horizontal).
    padding_mode : {'zeros', 'reflect', 'replicate', 'circular'}
    output_padding : tuple of int or None
        Of a transposed convolution, (vertical, horizontal), as ``torch.nn.ConvTranspose2d`` names it, and so are stride
        and padding then; None for a convolution.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    padding_mode: str = "zeros"
    output_padding: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise DecompError("geometry", "padding must be two numbers, 'same' or 'valid'", got=self.padding)
        if self.padding == "same" and tuple(self.stride) != (1, 1):
            raise DecompError("geometry", "padding 'same' needs stride 1", got=self.stride)
        if self.transposed and (isinstance(self.padding, str) or self.padding_mode != "zeros"):
            rule = "padding of a transposed convolution must be two numbers, of zeros"
            raise DecompError("geometry", rule, got=f"{self.padding}, {self.padding_mode}")

    @property
    def transposed(self) -> bool:
        """Whether it is that of a transposed convolution."""
        return self.output_padding is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``Geometry(**data)`` reads it, with tuples for lists."""
        return {name: value for name, value in vars(self).items() if name != "output_padding" or self.transposed}

    def vertical(self) -> Geometry:
        """The vertical part: geometry of the kh×1 factor of a spatial split."""
        padding = self.padding if isinstance(self.padding, str) else (self.padding[0], 0)
        more = None if self.output_padding is None else (self.output_padding[0], 0)
        return Geometry((self.stride[0], 1), padding, (self.dilation[0], 1), self.padding_mode, more)

    def horizontal(self) -> Geometry:
        """The horizontal part: geometry of the 1×kw factor of a spatial split."""
        padding = self.padding if isinstance(self.padding, str) else (0, self.padding[1])
        more = None if self.output_padding is None else (0, self.output_padding[1])
        return Geometry((1, self.stride[1]), padding, (1, self.dilation[1]), self.padding_mode, more)

    def pads(self, kernel: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows (before, after) and columns (before, after) that padding adds for this kernel size.

        Of a transposed convolution, what is added to its input with zeros between the entries; may be negative.
        """
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":
            rows, columns = (d * (k - 1) for d, k in zip(self.dilation, kernel))
            return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
        assert not isinstance(self.padding, str)
        if self.output_padding is not None:
            before = [d * (k - 1) - p for d, k, p in zip(self.dilation, kernel, self.padding)]
            after = [pad + more for pad, more in zip(before, self.output_padding)]
            return (before[0], after[0]), (before[1], after[1])
        return (self.padding[0], self.padding[0]), (self.padding[1], self.padding[1])

    def out_size(self, in_hw: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of ``in_hw``."""
        stride = self.stride
        if self.transposed:
            in_hw, stride = ((in_hw[0] - 1) * stride[0] + 1, (in_hw[1] - 1) * stride[1] + 1), (1, 1)
        height, width = (
            (size + sum(pad) - dilation * (k - 1) - 1) // step + 1
            for size, k, step, dilation, pad in zip(in_hw, kernel, stride, self.dilation, self.pads(kernel))
        )
        return height, width


def turned(kernel: Tensor) -> Tensor:
    """Weight (c, n, kh, kw) of a transposed convolution from the kernel (n, c, kh, kw) that computes it, or back."""
    return kernel.transpose(0, 1).flip(2, 3)


@dataclass(frozen=True, eq=False)
class ConvFactor:
    """One convolution of a chain, without groups.

    Parameters
    ----------
    weight : Tensor of shape (n, c, kh, kw)
    bias : Tensor of shape (n,) or None
    geometry : Geometry
    """

    weight: Tensor
    bias: Tensor | None = None
    geometry: Geometry = Geometry()

    def __post_init__(self) -> None:
        if self.weight.ndim != 4:
            raise DecompError("factor", "weight must have four dimensions (n, c, kh, kw)", got=tuple(self.weight.shape))
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise DecompError("factor", f"bias must have shape ({len(self.weight)},)", got=tuple(self.bias.shape))

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel size (kh, kw)."""
        return self.weight.shape[2], self.weight.shape[3]

    def macs(self, in_hw: tuple[int, int]) -> int:
        """Multiply-accumulates for one input of height and width ``in_hw``."""
        height, width = in_hw if self.geometry.transposed else self.geometry.out_size(in_hw, self.kernel)
        return self.weight.numel() * height * width

    def n_params(self) -> int:
        """Number of parameters: weights and bias."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x (batch, c, height, width)``."""
        g = self.geometry
        if g.output_padding is not None:
            assert not isinstance(g.padding, str)
            return functional.conv_transpose2d(
                x, turned(self.weight), self.bias, g.stride, g.padding, g.output_padding, 1, g.dilation
            )
        if g.padding_mode == "zeros":
            return functional.conv2d(x, self.weight, self.bias, g.stride, g.padding, g.dilation)
        (top, bottom), (left, right) = g.pads(self.kernel)
        x = functional.pad(x, (left, right, top, bottom), mode=g.padding_mode)
        return functional.conv2d(x, self.weight, self.bias, g.stride, 0, g.dilation)


@dataclass(frozen=True, eq=False)
class FactoredConv:
    """A convolution as a chain of factors, in the order in which they are applied.

    Parameters
    ----------
    factors : tuple of ConvFactor
        At most one factor has an extent above 1 in each direction, so the chain composes to a dense kernel
        of that extent.
    names : tuple of str
        One of ``dense, vertical, horizontal, filters, pointwise`` for each factor.
    report : dict
        How the factors were computed: numbers and text, JSON.
    """

    factors: tuple[ConvFactor, ...]
    names: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.names) or not self.factors:
            raise DecompError("factors", "each factor needs one name", got=f"{len(self.factors)} and {self.names}")
        unknown = [name for name in self.names if name not in FACTOR_NAMES]
        if unknown:
            raise DecompError("factors", f"names must be among {', '.join(FACTOR_NAMES)}", got=unknown[0])
        for first, second in zip(self.factors, self.factors[1:]):
            if first.weight.shape[0] != second.weight.shape[1]:
                raise DecompError(
                    "factors",
                    f"a factor that gives {first.weight.shape[0]} channels cannot feed one",
                    got=f"{second.weight.shape[1]} inputs",
                )

    @classmethod
    def dense(
        cls, weight: Tensor, bias: Tensor | None, geometry: Geometry, report: dict[str, Any] | None = None
    ) -> FactoredConv:
        """A chain of one: the convolution itself."""
        return cls((ConvFactor(weight, bias, geometry),), ("dense",), report or {})

    @property
    def ranks(self) -> tuple[int, ...]:
        """Channels between the factors."""
        return tuple(factor.weight.shape[0] for factor in self.factors[:-1])

    def compose(self) -> tuple[Tensor, Tensor | None]:
        """The dense kernel and bias that compute the same as the chain.

        Returns
        -------
        weight : Tensor of shape (n, c, kh, kw)
        bias : Tensor of shape (n,) or None

        Raises
        ------
        DecompError
            Where no dense kernel of this extent computes the same: two factors extend in one direction, or a bias
            stands in front of a factor with padding (at the border it would count only in part).
        """
        self._check_composes()
        return compose([f.weight for f in self.factors], [f.bias for f in self.factors])

    def _check_composes(self) -> None:
        for axis, word in enumerate(("vertical", "horizontal")):
            if sum(factor.kernel[axis] > 1 for factor in self.factors) > 1:
                raise DecompError("factors", f"only one factor may extend in the {word} direction", got=self.names)
        bias_before = False
        for factor in self.factors:
            if bias_before and any(sum(pad) for pad in factor.geometry.pads(factor.kernel)):
                raise DecompError("factors", "a bias cannot be carried through a factor with padding", got=self.names)
            bias_before = bias_before or factor.bias is not None

    def macs(self, in_hw: tuple[int, int]) -> int:
        """Multiply-accumulates for one input of height and width ``in_hw``."""
        total = 0
        for factor in self.factors:
            total += factor.macs(in_hw)
            in_hw = factor.geometry.out_size(in_hw, factor.kernel)
        return total

    def n_params(self) -> int:
        """Number of parameters: weights and biases of all factors."""
        return sum(factor.n_params() for factor in self.factors)

    def forward(self, x: Tensor) -> Tensor:
        """Run the chain on ``x (batch, c, height, width)``."""
        for factor in self.factors:
            x = factor.forward(x)
        return x


def compose(weights: list[Tensor], biases: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Multiply a chain of kernels, at most one of which extends in each direction.

    Parameters
    ----------
    weights : list of Tensor of shape (n_i, n_{i-1}, kh_i, kw_i)
    biases : list of Tensor of shape (n_i,) or None

    Returns
    -------
    weight : Tensor of shape (n, c, kh, kw)
    bias : Tensor of shape (n,) or None
    """
    weight, bias = weights[0], biases[0]
    for after, own in zip(weights[1:], biases[1:]):
        # One of the two kernels has extent 1 in each direction, so the full convolution of the two is an
        # outer product in space.
        n, c = after.shape[0], weight.shape[1]
        height, width = after.shape[2] * weight.shape[2], after.shape[3] * weight.shape[3]
        weight = torch.einsum("nrab,rcyx->ncaybx", after, weight).reshape(n, c, height, width)
        if bias is not None:
            carried = after.sum(dim=(2, 3)) @ bias
            bias = carried if own is None else carried + own
        else:
            bias = own
    return weight, bias


@dataclass(frozen=True, eq=False)
class Selection:
    """Input channels that are kept.

    Parameters
    ----------
    channels : Tensor of shape (n_kept,), int64
        Sorted ascending, without repetition.
    n_total : int
        Number of channels before the selection.
    report : dict
        How they were chosen.
    """

    channels: Tensor
    n_total: int
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = self.channels
        if channels.dtype != torch.int64 or channels.ndim != 1 or len(channels) == 0:
            got = f"{channels.dtype} {tuple(channels.shape)}"
            raise DecompError("selection", "channels must be a non-empty vector of int64", got=got)
        if len(channels) > 1 and not bool((channels[1:] > channels[:-1]).all()):
            raise DecompError("selection", "channels must ascend without repetition", got=channels.tolist()[:8])
        if int(channels[0]) < 0 or int(channels[-1]) >= self.n_total:
            raise DecompError("selection", f"channels must be in 0..{self.n_total - 1}", got=channels.tolist()[:8])

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True)
class LayerSolution:
    """The replacement of one layer.

    Attributes
    ----------
    name : str
        Module path of the layer.
    selection : decomp.problem.factors.Selection or None
        Channels of its input that are kept; None when the input is not narrowed.
    factored : decomp.problem.factors.FactoredConv
        The chain of convolutions that replaces the layer. A linear layer is one dense factor whose kernel is
        the flattened map.
    """

    name: str
    selection: Selection | None
    factored: FactoredConv
