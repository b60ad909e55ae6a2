"""A network's structure as data: module specifications, the graph of calls, and the list of edits.

Everything is plain JSON values. Reading it back can only name classes of ``torch.nn``,
:class:`decomp.modules.select.Select`
and the tensor functions listed here: no code comes out of a file.
"""

import copy
import importlib
import inspect
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import get_overridable_functions

from decomp.errors import DecompError, FileError
from decomp.modules.select import Select

_OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "matmul", "getitem", "iadd", "isub", "imul",
    "itruediv", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
)  # fmt: skip
OWN_MODULES = {"Select": Select}  # the only ones beside torch.nn that a file may name
# Functions that torchvision keeps whole in a trace (torch.fx.wrap); imported only where a network calls one.
_WRAPPED = (
    "torchvision.models.swin_transformer._get_relative_position_bias",
    "torchvision.models.swin_transformer._patch_merging_pad",
    "torchvision.models.swin_transformer.shifted_window_attention",
)
_ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT")


def _functions():
    """Names of the tensor functions a file may call, and the functions."""
    names = {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    overridable = set(get_overridable_functions().get(torch, ()))
    for name in dir(torch):
        function = getattr(torch, name)
        if not name.startswith("_") and callable(function) and function in overridable:
            names[f"torch.{name}"] = function
    for name in dir(F):
        function = getattr(F, name)
        if not name.startswith("_") and callable(function) and not inspect.isclass(function):
            names[f"torch.nn.functional.{name}"] = function
    names["builtins.getattr"] = getattr
    names["torch._assert"] = torch._assert
    return names


class _Functions:
    """The table of allowed functions, built on first use."""

    by_name = None
    by_function = None

    @classmethod
    def load(cls):
        if cls.by_name is None:
            cls.by_name = _functions()
            cls.by_function = {}
            for name, function in cls.by_name.items():
                cls.by_function.setdefault(function, name)
        return cls

    @classmethod
    def name(cls, function):
        """The name of a function, or None."""
        full = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        return cls.by_function.get(function) or (full if full in _WRAPPED else None)

    @classmethod
    def named(cls, name):
        """The function of a name, or None."""
        if name in _WRAPPED:
            module, _, function = name.rpartition(".")
            return getattr(importlib.import_module(module), function)
        return cls.by_name.get(name)


# -- modules -----------------------------------------------------------------------------------------------


def describe_module(module, path="module"):
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
    if kind is nn.Sequential:
        children = {name: describe_module(child, f"{path}.{name}") for name, child in module.named_children()}
        return {"type": "Sequential", "children": children}
    if getattr(nn, kind.__name__, None) is not kind and OWN_MODULES.get(kind.__name__) is not kind:
        raise DecompError(path, "only modules of torch.nn can be written as data", got=kind.__qualname__)
    args = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(module, name):
            if parameter.default is parameter.empty:
                raise DecompError(path, f"{kind.__name__} does not keep its argument '{name}'")
            continue
        value = getattr(module, name)
        if name == "bias":
            value = value is not None and value is not False
        args[name] = encode(value, path)
    return {"type": kind.__name__, "args": args}


def build_module(spec, path="module"):
    """A module with uninitialised weights from its specification."""
    try:
        name = spec["type"]
        if name == "Sequential":
            return nn.Sequential(
                _ordered({child: build_module(s, f"{path}.{child}") for child, s in spec["children"].items()})
            )
        kind = OWN_MODULES.get(name) or getattr(nn, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
            raise FileError(path, "names a module that torch.nn does not have", got=name)
        return kind(**{key: decode(value, {}) for key, value in spec["args"].items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileError(path, f"the module's specification is broken ({error})") from error


def _ordered(children):
    from collections import OrderedDict

    return OrderedDict(children)


# -- values ------------------------------------------------------------------------------------------------


def encode(value, where):
    """A Python value of the graph as JSON data. Plain values stay; the rest becomes a one-key object."""
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


def decode(value, nodes):
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


def describe_graph(graph_module, leaves=()):
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
    table = _Functions.load()
    nodes, modules, tensors = [], {}, {}
    named = dict(graph_module.named_modules())
    for node in graph_module.graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = table.name(node.target)
            if target is None:
                raise DecompError(node.name, "calls a function that data cannot name", got=str(node.target))
        elif node.op == "call_module":
            if target in leaves:
                modules[target] = {"type": "leaf", "class": type(named[target]).__qualname__}
            else:
                modules[target] = describe_module(named[target], target)
        elif node.op == "get_attr":
            parameters = dict(graph_module.named_parameters(remove_duplicate=False))
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


def build_graph(description, state, path="structure", leaves_of=None):
    """The traced network that :func:`describe_graph` described, with the given weights.

    Parameters
    ----------
    description : dict
    state : dict of str to torch.Tensor
        Must fill exactly the modules and free tensors of the description.
    leaves_of : torch.nn.Module, optional
        Holds, under their paths, the modules that the description leaves out.

    Returns
    -------
    torch.fx.GraphModule, in evaluation mode
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
    module.load_state_dict(state)
    return module.eval()


def _leaf(spec, path, leaves_of):
    """A copy of a module that was not written as data."""
    try:
        module = copy.deepcopy(leaves_of.get_submodule(path))
    except AttributeError as error:
        fix = "load it into an instance of the original model (into=)"
        raise FileError(path, f"only its class {spec['class']} has this part of the network", fix=fix) from error
    if type(module).__qualname__ != spec["class"]:
        raise FileError(path, f"must be a {spec['class']}", got=type(module).__qualname__)
    return module


def _build_nodes(described):
    table, graph, nodes = _Functions.load(), fx.Graph(), {}
    for item in described:
        op, target = item["op"], item["target"]
        args = tuple(decode(v, nodes) for v in item["args"])
        kwargs = {k: decode(v, nodes) for k, v in item["kwargs"].items()}
        if op == "call_function":
            function = table.named(target)
            if function is None:
                raise ValueError(f"function {target} is not allowed")
            if target == "builtins.getattr" and args[1] not in _ATTRIBUTES:
                raise ValueError(f"attribute {args[1]} is not allowed")
            target = function
        elif op == "call_method" and (target.startswith("_") or not hasattr(torch.Tensor, target)):
            raise ValueError(f"method {target} is not allowed")
        elif op not in ("placeholder", "call_module", "call_method", "get_attr", "output"):
            raise ValueError(f"operation {op} is unknown")
        nodes[item["name"]] = graph.create_node(op, target, args, kwargs, name=item["name"])
    graph.lint()
    return graph


def _attach(root, path, value):
    """Hang a module, parameter or buffer at a dotted path, making plain holders on the way."""
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


def _check_state(module, state, path):
    wanted = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted(set(wanted) | set(given)):
        if wanted.get(name) != given.get(name):
            raise FileError(
                path, f"weights and structure disagree at {name}: {wanted.get(name)} in the structure", given.get(name)
            )
