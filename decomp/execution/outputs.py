"""Outputs of a network of any form as named tensors, and the comparison of the outputs of two networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from decomp.errors import UsageError

# Name of an output that is a single tensor.
SINGLE = "output"
# Beside tensors these may be among the outputs: sizes, strides, a loss that is None without labels.
PLAIN = (type(None), bool, int, float, str)


def leaves(output: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nested output that is no container, by its path.

    Parameters
    ----------
    output : object
        Dicts, lists, tuples, namedtuples and dataclasses, nested as they may be, are opened.
    name : str
        Path of the output itself. The fields of a namedtuple are named by their places, as a traced network returns a
        plain tuple.

    Yields
    ------
    name : str
        Keys, fields and places joined by dots: ``"scores"``, ``"0"``, ``"0.maps"``.
    value : object
    """
    for key, part in _parts(output):
        yield from leaves(part, f"{name}.{key}" if name else str(key))
    if not _is_container(output):
        yield name, output


def _is_container(output: Any) -> bool:
    is_dataclass = dataclasses.is_dataclass(output) and not isinstance(output, type)
    return isinstance(output, (Mapping, list, tuple)) or is_dataclass


def _parts(output: Any) -> Iterator[tuple[object, Any]]:
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (list, tuple)):
        yield from enumerate(output)
    elif _is_container(output):
        yield from ((entry.name, getattr(output, entry.name)) for entry in dataclasses.fields(output))


def named_tensors(output: Any, n_images: int | None = None, name: str = "model") -> dict[str, Tensor]:
    """The tensors of a network's output by name, in order.

    Parameters
    ----------
    output : torch.Tensor, or mapping, list, tuple or dataclass of such, nested as they may be
        None and plain numbers and texts beside tensors are passed over.
    n_images : int, optional
        Number of images that the network was given; the first axis of every tensor must be as long.
    name : str
        Of the network, for messages.

    Returns
    -------
    dict of str to torch.Tensor
        Of two axes or more, (images, ...): a tensor of shape (N,) becomes (N, 1). A single tensor is named ``output``.

    Raises
    ------
    UsageError
        There is no tensor, or one of them holds whole numbers, is complex, or does not run over the images.
    """
    found: dict[str, Tensor] = {}
    for path, value in leaves(output):
        if isinstance(value, Tensor):
            path = path or SINGLE
            if path in found:
                raise UsageError(name, "must give each of its outputs a name of its own", got=f"{path} twice")
            found[path] = _checked(value, path, n_images, name)
        elif not isinstance(value, PLAIN):
            raise UsageError(
                name, "must return tensors, or dicts, lists or dataclasses of tensors",
                got=f"{'an object' if not path else path} of class {type(value).__name__}",
                fix="return the tensors in it",
            )  # fmt: skip
    if not found:
        got = "None" if output is None else f"a {type(output).__name__} without a tensor"
        raise UsageError(name, "must return at least one tensor", got=got)
    return found


def _checked(value: Tensor, path: str, n_images: int | None, name: str) -> Tensor:
    thing = name if path == SINGLE else f"{name}, output {path}"
    if not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise UsageError(
            thing, "must be real numbers that change little when the weights do", got=f"{kind} (as of an argmax)",
            fix="leave the last step out of the network, so that it returns the numbers from which that is made",
        )  # fmt: skip
    if value.dim() == 0 or (n_images is not None and len(value) != n_images):
        shape = tuple(value.shape)
        got = "one number a batch" if value.numel() == 1 else f"shape {shape} for {n_images} images"
        raise UsageError(
            thing, "the first axis must run over the images", got=got,
            fix="leave the last step out of the network, so that it returns a row for each image",
        )  # fmt: skip
    return value[:, None] if value.dim() == 1 else value


def difference(wanted: Any, got: Any) -> float:
    """Largest difference between two outputs of one form, relative to the largest number of each tensor.

    Parameters
    ----------
    wanted, got : object
        As :func:`named_tensors` takes them, of any numbers and shapes. Whether a sequence is a list or a tuple does
        not matter.

    Returns
    -------
    float
        The largest over all tensors. 0 where all bits are equal, also infinite ones and NaN; infinite where one has
        tensors, shapes or plain values that the other does not have, or NaN or infinity in other places.
    """
    one, other = list(leaves(wanted)), list(leaves(got))
    if [path for path, _ in one] != [path for path, _ in other]:
        return math.inf
    return max((_difference(a, b) for (_, a), (_, b) in zip(one, other)), default=0.0)


def _difference(wanted: Any, got: Any) -> float:
    if not isinstance(wanted, Tensor) or not isinstance(got, Tensor):
        tensors = isinstance(wanted, Tensor) or isinstance(got, Tensor)
        return math.inf if tensors or not bool(wanted == got) else 0.0
    if wanted.shape != got.shape:
        return math.inf
    wanted, got = wanted.detach().cpu(), got.detach().cpu()
    if wanted.is_complex() or got.is_complex():
        wanted, got = torch.view_as_real(wanted + 0j), torch.view_as_real(got + 0j)
    wanted, got = wanted.double(), got.double()
    equal = (wanted == got) | (wanted.isnan() & got.isnan())
    if bool(equal.all()):
        return 0.0
    worst = (wanted - got)[~equal].abs().max()
    largest = wanted[wanted.isfinite()].abs().max() if bool(wanted.isfinite().any()) else torch.tensor(0.0)
    relative = float(worst / largest.clamp_min(1e-12))
    return relative if math.isfinite(relative) else math.inf
