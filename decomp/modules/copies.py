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
    return copy.deepcopy(network, computed_tensors(network))


def computed_tensors(network: nn.Module) -> dict[int, Any]:
    """Copies, without their history, of the tensors that a network has computed and keeps: a memo of ``deepcopy``."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for value in [*vars(module).values(), *module._buffers.values()]:
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    return memo
