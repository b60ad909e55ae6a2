"""Responses that are not finite: the first layer that has them, as an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from decomp.errors import NumericalError


def not_finite(name: str, module: nn.Module, images: Tensor) -> NumericalError:
    """The error that names the first layer whose responses are not finite, and how many of them."""
    found: list[tuple[str, int | str, int | str]] = []

    def hook_of(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append((layer, output.numel() - int(torch.isfinite(output).sum()), output.numel()))

        return hook

    leaves = [(path, child) for path, child in module.named_modules() if not list(child.children())]
    handles = [child.register_forward_hook(hook_of(path)) for path, child in leaves]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    layer, bad, total = found[0] if found else ("its output", "some", "all")
    got = f"{bad} of {total} values NaN or infinite on the first {len(images)} images"
    return NumericalError(f"{name}, {layer}", "the responses must be finite", got=got, fix="check the weights")
