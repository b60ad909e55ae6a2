"""Convolutions, linear layers and normalisations that a network calls as functions, written as modules.

``F.conv2d(x, self.weight)`` in a forward pass, be it in a subclass of ``nn.Conv2d`` or anywhere else, computes the same
as a plain ``nn.Conv2d`` if its weight does not depend on the images: if it is a parameter, a buffer, or computed from
these, as a standardised weight is. The weight is then computed once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from decomp.graph.forwards import describe_forward, module_stack

_aten = torch.ops.aten
_FUNCTIONS: dict[Any, str] = {
    F.conv2d: "conv", torch.conv2d: "conv", _aten.conv2d.default: "conv", _aten.conv2d.padding: "conv",
    F.linear: "linear", _aten.linear.default: "linear",
    F.conv_transpose2d: "transposed", torch.conv_transpose2d: "transposed", _aten.conv_transpose2d.input: "transposed",
    F.batch_norm: "norm", torch.batch_norm: "norm", _aten.batch_norm.default: "norm",
}  # fmt: skip
_ARGUMENTS: Mapping[str, Sequence[str]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "linear": ("input", "weight", "bias"),
    "transposed": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
_ATEN_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_CLASSES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# What is computed with functions of these names is no constant: they give other numbers each time, or change tensors.
_NO_CONSTANT = re.compile(
    r"rand|dropout|bernoulli|multinomial|normal$|poisson|exponential|uniform|[^_]_$|"
    r"^(iadd|isub|imul|itruediv|ifloordiv|ipow|setitem)$"
)


def functions_to_modules(
    network: fx.GraphModule, shape: Sequence[int] | None = None, origin: nn.Module | None = None
) -> dict[str, dict[str, Any] | None]:
    """Exchange functional layers with constant weights for modules, in place.

    The module is put at the path of the module whose forward calls the function where it does nothing else, otherwise
    within that module, as ``conv``, ``linear``, ``transposed`` or ``norm``, with a number where the name is taken.

    Parameters
    ----------
    network : torch.fx.GraphModule
        In evaluation mode.
    shape : sequence of int, optional
        (C, H, W) of the images. Without it, linear layers stay functions, and so do normalisations that do not follow
        a convolution: on how many axes they work is not known.
    origin : torch.nn.Module, optional
        From which the network was traced. Without one, or where it is a graph of calls itself, as exported programs
        are, nodes need not say which module calls them: the module is then put at the path of the weight.

    Returns
    -------
    dict of str to dict or None
        For each module whose forward was changed, the module that takes its place in the original class, as data for
        :func:`decomp.graph.forwards.build_forward`. None where there is no such module: for the network itself (''),
        and where a forward has several inputs or outputs.
    """
    candidates = [n for n in network.graph.nodes if n.op == "call_function" and n.target in _FUNCTIONS]
    if not candidates:
        return {}
    found = _Candidates(network, _axes(network, shape) if shape is not None else {}, origin)
    for node in candidates:
        found.add(node)
    for node, (module, source) in found.modules.items():
        found.exchange(node, module, source)
    if not found.owners:
        return {}
    for node in reversed(network.graph.nodes):  # the tensors of some are no longer there
        if node in found.constants and not node.users:
            network.graph.erase_node(node)
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    _delete_unused_tensors(network)
    network.recompile()
    return {owner: describe_forward(network, owner) for owner in found.owners}


class _Candidates:
    """Functional layers, and the modules that compute the same.

    Attributes
    ----------
    modules : dict of torch.fx.Node to (torch.nn.Module, torch.fx.Node)
        The module and the node that it reads. All weights are computed before the first exchange.
    owners : dict of str
        Paths of the modules whose forward has been changed.
    """

    def __init__(self, network: fx.GraphModule, axes: Mapping[fx.Node, int], origin: nn.Module | None):
        self.network, self.axes, self.flat = network, axes, origin is None or isinstance(origin, fx.GraphModule)
        modules = {} if origin is None else dict(origin.named_modules())
        self.origin = {path: module for path, module in modules.items() if type(module) in _CLASSES}
        self.constants = _constant_nodes(network)
        self.modules: dict[fx.Node, tuple[nn.Module, fx.Node]] = {}
        self.owners: dict[str, None] = {}
        self._weights: dict[fx.Node, fx.Node | None] = {}
        self._paths: list[str] = []
        self._values: dict[fx.Node, Any] = {}

    def add(self, node: fx.Node) -> None:
        """Make the module of a node, if its tensors are constants."""
        kind = _FUNCTIONS[node.target]
        options = _arguments(node, kind)
        tensors = {name: options.pop(name) for name in _TENSORS if name in options}
        source = options.pop("input", None)
        constant = all(value is None or value in self.constants for value in tensors.values())
        if not constant or not isinstance(source, fx.Node) or source in self.constants or not _plain(options):
            return
        values = {name: None if value is None else self._value(value) for name, value in tensors.items()}
        module = self._module(kind, values, options, source)
        if module is not None:
            self.modules[node], self._weights[node] = (module, source), tensors["weight"]

    def exchange(self, node: fx.Node, module: nn.Module, source: fx.Node) -> None:
        """Call a module instead of a function."""
        if source not in self.network.graph.nodes:  # another exchanged function
            source = node.all_input_nodes[0]
        path = self._path(node, module)
        with self.network.graph.inserting_before(node):
            call = self.network.graph.call_module(path, (source,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        self.network.graph.erase_node(node)

    def _value(self, node: fx.Node) -> Tensor:
        """The constant at a node."""
        if node not in self._values:
            run = fx.Interpreter(self.network, garbage_collect_values=False)
            run.env = self._values
            for one in self.network.graph.nodes:
                if one in self.constants and one not in self._values:
                    with torch.no_grad():
                        self._values[one] = run.run_node(one)
                if one is node:
                    break
        return self._values[node]

    def _module(
        self, kind: str, values: Mapping[str, Tensor | None], options: Mapping[str, Any], source: fx.Node
    ) -> nn.Module | None:
        """The module that computes the same as the function, or None where there is none."""
        weight = values["weight"]
        module: nn.Module | None = None
        with torch.device("meta"):
            if kind == "norm":
                module = self._norm(values, options, source)
            elif weight is None or weight.dim() != (2 if kind == "linear" else 4):
                return None
            elif kind == "linear":
                n, width = weight.shape
                module = nn.Linear(width, n) if self.axes.get(source) == 2 else None
            else:
                grouped = weight.shape[1] * options.get("groups", 1)
                kernel = (weight.shape[2], weight.shape[3])
                if kind == "conv":
                    module = nn.Conv2d(grouped, weight.shape[0], kernel, **options)
                else:
                    module = nn.ConvTranspose2d(weight.shape[0], grouped, kernel, **options)
        return None if module is None else _with_tensors(module, values)

    def _norm(
        self, values: Mapping[str, Tensor | None], options: Mapping[str, Any], source: fx.Node
    ) -> nn.Module | None:
        mean, affine = values["running_mean"], values["weight"] is not None
        if mean is None or options.get("training", False) or affine != (values["bias"] is not None):
            return None
        before = self.modules[source][0] if source in self.modules else None
        if source.op == "call_module":
            before = self.network.get_submodule(str(source.target))
        axes = self.axes.get(source, 4 if isinstance(before, (nn.Conv2d, nn.ConvTranspose2d)) else 0)
        kind = {4: nn.BatchNorm2d, 2: nn.BatchNorm1d}.get(axes)
        return None if kind is None else kind(len(mean), eps=options.get("eps", 1e-5), affine=affine)

    def _path(self, node: fx.Node, module: nn.Module) -> str:
        """Where to put a module; one that was made for another call with the same weights serves again."""
        owner, alone = self._owner(node, module)
        for path in self._paths:
            if owner in (path, path.rpartition(".")[0]) and _same(self.network.get_submodule(path), module):
                return path
        path = owner
        if not alone or path in self._paths:
            prefix = f"{owner}." if owner else ""
            names = (
                f"{prefix}{_FUNCTIONS[node.target]}{suffix}" for suffix in ("", *map("_{}".format, range(1, 1000)))
            )
            path = next(name for name in names if not _holds(self.network, name))
        _put(self.network, path, module)
        self._paths.append(path)
        self.owners[owner] = None
        return path

    def _owner(self, node: fx.Node, module: nn.Module) -> tuple[str, bool]:
        """Path of the module whose forward calls a function, and whether the call is all it does."""
        stack, weight = module_stack(node), self._weights[node]
        held = str(weight.target).rpartition(".")[0] if weight is not None and weight.op == "get_attr" else ""
        if held and repr(self.origin.get(held)) == repr(module) and self._holds_only(held, node):
            return held, True  # `layer.forward(x)`
        if not stack and self.flat and weight is not None and weight.op == "get_attr":
            return held, bool(held) and self._holds_only(held, node)
        if not stack:
            return "", False
        others = [n for n in self.network.graph.nodes if stack[-1] in module_stack(n) and n not in self.constants]
        return stack[-1], all(n.target is node.target for n in others) and _FUNCTIONS[node.target] != "norm"

    def _holds_only(self, path: str, node: fx.Node) -> bool:
        """Whether the module at a path holds nothing but the tensors of one layer, for all its calls."""
        nodes = [n for n in self.network.graph.nodes if n.op in ("get_attr", "call_module")]
        held = [n for n in nodes if str(n.target) == path or str(n.target).startswith(f"{path}.")]
        calls = {user for n in held for user in n.users}
        same = (user in self.modules and repr(self.modules[user][0]) == repr(self.modules[node][0]) for user in calls)
        tensors = {(self._weights.get(user), *(n for n in held if user in n.users)) for user in calls}
        return all(n.op == "get_attr" for n in held) and all(same) and len(tensors) == 1


def _axes(network: fx.GraphModule, shape: Sequence[int]) -> dict[fx.Node, int]:
    """Number of axes of every tensor of the graph; empty where the network does not run on images of this shape."""
    axes: dict[fx.Node, int] = {}

    class Axes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                axes[n] = value.dim()
            return value

    like = next(network.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            Axes(network).run(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
    except Exception:  # the stages report that in their own words
        return {}
    return axes


def _constant_nodes(network: fx.GraphModule) -> set[fx.Node]:
    """Nodes that have the same value for all images."""
    constants: set[fx.Node] = set()
    for node in network.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op == "get_attr":
            constants.add(node)
        elif node.op in ("call_function", "call_method", "call_module") and node.all_input_nodes:
            if all(before in constants for before in node.all_input_nodes):
                if not _NO_CONSTANT.search(name):
                    constants.add(node)
    return constants


def _arguments(node: fx.Node, kind: str) -> dict[str, Any]:
    """The arguments of a call by their names."""
    names = _ATEN_NORM if kind == "norm" and node.target is not F.batch_norm else _ARGUMENTS[kind]
    given = dict(zip(names, node.args)) | dict(node.kwargs)
    if kind != "norm":
        given.setdefault("bias", None)
    else:
        given = dict.fromkeys(_TENSORS) | given
    single = {name: value[0] for name, value in given.items() if isinstance(value, (tuple, list)) and len(value) == 1}
    return {name: value for name, value in {**given, **single}.items() if name in _ARGUMENTS[kind]}


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_plain(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return all(_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _with_tensors(module: nn.Module, values: Mapping[str, Tensor | None]) -> nn.Module:
    """A module without memory with copies of these tensors."""
    for name, value in values.items():
        own = None if value is None else value.detach().clone().contiguous()
        setattr(module, name, nn.Parameter(own) if own is not None and name in ("weight", "bias") else own)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return module.eval()


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of our own making compute the same."""
    if type(one) is not type(other) or repr(one) != repr(other):
        return False
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path, in the place of the module or the holder of tensors that may be there."""
    holder = network
    *parents, name = path.split(".")
    for part in parents:
        if not isinstance(getattr(holder, part, None), nn.Module):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if hasattr(holder, name):
        delattr(holder, name)
    holder.add_module(name, module)


def _delete_unused_tensors(network: fx.GraphModule) -> None:
    """Remove parameters and buffers that were read for functions only."""
    read = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    for path, module in list(network.named_modules()):
        if any(path == target or path.startswith(f"{target}.") for target in called):
            continue
        for name in [*module._parameters, *module._buffers]:
            if (f"{path}.{name}" if path else name) not in read:
                delattr(module, name)


def _holds(network: nn.Module, path: str) -> bool:
    """Whether a module or a tensor is at a path."""
    holder: Any = network
    for part in path.split("."):
        holder = getattr(holder, part, None)
    return holder is not None
