"""Symbolic tracing of a module to a graph of calls, with readable errors where that is not possible."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn

from decomp.errors import TraceError
from decomp.graph.computed_weights import fix_computed_weights
from decomp.graph.foreign_batchnorm import replace_foreign_batchnorms
from decomp.graph.functional_layers import functions_to_modules
from decomp.graph.object_forwards import class_with_forward, drop_hooks
from decomp.graph.output_sizes import sizes_to_padding
from decomp.graph.tracer import SizedTracer, source_place
from decomp.graph.ways_out import part_that_works, way_out
from decomp.graph.weight_reads import ask_the_images
from decomp.modules.copies import deep_copy
from decomp.modules.layout import lay_out_plainly


def trace(
    model: nn.Module, name: str = "model", leaves: Iterable[str] = (), shape: Sequence[int] | None = None
) -> fx.GraphModule:
    """Trace a copy of the model in evaluation mode.

    Weights that are computed from others are computed once (:mod:`decomp.graph.computed_weights`), batch normalisations
    of other classes are exchanged for torch's own (:mod:`decomp.graph.foreign_batchnorm`), and layers that are called
    as functions for modules (:mod:`decomp.graph.functional_layers`). Modules, parameters and buffers that do not
    contribute to the output are not in the result; all tensors in it are contiguous.

    Parameters
    ----------
    model : torch.nn.Module
    name : str
        For messages.
    leaves : iterable of str
        Paths of modules that are called as they are, without looking inside.
    shape : sequence of int, optional
        (C, H, W) of the images: with it, branches on sizes can be followed, as images of this shape take them.

    Returns
    -------
    torch.fx.GraphModule
        Its ``meta["exchanged"]`` has the paths of the modules that were exchanged, ``meta["forwards"]`` the calls of
        those whose forward called layers as functions (:mod:`decomp.graph.forwards`), ``meta["branches"]`` the places
        in the source where a branch was decided by a size: the network is then for images of this shape,
        ``meta["autocast"]`` whether automatic mixed precision was passed over, ``meta["leaves"]`` the paths
        given as `leaves`, and ``meta["left_out"]`` the layers of branches that an earlier network has lost
        (:func:`decomp.surgery.residual_branches.cut_branches`).

    Raises
    ------
    TraceError
        With the place in the forward pass that could not be followed and the ways out.
    """
    earlier = model.meta if isinstance(model, fx.GraphModule) else {}
    forwards, left_out = dict(earlier.get("forwards", {})), dict(earlier.get("left_out", {}))
    original, model, leaves = model, deep_copy(model).eval(), tuple(leaves)
    lay_out_plainly(model)  # as files hold them: in another layout equal weights give other rounding errors
    paths = {path for path, _ in model.named_modules()}
    unknown = [leaf for leaf in leaves if leaf not in paths or not leaf]
    if unknown:
        raise TraceError(name, "has no module of this name to leave as it is", got=unknown[0])
    exchanged = [*fix_computed_weights(model, leaves), *replace_foreign_batchnorms(model, leaves)]
    class_with_forward(model)
    drop_hooks(model, leaves)
    tracer = SizedTracer(leaves, shape, original)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        place = getattr(error, "place", "") or source_place(traceback.extract_tb(error.__traceback__))
        within, fix = getattr(error, "within", ()) or tracer.within, getattr(error, "fix", "")
        raise TraceError(
            name,
            f"the forward pass cannot be traced{f' at {place}' if place else ''}: {reason}",
            fix="; ".join([*([fix] if isinstance(fix, str) and fix else []), way_out(model, leaves, shape, within)]),
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    _remove_stochastic_depth(graph)
    _pass_input_by_position(graph)
    _keep_buffers(traced)
    _reshape_instead_of_view(graph)
    ask_the_images(traced)
    graph.eliminate_dead_code()
    # Made again from what is left in the graph: modules and tensors whose results nobody uses stay behind.
    traced = fx.GraphModule(traced, graph)
    functional = functions_to_modules(traced, shape, model)
    for path in sizes_to_padding(traced, shape) if shape is not None else []:
        tracer.branches[f"output size of {path}"] = None
    held = dict(traced.named_modules())
    traced.meta.update(
        exchanged=[path for path in dict.fromkeys([*exchanged, *functional]) if path in held],
        branches=list(tracer.branches),
        autocast=tracer.autocast,
        leaves=list(leaves),
        forwards=forwards | functional,
        left_out=left_out,
    )
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in placeholders if node.users or not node.args]
    if len(needed) != 1:
        part = part_that_works(model, shape)
        first = [part] if part is not None else [path for node in needed for path in _first_parts(node)]
        # Not a convolution by itself: what it becomes could not be put back in its place.
        parts = [path for path in dict.fromkeys(first) if any(model.get_submodule(path).children())]
        such = f", such as {' or '.join(parts[:2])}" if parts else ""
        raise TraceError(
            name, "the model must take one image tensor", got=f"{len(needed)} inputs",
            fix=f"treat a part of it that takes one by itself{such} (option module), or take the inputs joined along "
            "the channels as one and split them in its forward",
        )  # fmt: skip
    return traced.eval()


def _first_parts(value: fx.Node) -> list[str]:
    """Children of the network that hold the modules which read a value first, past functions."""
    found, reached = [], [value]
    for node in reached:
        for user in node.users:
            if user.op == "call_module":
                found.append(str(user.target).split(".")[0])
            elif user not in reached:
                reached.append(user)
    return found


def _remove_stochastic_depth(graph: fx.Graph) -> None:
    """Stochastic depth passes its input on in evaluation mode, and is no function that data can name."""
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":
            if "training" in node.kwargs and not node.kwargs["training"] or len(node.args) > 3 and not node.args[3]:
                node.replace_all_uses_with(node.args[0])


def _keep_buffers(network: fx.GraphModule) -> None:
    """Write the buffers that the graph reads into the state dict, also those that the class computes by itself."""
    for node in network.graph.nodes:
        if node.op == "get_attr":
            holder, _, attribute = str(node.target).rpartition(".")
            network.get_submodule(holder)._non_persistent_buffers_set.discard(attribute)


def _pass_input_by_position(graph: fx.Graph) -> None:
    """Make the input of a module its first argument, also where the call names it: `conv(input=x)`."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            others = {name: value for name, value in node.kwargs.items() if name != "input"}
            node.args, node.kwargs = (node.kwargs["input"],), others


def _reshape_instead_of_view(graph: fx.Graph) -> None:
    """Write `x.view(sizes)` as `x.reshape(sizes)`, which also takes values that lie with their channels last."""
    for node in graph.nodes:
        if (
            node.op == "call_method"
            and node.target == "view"
            and not any(isinstance(part, torch.dtype) for part in node.args)
        ):
            node.target = "reshape"
