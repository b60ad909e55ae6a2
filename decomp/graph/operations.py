"""Tables of operations by their effect on channels, and helpers that read one graph node."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

# Modules and functions that treat every channel in the same way and by itself.
CHANNELWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
CARRIER_MODULES = (nn.BatchNorm2d, nn.BatchNorm1d, nn.PReLU)  # the same, with parameters for every channel
CHANNELWISE_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, F.dropout, F.dropout2d,
    F.max_pool2d, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.upsample,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.neg, torch.exp, torch.sqrt,
    operator.neg, operator.pow,
}  # fmt: skip
CHANNELWISE_METHODS = {
    "relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "contiguous", "abs", "float", "clone", "neg", "exp", "sqrt",
    "pow", "sigmoid_", "detach",
}  # fmt: skip
# Two tensors met entry by entry: their channels can only be removed together.
UNITING: dict[Any, str] = {
    operator.add: "add", operator.iadd: "add", torch.add: "add", "add": "add", "add_": "add",
    operator.sub: "sub", operator.isub: "sub", torch.sub: "sub", "sub": "sub", "sub_": "sub",
    operator.mul: "mul", operator.imul: "mul", torch.mul: "mul", "mul": "mul", "mul_": "mul",
    operator.truediv: "div", operator.itruediv: "div", torch.div: "div", "div": "div", "div_": "div",
    torch.maximum: "maximum", torch.minimum: "minimum",
}  # fmt: skip
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
NO_OP_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)  # in evaluation
ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", F.relu: "relu", F.relu_: "relu", F.relu6: "relu6",
    torch.relu: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu",
}  # fmt: skip


def describe(node: fx.Node) -> str:
    """Readable name of a node: the path of its module, or the name of the function it calls."""
    if node.op == "output":
        return "the network's output"
    if node.op == "call_module":
        return str(node.target)
    return f"'{getattr(node.target, '__name__', node.target)}'"


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name; anything that a graph can hold."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def axes_of(value: object, n_axes: int) -> set[int] | None:
    """One axis or several as a set of numbers from 0 on; None where they are not known from the graph alone."""
    axes = [value] if isinstance(value, int) else value
    if not isinstance(axes, (tuple, list)) or not all(isinstance(axis, int) for axis in axes):
        return None
    return {axis % n_axes for axis in axes}


def is_reduction(node: fx.Node) -> bool:
    """A mean, sum or extreme value over axes, as a function or a method."""
    return node.target in ("mean", torch.mean, "sum", torch.sum, "amax", torch.amax, "amin", torch.amin)


def is_channelwise(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether a call treats every channel in the same way and by itself, whatever its other arguments are."""
    if node.op == "call_module":
        return isinstance(module, CHANNELWISE_MODULES)
    if node.op == "call_method":
        return node.target in CHANNELWISE_METHODS
    return node.op == "call_function" and node.target in CHANNELWISE_FUNCTIONS
