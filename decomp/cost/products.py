"""Multiply-accumulates of matrix products that no convolution or linear layer makes, such as those of attention."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = "(products of activations)"
LINEAR_CALLS = "(functional linear layers)"
#: Modules whose products are all counted under their own path, those with their weights too.
ATTENTION = (nn.MultiheadAttention,)


class ProductCounter(TorchDispatchMode):
    """Counts products of two tensors while it is active, also those that einsum, matmul and attention consist of.

    A product that sums over nothing (elementwise and outer products) is not counted.

    Parameters
    ----------
    per_layer : dict of str to int
        Added to: under :data:`LINEAR_CALLS` where one of the tensors is a weight, otherwise under :data:`PRODUCTS`;
        within the module of a :meth:`scope` under its path.
    weights : iterable of torch.Tensor
        Parameters of the network.

    Attributes
    ----------
    inside : int
        Products are not counted while it is positive: within modules that are counted otherwise.
    """

    def __init__(self, per_layer: dict[str, int], weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.per_layer, self.inside = per_layer, 0
        self._weights = {_storage(weight) for weight in weights}
        self._paths: list[str] = []

    def scope(self, path: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Count the products within a module under its path; the hooks are the caller's to remove."""
        return [
            module.register_forward_pre_hook(lambda *_: self._paths.append(path)),
            module.register_forward_hook(lambda *_: self._leave()),
        ]

    def _leave(self) -> None:
        self._paths.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if not self.inside:
            macs, factors = _macs(function.overloadpacket.__name__, args, output)
            if macs:
                name = LINEAR_CALLS if any(_storage(factor) in self._weights for factor in factors) else PRODUCTS
                name = self._paths[0] if self._paths else name
                self.per_layer[name] = self.per_layer.get(name, 0) + macs
        return output


# Place of the two factors among the arguments of torch's products.
_FACTORS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "addmv": 1}


def _macs(name: str, args: tuple[Any, ...], output: Any) -> tuple[int, tuple[Tensor, ...]]:
    """Multiply-accumulates of one call of torch's, and the tensors multiplied; 0 for any other call."""
    if name.startswith(("_scaled_dot_product", "_flash_attention_forward", "_efficient_attention_forward")):
        query, key, value = args[:3]
        # Each of the S keys meets each query, and each of the S values goes into each output.
        length = key.shape[-2]
        return length * (query.numel() + query.numel() // query.shape[-1] * value.shape[-1]), (query, key, value)
    if name not in _FACTORS:
        return 0, ()
    left, right = args[_FACTORS[name] : _FACTORS[name] + 2]
    summed = left.shape[-1]
    return (0 if summed == 1 else left.numel() * prod(right.shape[left.dim() - 1 :])), (left, right)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
