"""Forward pass of one module of a traced network, as data and as a module for the original class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from decomp.errors import DecompError, FileError
from decomp.graph.serialise import build_graph, build_module, decode, describe_graph, describe_module, encode

#: Type of a description that holds a graph of calls.
FORWARD = "calls"


def module_stack(node: fx.Node) -> list[str]:
    """Paths of the modules whose forward was running when a node was recorded, the deepest last."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]


def describe_forward(network: fx.GraphModule, owner: str) -> dict[str, Any] | None:
    """The calls that the forward of one module makes, as data for :func:`build_forward`.

    Parameters
    ----------
    network : torch.fx.GraphModule
        With the paths of modules at its nodes, as traces have them.
    owner : str
        Path of the module.

    Returns
    -------
    dict or None
        None where the forward has several inputs or outputs, or reads what is not within the module: then no other
        module can be put in its place. So it is for the network as a whole.
    """
    if not owner:
        return None
    holder = network.get_submodule(owner)
    if type(holder) is not nn.Module:
        return describe_module(holder, owner)
    nodes = _first_call(network, owner)
    inside = set(nodes)
    inputs = {before for node in nodes for before in node.all_input_nodes if before not in inside}
    results = [node for node in nodes if node.op != "get_attr"]
    outputs = [node for node in results if any(user not in inside for user in node.users)]
    held = [node for node in nodes if node.op in ("call_module", "get_attr")]
    names = {node: str(node.target).removeprefix(f"{owner}.") for node in held}
    if len(inputs) != 1 or len(outputs) != 1:
        return None
    if any(names[n] == n.target and not str(n.target).startswith("_tensor_constant") for n in held):
        return None
    graph = fx.Graph()
    copies = {inputs.pop(): graph.placeholder("x")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].target = names.get(node, node.target)
    graph.output(copies[outputs[0]])
    try:
        part = fx.GraphModule({names[node]: _attribute(network, str(node.target)) for node in held}, graph)
        described, state = describe_graph(part), part.state_dict()
    except DecompError:  # then the network as a whole has no description either, which is reported when it is written
        return None
    tensors = {
        # Constants of the code are in the description, as they are no weights of the class.
        name: [encode(state[name].dtype, owner), list(state[name].shape)]
        + ([state[name].flatten().tolist()] if name.startswith("_tensor_constant") else [])
        for name in described["tensors"]
    }
    return {"type": FORWARD, "graph": described, "tensors": tensors}


def build_forward(spec: Mapping[str, Any], path: str) -> nn.Module:
    """A module from what :func:`describe_forward` gave, with weights that are still to be loaded.

    Raises
    ------
    FileError
        For a description that is broken or names code that is not allowed.
    """
    if spec.get("type") != FORWARD:
        return build_module(spec, path)
    try:
        state = {}
        for name, (dtype, shape, *values) in spec["tensors"].items():
            state[name] = torch.zeros(shape, dtype=decode(dtype, {}))
            if values:
                state[name].copy_(torch.tensor(values[0]).view(shape))
        for name, module in spec["graph"]["modules"].items():
            state |= {f"{name}.{key}": value for key, value in build_module(module, name).state_dict().items()}
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"the description of its calls is broken ({error})") from error
    return build_graph(spec["graph"], state, path)


def _attribute(network: fx.GraphModule, path: str) -> Any:
    holder, _, name = path.rpartition(".")
    return getattr(network.get_submodule(holder), name)


def _first_call(network: fx.GraphModule, owner: str) -> list[fx.Node]:
    """The nodes of the first call of a module, with the parameters that they read."""
    nodes = [node for node in network.graph.nodes if owner in module_stack(node) and node.op != "get_attr"]
    calls = [_call(node, owner) for node in nodes]
    first = [node for node, call in zip(nodes, calls) if call == calls[0]]
    read = {before for node in first for before in node.all_input_nodes if before.op == "get_attr"}
    return [node for node in network.graph.nodes if node in read or node in set(first)]


def _call(node: fx.Node, owner: str) -> tuple[str, ...]:
    """The calls that led to a node, down to that of a module: a second call has another number in its name."""
    keys: list[str] = []
    for key, (path, _) in node.meta["nn_module_stack"].items():
        keys.append(str(key))
        if path == owner:
            break
    return tuple(keys)
