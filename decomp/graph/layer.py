"""A layer of the traced network and the channels it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

#: Reason why a depthwise convolution is left out of each step.
DEPTHWISE = "depthwise convolution"


def every_step(reason: str) -> dict[str, str]:
    """The same reason for each of the steps that a layer can be left out of."""
    return dict.fromkeys(("spatial", "channel", "prune"), reason)


@dataclass(frozen=True)
class InputSpace:
    """The channels that a layer reads, where some of them can be dropped.

    Attributes
    ----------
    producer : str or None
        Module path of the layer that writes them for this layer alone; None where others need them too, and the
        layer reads a subset through a sampler.
    consumer : str
        Module path of the layer.
    width : int
        Number of channels.
    carriers : tuple of str
        Paths of modules in between with numbers per channel (normalisation, PReLU, depthwise convolution).
    repeat : int
        Columns of the consumer per channel: H·W through a flatten, otherwise 1.
    map_shape : tuple of int
        (H, W) of the flattened map; (1, 1) otherwise.
    """

    producer: str | None
    consumer: str
    width: int
    carriers: tuple[str, ...] = ()
    repeat: int = 1
    map_shape: tuple[int, int] = (1, 1)

    @property
    def sampled(self) -> bool:
        """Whether the layer reads a subset and the channels themselves stay."""
        return self.producer is None


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the network.

    Attributes
    ----------
    name : str
        Module path (``features.0``). ``node`` is its node in the traced graph.
    kind : {'conv', 'linear'}
    index : int
        Place in execution order among all convolution and linear layers.
    in_hw, out_hw : tuple of int
        Height and width of its input and output; (1, 1) for a linear layer. Of its first call where it is called
        several times.
    activation : str
        The operation on its output: 'relu', 'relu6', 'identity' (directly read by another layer, a sum or the
        output) or the name of another operation; 'several' where its calls are followed by different ones.
    input_space : InputSpace or None
        The channels it reads, where some of them can be dropped.
    left_alone : mapping of str to str, read-only
        For each of the steps 'spatial', 'channel', 'prune' that cannot be applied here, the reason.
    fitted : bool
        False where its weights are not fitted as a whole: grouped, of another class, too large.
    depthwise : bool
        A depthwise convolution whose kernels are fitted channel by channel, and that is otherwise left alone.
    recovers : str or None
        Name of the node whose value is added to this layer's output and is computed before it: the layer can
        correct that value's errors. With several calls, that of the first one; each has such a value, or it is None.
    more_calls : tuple of (in_hw, out_hw)
        Sizes of the calls after the first. A call on several maps for each image, such as frames that are folded into
        the batch, counts as one for each of them.
    transposed : bool
        A transposed convolution.
    """

    name: str
    node: str
    kind: str
    index: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    in_hw: tuple[int, int]
    out_hw: tuple[int, int]
    activation: str = "identity"
    input_space: InputSpace | None = None
    left_alone: Mapping[str, str] = field(default_factory=dict)
    fitted: bool = True
    recovers: str | None = None
    more_calls: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    transposed: bool = False
    depthwise: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "left_alone", MappingProxyType(dict(self.left_alone)))

    @property
    def calls(self) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
        """Height and width of the input and of the output at each call, in execution order."""
        return ((self.in_hw, self.out_hw), *self.more_calls)

    @property
    def recorded(self) -> bool:
        """Whether its weights are fitted in any way, to responses that are recorded of the original."""
        return self.fitted or self.depthwise

    @property
    def input_width(self) -> int:
        """Channels that pruning chooses among: the width of its input space, or its input channels."""
        return self.in_channels if self.input_space is None else self.input_space.width

    @property
    def columns(self) -> int:
        """Columns of its patches, which are the inputs of its least-squares problem: c·kh·kw."""
        return self.in_channels * self.kernel[0] * self.kernel[1]

    @property
    def max_spatial_rank(self) -> int:
        """Rank at which the spatial split is exact: min(c·kh, n·kw)."""
        return min(self.in_channels * self.kernel[0], self.out_channels * self.kernel[1])
