"""Serialisation of a traced network's structure to JSON data: module specifications and the graph of calls.

A file can only name classes of ``torch.nn``, :class:`decomp.modules.select.Select`,
:class:`decomp.modules.zeros.Zeros` and the tensor functions listed here: no code comes out of a file.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from decomp.errors import DecompError, FileError
from decomp.graph.constructors import arguments_of, leaf_advice, require_same
from decomp.graph.functions import ATTRIBUTES, full_name, function_of, name_of
from decomp.modules.select import Select
from decomp.modules.sized_chain import SizedChain
from decomp.modules.zeros import Zeros

OWN_MODULES: dict[str, type[nn.Module]] = {
    "Select": Select,
    "Zeros": Zeros,
}  # the only ones beside torch.nn that a file may name
#: Classes that draw random weights and have no values but those of their state.
DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# -- modules -----------------------------------------------------------------------------------------------


def describe_module(module: nn.Module, path: str = "module") -> dict[str, Any]:
    """Specification of a torch.nn module from which :func:`build_module` makes one of the same shape.

    Returns
    -------
    dict
        ``{"type": "Conv2d", "args": {...}}``, or ``{"type": "Sequential", "children": {...}}``.

    Raises
    ------
    DecompError
        For a class that is not of torch.nn, or an argument that is not plain data.
    """
    kind = type(module)
    if kind in (nn.Sequential, SizedChain):  # what is read back becomes the latter again where a forward needs it
        children = {
            name: describe_module(child, f"{path}.{name}")
            for name, child in module._modules.items()
            if child is not None
        }
        return {"type": "Sequential", "children": children}
    if getattr(nn, kind.__name__, None) is not kind and OWN_MODULES.get(kind.__name__) is not kind:
        rule = "only modules of torch.nn can be written as data"
        raise DecompError(path, rule, got=kind.__qualname__, fix=leaf_advice(path))
    args = {}
    for name, value in arguments_of(module, path).items():
        try:
            args[name] = encode(value, path)
        except DecompError as error:
            rule = f"the argument '{name}' of its {kind.__name__} must be plain data"
            raise DecompError(path, rule, got=error.got, fix=leaf_advice(path)) from error
    spec = {"type": kind.__name__, "args": args}
    require_same(module, lambda: build_module(spec, path), path)
    return spec


def build_module(spec: Mapping[str, Any], path: str = "module") -> nn.Module:
    """A module from its specification, with weights that are still to be loaded.

    Raises
    ------
    FileError
        For a specification that torch.nn cannot build.
    """
    try:
        name = spec["type"]
        if name == "Sequential":
            children = {child: build_module(s, f"{path}.{child}") for child, s in spec["children"].items()}
            return nn.Sequential(OrderedDict(children))
        kind = OWN_MODULES.get(name) or getattr(nn, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
            raise FileError(path, "names a module that torch.nn does not have", got=name)
        args = {key: decode(value, {}) for key, value in spec["args"].items()}
        return _without_weights(kind, args) if kind in DRAWN else kind(**args)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileError(path, f"the module's specification is broken ({error})") from error


def _without_weights(kind: type[nn.Module], args: Mapping[str, Any]) -> nn.Module:
    """A module with memory for its weights; drawing those of large layers takes seconds, and others replace them."""
    device = torch.get_default_device()
    with torch.device("meta"):
        module = kind(**args)
    return module.to_empty(device=device)


# -- values ------------------------------------------------------------------------------------------------


def encode(value: Any, where: str) -> Any:
    """A Python value of the graph as JSON data: plain values as they are, others as an object with one key.

    Raises
    ------
    DecompError
        For a value that has no JSON form; ``where`` names its place.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [encode(v, where) for v in value]}
    if isinstance(value, list):
        return [encode(v, where) for v in value]
    if isinstance(value, slice):
        return {"slice": [encode(v, where) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, where), encode(v, where)] for k, v in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise DecompError(where, "only plain values can be written as data", got=type(value).__name__)


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """The inverse of :func:`encode`; ``nodes`` maps names to the nodes built so far."""
    if isinstance(value, list):
        return [decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "tuple":
        return tuple(decode(v, nodes) for v in content)
    if kind == "slice":
        return slice(*(decode(v, nodes) for v in content))
    if kind == "dict":
        return {decode(k, nodes): decode(v, nodes) for k, v in content}
    if kind == "float":
        return float(content)
    if kind == "dtype":
        dtype = getattr(torch, content, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype {content}")
        return dtype
    if kind == "device":
        return torch.device(content)
    if kind == "ellipsis":
        return Ellipsis
    raise ValueError(f"unknown value of kind {kind}")


# -- the graph ---------------------------------------------------------------------------------------------


def describe_graph(graph_module: fx.GraphModule, leaves: Iterable[str] = ()) -> dict[str, Any]:
    """The calls of a traced network, its leaf modules and its free tensors, as JSON data.

    Of the modules at the paths ``leaves`` only the class is named: they are given to :func:`build_graph` again.

    Returns
    -------
    dict
        ``nodes`` (list of op, name, target, args, kwargs), ``modules`` (path → specification) and
        ``tensors`` (path → 'parameter' or 'buffer', for tensors that the forward pass reads directly).

    Raises
    ------
    DecompError
        Where the network calls something that data cannot name.
    """
    nodes: list[dict[str, Any]] = []
    modules: dict[str, dict[str, Any]] = {}
    tensors: dict[str, str] = {}
    leaves, named = frozenset(leaves), dict(graph_module.named_modules())
    parameters = {name for name, _ in graph_module.named_parameters(remove_duplicate=False)}
    for node in graph_module.graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = name_of(node.target)
            if target is None:
                raise _not_in_the_list(node)
        elif node.op == "call_module":
            if target in leaves:
                modules[target] = {"type": "leaf", "class": type(named[target]).__qualname__}
            else:
                modules[target] = describe_module(named[target], target)
        elif node.op == "get_attr":
            tensors[target] = "parameter" if target in parameters else "buffer"
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": encode(tuple(node.args), node.name)["tuple"],
                "kwargs": {k: encode(v, node.name) for k, v in node.kwargs.items()},
            }  # fmt: skip
        )
    return {"nodes": nodes, "modules": modules, "tensors": tensors}


def _not_in_the_list(node: fx.Node) -> DecompError:
    # The stack has an entry for every module whose forward was running, the deepest last.
    path = next((path for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())) if path), "")
    fix = f"leave this module as it is (--leaf {path})"
    if not path:
        fix = "move the call into a submodule and leave that as it is (--leaf)"
    return DecompError(path or "forward", "calls a function that data cannot name", full_name(node.target), fix)


def build_graph(
    description: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
    path: str = "structure",
    leaves_of: nn.Module | None = None,
) -> fx.GraphModule:
    """The traced network that :func:`describe_graph` described, with the given weights.

    Parameters
    ----------
    description : dict
    state : dict of str to torch.Tensor
        Must fill exactly the modules and free tensors of the description.
    path : str
        For messages.
    leaves_of : torch.nn.Module, optional
        Holds, under their paths, the modules that the description leaves out.

    Returns
    -------
    torch.fx.GraphModule, in evaluation mode

    Raises
    ------
    FileError
        For a description that is broken, names code that is not allowed, or does not fit the weights.
    """
    root = nn.Module()
    try:
        for name, spec in description["modules"].items():
            _attach(root, name, _leaf(spec, name, leaves_of) if spec["type"] == "leaf" else build_module(spec, name))
        for name, kind in description["tensors"].items():
            _attach(root, name, nn.Parameter(state[name]) if kind == "parameter" else state[name])
        graph = _build_nodes(description["nodes"])
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise FileError(path, f"the structure is broken ({type(error).__name__}: {error})") from error
    module = fx.GraphModule(root, graph)
    _check_state(module, state, path)
    match_dtypes(module, state)
    module.load_state_dict(state)
    module.meta["leaves"] = [name for name, spec in description["modules"].items() if spec["type"] == "leaf"]
    return module.eval()


def match_dtypes(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give parameters and buffers the floating-point types of a state dict, in place, before it is loaded."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in state and tensor.is_floating_point() and state[name].is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def _leaf(spec: Mapping[str, Any], path: str, leaves_of: nn.Module | None) -> nn.Module:
    """A copy of a module that was not written as data."""
    try:
        original = None if leaves_of is None else leaves_of.get_submodule(path)
    except AttributeError:
        original = None
    if original is None:
        fix = "load it into an instance of the original model (into=)"
        raise FileError(path, f"only its class {spec['class']} has this part of the network", fix=fix)
    module = copy.deepcopy(original)
    if type(module).__qualname__ != spec["class"]:
        raise FileError(path, f"must be a {spec['class']}", got=type(module).__qualname__)
    return module


def _build_nodes(described: Iterable[Mapping[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for item in described:
        op, target = item["op"], item["target"]
        args = tuple(decode(v, nodes) for v in item["args"])
        kwargs = {k: decode(v, nodes) for k, v in item["kwargs"].items()}
        if op == "call_function":
            function = function_of(target)
            if function is None:
                raise ValueError(f"function {target} is not allowed")
            if target == "builtins.getattr" and args[1] not in ATTRIBUTES:
                raise ValueError(f"attribute {args[1]} is not allowed")
            target = function
        elif op == "call_method" and (target.startswith("_") or not hasattr(torch.Tensor, target)):
            raise ValueError(f"method {target} is not allowed")
        elif op not in ("placeholder", "call_module", "call_method", "get_attr", "output"):
            raise ValueError(f"operation {op} is unknown")
        nodes[item["name"]] = graph.create_node(op, target, args, kwargs, name=item["name"])
    graph.lint()
    return graph


def _attach(root: nn.Module, path: str, value: nn.Module | torch.Tensor) -> None:
    """Add a module, parameter or buffer at a dotted path, with empty modules for the parents that are missing."""
    *parents, name = path.split(".")
    holder = root
    for part in parents:
        if not hasattr(holder, part):
            holder.add_module(part, nn.Module())
        holder = getattr(holder, part)
    if isinstance(value, nn.Module):
        holder.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    else:
        holder.register_buffer(name, value)


def _check_state(module: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted(set(wanted) | set(given)):
        if wanted.get(name) != given.get(name):
            raise FileError(
                path, f"weights and structure disagree at {name}: {wanted.get(name)} in the structure", given.get(name)
            )
