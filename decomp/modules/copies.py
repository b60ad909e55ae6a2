"""Deep copies of networks that hold computed weights."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def deep_copy(network: Network) -> Network:
    """A copy that shares nothing with the network.

    A weight that the network has computed from its parameters and keeps as an attribute, as ``weight_norm`` does, is
    copied without its history; torch refuses to copy it with it.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for value in [*vars(module).values(), *module._buffers.values()]:
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(network, memo)
