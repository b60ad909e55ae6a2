"""First passes of a network over a few images: it must give the same outputs each time, and traced as in its class."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from decomp.errors import DecompError, TraceError
from decomp.execution.outputs import difference, named_tensors
from decomp.graph.autocast import without_autocast
from decomp.graph.object_forwards import hooked

#: Largest difference between two passes, and between a network and its traced form, relative to the largest output.
TOLERANCE = 1e-4
_PART = "treat a part of the network without it (--module)"


def outputs_of(network: nn.Module, images: Tensor, name: str) -> dict[str, Tensor]:
    """Outputs of a network for a copy of the images, which forward may change, in the precision of its weights."""
    with torch.no_grad(), without_autocast():
        return named_tensors(network(images.clone()), len(images), name)


def require_repeatable(network: nn.Module, images: Tensor, first: dict[str, Tensor], name: str) -> None:
    """Run a network once more on images whose outputs are known.

    Raises
    ------
    DecompError
        The outputs are others now; says why: random numbers, or what the network keeps from one call to the next.
    """
    kept = {path: tensor.clone() for path, tensor in network.named_buffers()}
    generators = _generators()
    again = outputs_of(network, images, name)
    worst = difference(first, again)
    if worst <= TOLERANCE:
        return
    drew = [kind for kind, state in _generators().items() if state != generators[kind]]
    changed = [p for p, tensor in network.named_buffers() if p not in kept or not torch.equal(tensor, kept[p])]
    got = f"a difference of {worst:.2g} of the largest output between two passes over the same images"
    if drew:
        rule = f"must give the same outputs for the same images, but forward draws random numbers (of {drew[0]})"
        fix = f"draw them only where self.training is true, as F.dropout(x, p, self.training) does, or {_PART}"
    elif changed:
        rule = f"must give the same outputs for the same images, but forward changes its buffer {changed[0]}"
        fix = f"change it only where self.training is true, or {_PART}"
    else:
        rule = "must give the same outputs for the same images, but forward keeps something from one call to the next"
        fix = f"let it keep nothing where self.training is false, or {_PART}"
    raise DecompError(name, rule, got=got, fix=fix)


def _generators() -> dict[str, str]:
    """State of each random number generator that is common to the whole process."""
    states = {"torch": torch.get_rng_state(), "Python": random.getstate(), "numpy": np.random.get_state()}
    return {kind: repr(state.tolist() if isinstance(state, Tensor) else state) for kind, state in states.items()}


def not_as_traced(
    network: nn.Module,
    traced: fx.GraphModule,
    images: Tensor,
    worst: float,
    name: str,
    trace_with: Callable[[Sequence[str]], fx.GraphModule],
) -> TraceError:
    """The error that says that a traced network gives other outputs, where that begins and the way out.

    Parameters
    ----------
    network, traced
        Before batch normalisations are folded.
    images : torch.Tensor
    worst : float
        Difference between their outputs.
    name : str
        Of the network.
    trace_with : callable
        Traces the network with these modules left as they are.
    """
    place = _first_difference(network, traced, images)
    wanted, hooks = outputs_of(network, images, name), [path for path in hooked(network) if path]
    rule = "its calls, traced, must give the outputs of its forward pass"
    if place:
        rule += f", but they differ from {place} on"
    if hooked(network):
        rule += f" ({hooks[0] if hooks else 'the network'} has a hook on its forward pass, which is not traced)"
    parents = [".".join(place.split(".")[:end]) for end in range(place.count(".") + 1, 0, -1)] if place else []
    ways = []
    for path in dict.fromkeys([*hooks, *parents]):
        try:
            same = difference(wanted, outputs_of(trace_with([path]), images, name)) <= TOLERANCE
        except DecompError:
            continue
        if same:
            ways = [f"leave {path} as it is (--leaf {path})"]
            break
    if hooked(network):
        ways.insert(0, "compute in forward what the hook does, and remove the hook")
    if not ways:
        ways = ["let forward call each module as it was made, and change neither modules nor tensors in place"]
    fix = ", or ".join([*ways, "treat another part of the network (--module)"])
    return TraceError(name, rule, got=f"a difference of {worst:.2g} of the largest output", fix=fix)


def _first_difference(network: nn.Module, traced: fx.GraphModule, images: Tensor) -> str:
    """Path of the first module of torch.nn whose output is another one in the traced network, or ''."""
    paths = list(dict.fromkeys(str(node.target) for node in traced.graph.nodes if node.op == "call_module"))
    wanted, got = (_responses(one, paths, images) for one in (network, traced))
    for (path, value), (other, response) in zip(wanted, got):
        if path != other or difference(value, response) > TOLERANCE:
            return path
    return ""


def _responses(network: nn.Module, paths: Sequence[str], images: Tensor) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def hook_of(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append((path, output.clone() if isinstance(output, Tensor) else output))

        return hook

    modules = dict(network.named_modules())
    handles = [modules[path].register_forward_hook(hook_of(path)) for path in paths if path in modules]
    try:
        with torch.no_grad(), without_autocast():
            network(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found
