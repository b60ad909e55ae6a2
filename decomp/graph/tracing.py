"""Symbolic tracing of a module to a graph of calls, with readable errors where that is not possible."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import fx, nn

from decomp.errors import TraceError
from decomp.graph.foreign_batchnorm import replace_foreign_batchnorms
from decomp.graph.size_branches import SizeBranches


class _Tracer(fx.Tracer):
    """Tracer whose leaves are the modules of torch.nn and the named ones; it looks into all others.

    With the shape of the images, branches on sizes are taken as images of that shape take them; `branches` has the
    places in the source.
    """

    def __init__(self, leaves: Iterable[str], shape: Sequence[int] | None):
        super().__init__()
        self.leaves, self.shape = frozenset(leaves), shape
        self.branches: dict[str, bool] = {}
        self._size_branches: SizeBranches | None = None
        self._evaluating = False

    def to_bool(self, obj: fx.Proxy) -> bool:
        if self.shape is not None:
            self._size_branches = self._size_branches or SizeBranches(self.root, self.shape)
            self._evaluating = True
            try:
                answer = self._size_branches.evaluate(obj.node)
            finally:
                self._evaluating = False
            if answer is not None:
                self.branches[_source_place(traceback.extract_stack())] = answer
                return answer
        return super().to_bool(obj)

    # While a condition is evaluated, modules run and are not recorded.
    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Only parameters without a default become inputs: the others take their defaults while tracing.

        With an input in their place, `if mask is None` would be answered for a mask that nobody gives.
        """
        parameters = list(inspect.signature(inspect.unwrap(root_fn)).parameters.values())[1:]
        if any(p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters):
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        names = [p.name for p in parameters if p.default is p.empty]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)


def trace(
    model: nn.Module, name: str = "model", leaves: Iterable[str] = (), shape: Sequence[int] | None = None
) -> fx.GraphModule:
    """Trace a copy of the model in evaluation mode.

    Batch normalisations of other classes than torch's own are exchanged for torch's own, see
    :mod:`decomp.graph.foreign_batchnorm`.

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
        Its ``meta["batchnorms"]`` has the paths of the batch normalisations that were exchanged, ``meta["branches"]``
        the places in the source where a branch was decided by a size: the network is then for images of this shape.

    Raises
    ------
    TraceError
        With the place in the forward pass that could not be followed and the ways out.
    """
    model, leaves = copy.deepcopy(model).eval(), tuple(leaves)
    paths = {path for path, _ in model.named_modules()}
    unknown = [leaf for leaf in leaves if leaf not in paths or not leaf]
    if unknown:
        raise TraceError(name, "has no module of this name to leave as it is", got=unknown[0])
    exchanged = replace_foreign_batchnorms(model, leaves)
    tracer = _Tracer(leaves, shape)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        place = _source_place(traceback.extract_tb(error.__traceback__))
        raise TraceError(
            name,
            f"the forward pass cannot be traced{f' at {place}' if place else ''}: {reason}",
            fix="leave the module it lies in alone (option leaf), or treat another part of the network (option module)",
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    traced.meta.update(batchnorms=exchanged, branches=list(tracer.branches))
    _remove_stochastic_depth(graph)
    _pass_input_by_position(graph)
    graph.eliminate_dead_code()
    traced.recompile()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in placeholders if node.users or not node.args]
    if len(needed) != 1:
        raise TraceError(name, "the model must take one image tensor", got=f"{len(needed)} inputs")
    return traced


def _remove_stochastic_depth(graph: fx.Graph) -> None:
    """Stochastic depth passes its input on in evaluation mode, and is no function that data can name."""
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") == "stochastic_depth":
            if "training" in node.kwargs and not node.kwargs["training"] or len(node.args) > 3 and not node.args[3]:
                node.replace_all_uses_with(node.args[0])


def _pass_input_by_position(graph: fx.Graph) -> None:
    """Make the input of a module its first argument, also where the call names it: `conv(input=x)`."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.args and "input" in node.kwargs:
            others = {name: value for name, value in node.kwargs.items() if name != "input"}
            node.args, node.kwargs = (node.kwargs["input"],), others


def _source_place(stack: Iterable[traceback.FrameSummary]) -> str:
    """'file.py:line' of the deepest frame that is neither torch's nor this file's, or ''."""
    frames = [f for f in stack if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    return f"{frames[-1].filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
