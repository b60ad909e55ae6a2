"""Names of torch that are exchanged while a network is traced, so that calls with proxies become calls of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.nn.utils import rnn

# Functions that make a tensor of sizes. Torch does not dispatch `torch.zeros(n, 3)` on its arguments where these are
# proxies, so that the names are exchanged while a network is traced.
FACTORIES = (
    "arange", "eye", "empty", "full", "linspace", "logspace", "ones", "rand", "randn", "tensor", "tril_indices",
    "triu_indices", "zeros",
)  # fmt: skip
# Functions that take no proxies, and become calls of the graph wherever a forward has their names from.
SEQUENCES = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence, rnn.pad_sequence)


@contextmanager
def names_exchanged(tracer: Any) -> Iterator[None]:
    """Tensor factories that get a proxy, and `Tensor.expand` to one, become calls of the graph.

    `torch.autocast(x.device.type)` gets the type of the device that the weights are on.
    """
    originals: dict[tuple[Any, str], Callable[..., Any]] = {(torch, name): getattr(torch, name) for name in FACTORIES}
    originals[torch.Tensor, "expand"] = torch.Tensor.expand
    originals.update({(rnn, function.__name__): function for function in SEQUENCES})

    def recorder(original: Callable[..., Any], owner: object) -> Callable[..., Any]:
        method = owner is torch.Tensor
        op, target = ("call_method", original.__name__) if method else ("call_function", original)

        def factory(*args: Any, **kwargs: Any) -> Any:
            if any(p.tracer is tracer for p in proxies_in((args, kwargs))):
                return tracer.create_proxy(op, target, args, kwargs)
            return original(*args, **kwargs)

        return factory

    def autocast(context: Any, device_type: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(device_type, fx.Proxy):
            device_type = tracer.number(device_type.node, "autocast")
        originals[torch.autocast, "__init__"](context, device_type, *args, **kwargs)

    def limits(kind: Callable[..., Any]) -> Callable[..., Any]:
        def of(*types: Any) -> Any:
            return kind(*(tracer.number(t.node, kind.__name__) if isinstance(t, fx.Proxy) else t for t in types))

        return of

    exchanged = {(owner, name): recorder(original, owner) for (owner, name), original in originals.items()}
    exchanged[torch.autocast, "__init__"] = autocast
    originals[torch.autocast, "__init__"] = torch.autocast.__init__
    for kind in (torch.finfo, torch.iinfo):
        originals[torch, kind.__name__], exchanged[torch, kind.__name__] = kind, limits(kind)
    for (owner, name), function in exchanged.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def proxies_in(value: Any) -> Iterator[fx.Proxy]:
    """The proxies among arguments, also in tuples, lists, dicts and slices."""
    if isinstance(value, fx.Proxy):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from proxies_in(part)
    elif isinstance(value, dict):
        yield from proxies_in(list(value.values()))
    elif isinstance(value, slice):
        yield from proxies_in([value.start, value.stop, value.step])
