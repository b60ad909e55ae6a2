"""Precision of float32 on a GPU: exact for fits and comparisons, as PyTorch is set for measured times.

PyTorch computes float32 convolutions on a GPU with 10 bits of mantissa unless told otherwise (TensorFloat-32). The
outputs of a network then carry noise of about 1e-3, far above the residuals of good fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

#: Settings of convolutions and of matrix products; None outside of :func:`exact_float32`.
_OUTSIDE: ContextVar[tuple[Any, str] | None] = ContextVar("precision outside of exact float32", default=None)


def _settings() -> tuple[Any, str]:
    cudnn: Any = torch.backends.cudnn
    # By name since torch 2.9, which refuses to read the one flag where some operations are set apart.
    conv = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return conv, torch.get_float32_matmul_precision()


def _set(conv: Any, products: str) -> None:
    cudnn: Any = torch.backends.cudnn
    if isinstance(conv, str):
        cudnn.conv.fp32_precision = conv
    else:
        cudnn.allow_tf32 = conv
    if torch.get_float32_matmul_precision() != products:
        torch.set_float32_matmul_precision(products)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within, float32 convolutions and matrix products on a GPU have their 23 bits; afterwards all is as before.

    Also a decorator. Nothing changes on a CPU.
    """
    before = _settings()
    token = _OUTSIDE.set(_OUTSIDE.get() or before)
    _set("ieee" if isinstance(before[0], str) else False, "highest")
    try:
        yield
    finally:
        _set(*before)
        _OUTSIDE.reset(token)


@contextmanager
def as_set_outside() -> Iterator[None]:
    """Within :func:`exact_float32`, PyTorch as the user has set it, as the network will run."""
    outside, before = _OUTSIDE.get(), _settings()
    if outside is None:
        yield
        return
    _set(*outside)
    try:
        yield
    finally:
        _set(*before)


def in_words(device_kind: str) -> str:
    """Precision of float32 networks whose time is measured, as a condition of the measurement."""
    conv, products = _OUTSIDE.get() or _settings()
    if conv == "none":  # nothing is set for convolutions alone
        backends: Any = torch.backends
        conv = next((one for one in (backends.cudnn.fp32_precision, backends.fp32_precision) if one != "none"), "ieee")
    short = [name for name, on in (("convolutions", conv in (True, "tf32")), ("products", products != "highest")) if on]
    return f"float32, {' and '.join(short)} in TF32" if device_kind == "cuda" and short else "float32"
