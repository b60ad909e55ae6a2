"""What a network is made of: its convolutions in execution order and the channel spaces between them.

A *channel space* is one channel dimension that is cut together: the layer that produces it, the layers
that read it, and whatever in between holds one number per channel. A space is named after its producer.
Here a space can be narrowed when exactly one layer produces it and exactly one reads it; everything else
keeps its width, with the reason.
"""

import copy
import operator
import traceback
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from decomp.errors import TraceError

# Modules and functions that treat every channel alike and by itself: a space runs through them.
_CHANNELWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
    nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_CARRIER_MODULES = (nn.BatchNorm2d, nn.BatchNorm1d, nn.PReLU)  # the same, with one number per channel inside
_CHANNELWISE_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, F.dropout, F.dropout2d,
    F.max_pool2d, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.upsample,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, torch.abs,
}  # fmt: skip
_CHANNELWISE_METHODS = {"relu", "relu_", "sigmoid", "tanh", "clamp", "clamp_", "contiguous", "abs", "float", "clone"}
_NO_OP_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)  # in evaluation
_ACTIVATIONS = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", F.relu: "relu", F.relu_: "relu", F.relu6: "relu6",
    torch.relu: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu",
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """One channel dimension: who writes it, who reads it, what lies between.

    Attributes
    ----------
    producer, consumer : str
        Module paths of the layer that writes the space and of the one that reads it.
    width : int
        Number of channels.
    carriers : tuple of str
        Paths of modules in between with one number per channel (batch normalisation, PReLU).
    repeat : int
        Columns of the consumer per channel: H·W through a flatten, otherwise 1.
    map_shape : tuple of int
        (H, W) of the flattened map; (1, 1) otherwise.
    """

    producer: str
    consumer: str
    width: int
    carriers: tuple = ()
    repeat: int = 1
    map_shape: tuple = (1, 1)


@dataclass
class Layer:
    """A convolution or linear layer of the network.

    Attributes
    ----------
    name : str
        Module path (``features.0``). ``node`` is its node in the traced graph.
    kind : {'conv', 'linear'}
    index : int
        Place in execution order among all convolution and linear layers.
    in_hw, out_hw : tuple of int
        Height and width of its input and output; (1, 1) for a linear layer.
    activation : str
        What its output goes through next: 'relu', 'relu6', 'identity' (straight into another layer, a sum
        or the output) or the name of another operation.
    input_space : Space or None
        The space it reads, where that can be narrowed.
    left_alone : dict of str to str
        For each of the steps 'spatial', 'channel', 'prune' that cannot be applied here, the reason.
    fitted : bool
        False where not even the weights may be fitted anew: grouped, called several times, of another class.
    """

    name: str
    node: str
    kind: str
    index: int
    in_channels: int
    out_channels: int
    kernel: tuple
    in_hw: tuple
    out_hw: tuple
    activation: str = "identity"
    input_space: Space | None = None
    left_alone: dict = field(default_factory=dict)
    fitted: bool = True

    def leave_alone(self, reason):
        """No step and no fit may touch this layer."""
        self.left_alone = dict.fromkeys(("spatial", "channel", "prune"), reason)
        self.input_space, self.fitted = None, False

    @property
    def max_spatial_rank(self):
        """Rank at which the spatial split is exact: min(c·kh, n·kw)."""
        return min(self.in_channels * self.kernel[0], self.out_channels * self.kernel[1])


def trace(model, name="model"):
    """Trace a copy of the model in evaluation mode.

    Returns
    -------
    torch.fx.GraphModule

    Raises
    ------
    TraceError
        With the place in the forward pass that could not be followed and the ways out.
    """
    model = copy.deepcopy(model).eval()
    tracer = fx.Tracer()  # modules of torch.nn are leaves, everything else is followed
    try:
        graph = tracer.trace(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise TraceError(
            name,
            f"the forward pass cannot be traced{_place(error)}: {reason}",
            fix="avoid control flow that depends on tensor values, or wrap that part in a module of its own",
        ) from error
    traced = fx.GraphModule(tracer.root, graph)
    graph.eliminate_dead_code()
    traced.recompile()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    needed = [node for node in placeholders if node.users or not node.args]
    if len(needed) != 1:
        raise TraceError(name, "the model must take one image tensor", got=f"{len(needed)} inputs")
    return traced


def _place(error):
    """' at file.py:line' of the deepest frame outside torch, or ''."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    if not frames:
        return ""
    return f" at {frames[-1].filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{frames[-1].lineno}"


class NetworkGraph:
    """The traced network with shapes: layers in execution order and the spaces between them.

    Parameters
    ----------
    module : torch.fx.GraphModule
        From :func:`trace`.
    input_shape : tuple of int
        (C, H, W) of one image.

    Attributes
    ----------
    layers : list of Layer
    """

    def __init__(self, module, input_shape, name="model"):
        self.module, self.input_shape, self.name = module, tuple(input_shape), name
        self._modules = dict(module.named_modules())
        self._shapes = self._propagate_shapes()
        self._calls = {}
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(node.target, []).append(node)
        self.layers = self._find_layers()
        self._by_name = {layer.name: layer for layer in self.layers}
        self.functional_convs = [
            node.name
            for node in module.graph.nodes
            if node.op == "call_function" and node.target in (F.conv2d, torch.conv2d)
        ]
        for layer in self.layers:
            self._link(layer)

    def layer(self, name):
        """The layer with this module path."""
        return self._by_name[name]

    def node(self, layer):
        """The graph node that calls this layer."""
        return self._calls[layer.name][0]

    def shape(self, node):
        """Output shape of a node for a batch of two, or None where it is not a tensor."""
        return self._shapes.get(node)

    # -- reading the graph -------------------------------------------------------------------------------

    def _propagate_shapes(self):
        weight = next(self.module.parameters(), None)
        like = weight if weight is not None else torch.zeros(())
        example = torch.zeros(2, *self.input_shape, device=like.device, dtype=like.dtype)
        try:
            with torch.no_grad():
                ShapeProp(self.module).propagate(example)
        except Exception as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            shape = "x".join(map(str, self.input_shape))
            raise TraceError(
                self.name, f"does not run at input size {shape}: {reason}", fix="give --input-size CxHxW"
            ) from error
        shapes = {}
        for node in self.module.graph.nodes:
            meta = node.meta.pop("tensor_meta", None)
            node.meta.pop("type", None)
            shape = getattr(meta, "shape", None)
            if shape is not None:
                shapes[node] = tuple(shape)
        return shapes

    def _find_layers(self):
        layers = []
        for node in self.module.graph.nodes:
            if node.op != "call_module" or node is not self._calls[node.target][0]:
                continue
            module = self._modules[node.target]
            if isinstance(module, nn.Conv2d):
                in_shape, out_shape = self._shapes[node.args[0]], self._shapes[node]
                layer = Layer(
                    node.target, node.name, "conv", len(layers), module.in_channels, module.out_channels,
                    tuple(module.kernel_size), in_shape[-2:], out_shape[-2:],
                )  # fmt: skip
            elif isinstance(module, nn.Linear) and len(self._shapes[node]) == 2:
                layer = Layer(
                    node.target, node.name, "linear", len(layers), module.in_features, module.out_features,
                    (1, 1), (1, 1), (1, 1),
                )  # fmt: skip
            else:
                continue
            layers.append(layer)
            self._judge(layer, module, node)
        return layers

    def _judge(self, layer, module, node):
        """Fill in the activation and why steps cannot be applied (the input space is judged later)."""
        layer.activation = self._activation_after(node)
        calls = len(self._calls[layer.name])
        if type(module) not in (nn.Conv2d, nn.Linear):
            layer.leave_alone(f"{type(module).__name__} is not a plain layer")
        elif calls > 1:
            layer.leave_alone(f"called {calls} times")
        elif layer.kind == "linear":
            layer.left_alone["spatial"] = "a linear layer has no kernel to split"
            layer.left_alone["channel"] = "linear layers are only narrowed with the channels they read"
        elif module.groups > 1:
            kind = "depthwise" if module.groups == module.in_channels else f"grouped ({module.groups} groups)"
            layer.leave_alone(f"{kind} convolution")
        elif 1 in layer.kernel:
            layer.left_alone["spatial"] = f"a {layer.kernel[0]}×{layer.kernel[1]} kernel has nothing to split"

    def _activation_after(self, node):
        users = list(node.users)
        while len(users) == 1 and self._is_no_op(users[0]):
            users = list(users[0].users)
        if len(users) != 1 or users[0].op == "output":
            return "identity"
        user = users[0]
        if user.op == "call_module":
            module = self._modules[user.target]
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                return "identity"
            return _ACTIVATIONS.get(type(module), type(module).__name__)
        if user.op in ("call_function", "call_method") and user.target in _ACTIVATIONS:
            return _ACTIVATIONS[user.target]
        if user.target in (operator.add, torch.add, torch.cat, operator.iadd):
            return "identity"
        return getattr(user.target, "__name__", str(user.target))

    def _is_no_op(self, node):
        return node.op == "call_module" and isinstance(self._modules[node.target], _NO_OP_MODULES)

    # -- spaces ------------------------------------------------------------------------------------------

    def _link(self, layer):
        """Walk back from the layer to whoever writes its input; set input_space or the reason why not."""
        if "prune" in layer.left_alone:
            return
        try:
            layer.input_space = self._walk_back(layer)
        except _NotPrunable as reason:
            layer.left_alone["prune"] = str(reason)

    def _walk_back(self, layer):
        node = self.node(layer).args[0]
        child = self.node(layer)
        carriers, map_shape = [], (1, 1)
        while True:
            self._require_single_reader(node, child)
            if node.op == "placeholder":
                raise _NotPrunable("reads the image itself")
            producer = self._by_name.get(node.target) if node.op == "call_module" else None
            if producer is not None and self.node(producer) is node:
                return self._space(producer, layer, tuple(carriers), map_shape)
            if node.op == "call_module" and isinstance(self._modules[node.target], _CARRIER_MODULES):
                if len(self._calls[node.target]) > 1:
                    raise _NotPrunable(f"{node.target} is called several times")
                carriers.append(node.target)
            elif self._is_flatten(node):
                map_shape = self._flatten_map(node)
            elif not self._is_channelwise(node):
                raise _NotPrunable(f"its input comes through {_describe(node)}")
            child, node = node, node.args[0]

    def _space(self, producer, layer, carriers, map_shape):
        if not producer.fitted:
            raise _NotPrunable(f"its producer {producer.name} is left alone: {producer.left_alone['prune']}")
        if map_shape == (1, 1) and layer.kind == "linear" and producer.kind == "conv":
            # A map of one pixel, however it was flattened.
            if producer.out_channels != layer.in_channels:
                raise _NotPrunable("the columns of its input are not one per channel")
        repeat = map_shape[0] * map_shape[1]
        if producer.out_channels * repeat != layer.in_channels:
            raise _NotPrunable("the columns of its input are not whole channels")
        return Space(producer.name, layer.name, producer.out_channels, carriers, repeat, map_shape)

    def _require_single_reader(self, node, child):
        others = [user for user in node.users if user is not child and not _reads_batch_size(user)]
        if others:
            raise _NotPrunable(f"its input is also read by {_describe(others[0])}")

    def _is_channelwise(self, node):
        if node.op == "call_module":
            return isinstance(self._modules[node.target], _CHANNELWISE_MODULES)
        if node.op == "call_function" and node.target in _CHANNELWISE_FUNCTIONS:
            return True
        if node.op == "call_method" and node.target in _CHANNELWISE_METHODS:
            return True
        return _is_global_mean(node)

    def _is_flatten(self, node):
        if node.op == "call_module" and isinstance(self._modules[node.target], nn.Flatten):
            module = self._modules[node.target]
            if (module.start_dim, module.end_dim) != (1, -1):
                raise _NotPrunable("its input comes through a flatten that mixes other axes")
            return True
        if node.target in (torch.flatten, "flatten"):
            return True
        return node.op == "call_method" and node.target in ("view", "reshape")

    def _flatten_map(self, node):
        """(H, W) of the map that a flatten, view or reshape lays out channel by channel."""
        before, after = self._shapes.get(node.args[0]), self._shapes.get(node)
        if before is None or after is None:
            raise _NotPrunable("the shapes around a reshape are unknown")
        if before == after:
            return (1, 1)
        flat = len(before) == 4 and after == (before[0], before[1] * before[2] * before[3])
        if not flat:
            raise _NotPrunable(f"its input is reshaped from {before[1:]} to {after[1:]}")
        if node.op == "call_method" and node.target in ("view", "reshape"):
            last = node.args[-1][-1] if isinstance(node.args[-1], (tuple, list)) else node.args[-1]
            if last != -1:
                raise _NotPrunable(f"its input is reshaped to a fixed size of {last}; write -1 or flatten(1)")
        return tuple(before[2:])


class _NotPrunable(Exception):
    """Why a channel space keeps its width."""


def _reads_batch_size(node):
    """x.size(0) or x.shape[0]: a reader that no narrowing of channels can disturb."""
    if node.op == "call_method" and node.target == "size":
        return len(node.args) > 1 and node.args[1] == 0
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    return False


def _is_global_mean(node):
    if node.target not in ("mean", torch.mean):
        return False
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    axes = [axes] if isinstance(axes, int) else axes
    return axes is not None and set(axes) in ({2, 3}, {-1, -2})


def _describe(node):
    if node.op == "output":
        return "the network's output"
    if node.op == "call_module":
        return str(node.target)
    return f"'{getattr(node.target, '__name__', node.target)}'"
