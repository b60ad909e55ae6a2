"""Graph of a traced network: its layers in execution order, and the steps that apply to each.

Layers are found and judged here; which channels can only be removed together is found by
:mod:`decomp.graph.channel_spaces`. A layer's input can be narrowed in one of two ways. Where exactly one layer writes
the channels and this layer alone reads them, the channels are removed, with everything in between. Otherwise the layer
may read a chosen subset (a *sampler*), and the layers that write the channels keep them for the others.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.errors import TraceError
from decomp.graph.channel_numbers import Use
from decomp.graph.channel_spaces import ChannelSpace, Spaces
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.folded_maps import MapsOfCall, find_maps
from decomp.graph.layer import DEPTHWISE, InputSpace, Layer, every_step
from decomp.graph.operations import ACTIVATIONS, NO_OP_MODULES, SUMS
from decomp.graph.weight_reads import unchangeable
from decomp.modules.convolution import CONVOLUTIONS, Convolution, pair
from decomp.modules.copies import deep_copy

MOST_MAPS = 64  # maps for each image in one call, each with positions and responses of its own
FUNCTIONAL_CONVOLUTIONS = (F.conv2d, torch.conv2d, F.conv_transpose2d, torch.conv_transpose2d)


class NetworkGraph:
    """The traced network with shapes: layers in execution order and the channel spaces between them.

    Parameters
    ----------
    module : torch.fx.GraphModule
        From :func:`decomp.graph.tracing.trace`.
    input_shape : sequence of int
        (C, H, W) of one image.
    name : str
        For messages.
    fitting : decomp.graph.fitting_limits.FittingLimits, optional
        Excludes layers by their size, before they are linked: a layer that is not fitted cannot lose outputs to its
        reader either. Without it, no layer is excluded.
    sampler : bool
        Layers whose input cannot be narrowed may read a subset of it.

    Attributes
    ----------
    layers : tuple of Layer
        Complete and unchangeable, like the graph itself; another rule is another graph.
    spaces : decomp.graph.channel_spaces.Spaces
    functional_convs : tuple of str
        Nodes of convolutions that are called as functions; they are not layers.

    Raises
    ------
    TraceError
        The network does not run on images of this shape.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        input_shape: Sequence[int],
        name: str = "model",
        *,
        fitting: FittingLimits | None = None,
        sampler: bool = True,
    ):
        self.module, self.input_shape, self.name = module, tuple(input_shape), name
        self.fitting, self.sampler = fitting, sampler
        self._modules = dict(module.named_modules())
        self._place = {node: i for i, node in enumerate(module.graph.nodes)}
        self._shapes = _propagate_shapes(module, self.input_shape, name)
        self._calls: dict[str, list[fx.Node]] = {}
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(node.target, []).append(node)
        self.spaces = Spaces(module, self._shapes)
        self.functional_convs = tuple(
            node.name
            for node in module.graph.nodes
            if node.op == "call_function" and node.target in FUNCTIONAL_CONVOLUTIONS
        )
        self._shortcuts: dict[str, dict[fx.Node, fx.Node]] = {}
        self._maps = find_maps(module, self.input_shape, self._shapes, self._calls_of_layers())
        found = self._find_layers()
        if fitting is not None:
            found = [_without(layer, fitting.excluded_steps(layer)) for layer in found]
        self.layers = self._linked(found)
        self._by_name = {layer.name: layer for layer in self.layers}

    def rebuilt(self, module: fx.GraphModule | None = None, *, sampler: bool | None = None) -> NetworkGraph:
        """The graph of the network as it is now, or of another one, by the rules of this graph.

        Parameters
        ----------
        module : torch.fx.GraphModule, optional
            For images of the same shape.
        sampler : bool, optional
            In place of the rule of this graph.
        """
        return NetworkGraph(
            self.module if module is None else module, self.input_shape, self.name, fitting=self.fitting,
            sampler=self.sampler if sampler is None else sampler,
        )  # fmt: skip

    def copied(self, *, sampler: bool | None = None) -> NetworkGraph:
        """The graph of a copy of the network, which can be changed while this one stays; see `rebuilt`."""
        return self.rebuilt(deep_copy(self.module), sampler=sampler)

    def layer(self, name: str) -> Layer:
        """The layer with this module path."""
        return self._by_name[name]

    def node(self, layer: Layer) -> fx.Node:
        """The graph node that calls this layer first."""
        return self._calls[layer.name][0]

    def calls(self, layer: Layer) -> Sequence[fx.Node]:
        """The graph nodes that call this layer, in execution order."""
        return self._calls[layer.name]

    def maps(self, call: fx.Node) -> MapsOfCall:
        """The rows of the batch that belong to one image, at a call of a layer that is fitted."""
        return self._maps[call]

    def shortcuts(self, layer: Layer) -> dict[fx.Node, fx.Node]:
        """For each call of a layer that recovers, the node whose value is added to its output; otherwise empty."""
        return {} if layer.recovers is None else self._shortcuts[layer.name]

    def own_space(self, layer: Layer) -> ChannelSpace:
        """The channel space that this layer alone reads; only where its input space is not sampled."""
        (space,) = self.spaces.read_by(layer.name)
        return space

    def columns_kept(self, layer: Layer, keep: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
        """For every node that loses channels when a layer's own space keeps only some: the remaining ones.

        Parameters
        ----------
        layer : Layer
        keep : torch.LongTensor
            Ascending channels of the layer's own space that stay.
        """
        return self.spaces.kept_columns(self.spaces.alive({self.own_space(layer).name: keep.tolist()}))

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Output shape of a node for a batch of two, or None where it is not a tensor."""
        return self._shapes.get(node)

    # -- reading the graph -------------------------------------------------------------------------------

    def _calls_of_layers(self) -> list[fx.Node]:
        """The calls of all convolution and linear modules."""
        layers = (path for path in self._calls if isinstance(self._modules[path], (*CONVOLUTIONS, nn.Linear)))
        return [call for path in layers for call in self._calls[path]]

    def _find_layers(self) -> list[Layer]:
        """All convolution and linear layers, judged by themselves: not yet by whom they read and by their size."""
        layers, fixed = list[Layer](), unchangeable(self.module)
        for path, calls in self._calls.items():
            node, module = calls[0], self._modules[path]
            activations = {self._activation_after(call) for call in calls}
            activation = activations.pop() if len(activations) == 1 else "several"
            times = {call: self._maps.get(call, MapsOfCall()).n for call in calls}
            if isinstance(module, CONVOLUTIONS):
                first, *more = [self._sizes(call) for call in calls for _ in range(times[call])]
                layer = Layer(
                    path, node.name, "conv", len(layers), module.in_channels, module.out_channels,
                    pair(module.kernel_size), *first, activation, more_calls=tuple(more),
                    transposed=isinstance(module, nn.ConvTranspose2d),
                )  # fmt: skip
            elif isinstance(module, nn.Linear) and all(len(self._shapes[call]) == 2 for call in calls):
                layer = Layer(
                    path, node.name, "linear", len(layers), module.in_features, module.out_features,
                    (1, 1), (1, 1), (1, 1), activation, more_calls=(((1, 1), (1, 1)),) * (sum(times.values()) - 1),
                )  # fmt: skip
            else:
                continue
            layer = _without(layer, _steps_ruled_out(module))
            if not all(call in self._maps for call in calls):
                layer = _without(layer, every_step("the rows of its batch do not belong to one image each"))
            elif max(times.values()) > MOST_MAPS:
                layer = _without(
                    layer, every_step(f"it reads {max(times.values())} maps for each image, more than {MOST_MAPS}")
                )
            if any(len(call.args) > 1 or call.kwargs for call in calls):
                layer = _without(layer, every_step("forward gives it more than its input, such as an output size"))
            if path in fixed:
                layer = _without(layer, every_step(fixed[path]))
            layers.append(replace(layer, depthwise=set(layer.left_alone.values()) == {DEPTHWISE}))
        return layers

    def _sizes(self, call: fx.Node) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the input and of the output of a convolution's call."""
        return pair(self._shapes[call.all_input_nodes[0]][-2:]), pair(self._shapes[call][-2:])

    def _module_called(self, node: fx.Node) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _users(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read a value, past modules that do nothing."""
        users = list(node.users)
        while len(users) == 1 and isinstance(self._module_called(users[0]), NO_OP_MODULES):
            users = list(users[0].users)
        return users

    def _before(self, source: fx.Node, node: fx.Node) -> fx.Node:
        """The same value at a node before ``node``: a shortcut that is an nn.Identity may be called after it."""
        while self._place[source] > self._place[node] and isinstance(self._module_called(source), NO_OP_MODULES):
            source = source.all_input_nodes[0]
        return source

    def _activation_after(self, node: fx.Node) -> str:
        users = self._users(node)
        if len(users) != 1 or users[0].op == "output":
            return "identity"
        user, module = users[0], self._module_called(users[0])
        if module is not None:
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
                return "identity"
            return ACTIVATIONS.get(type(module), type(module).__name__)
        if user.op in ("call_function", "call_method") and user.target in ACTIVATIONS:
            return ACTIVATIONS[user.target]
        if user.target in (operator.add, torch.add, torch.cat, operator.iadd):
            return "identity"
        return getattr(user.target, "__name__", str(user.target))

    def _recovers(self, layer: Layer) -> str | None:
        """Name of the node that is added to the layer's output at its first call, if there is one at each call."""
        found = {call: self._shortcut(call) for call in self.calls(layer)} if layer.fitted else {}
        shortcuts = {call: node for call, node in found.items() if node is not None}
        if not shortcuts or len(shortcuts) < len(found):
            return None
        self._shortcuts[layer.name] = shortcuts
        return shortcuts[self.node(layer)].name

    def _shortcut(self, node: fx.Node) -> fx.Node | None:
        """The node that is added to the output of a layer's call, if its value is there before the layer runs."""
        users = self._users(node)
        if len(users) != 1 or users[0].target not in SUMS or users[0].kwargs:
            return None
        total = users[0]
        others = [s for s in total.args if isinstance(s, fx.Node) and s is not node and s in self._shapes]
        behind = {node}
        while len(others) > 1:  # the layer's own output, behind modules that do nothing
            behind = {user for one in behind for user in one.users}
            others = [source for source in others if source not in behind]
        others = [self._before(source, node) for source in others]
        same = [o for o in others if self._shapes[o] == self._shapes[node] == self._shapes[total]]
        return same[0] if same and self._place[same[0]] < self._place[node] else None

    # -- input spaces ------------------------------------------------------------------------------------

    def _linked(self, layers: Sequence[Layer]) -> tuple[Layer, ...]:
        """The layers with the channels that each may drop of its input, and the shortcut it makes up for."""
        by_name = {layer.name: layer for layer in layers}
        linked = []
        for layer in layers:
            space, left_alone = None, dict(layer.left_alone)
            if "prune" not in left_alone:
                found = self._private(layer, by_name)
                if isinstance(found, InputSpace):
                    space = found
                elif self.sampler and layer.kind == "conv" and "image" not in found and layer.in_channels > 1:
                    space = InputSpace(None, layer.name, layer.in_channels)
                else:
                    left_alone["prune"] = found
            linked.append(replace(layer, input_space=space, left_alone=left_alone, recovers=self._recovers(layer)))
        return tuple(linked)

    def _private(self, layer: Layer, by_name: Mapping[str, Layer]) -> InputSpace | str:
        """The input space that this layer alone reads and one layer alone writes; otherwise the reason."""
        use = self.spaces.use(layer.name)
        if use is None:
            return "the channels of its input are not known"
        read = self.spaces.read_by(layer.name)
        frozen = next((space.frozen for space in read if space.frozen), None)
        if frozen is not None:
            return "reads the image itself" if "image" in frozen else f"its input {frozen}"
        space = read[0]
        if len(read) > 1:
            return f"its input joins {len(read)} channel spaces"
        if space.consumers != (layer.name,):
            others = [name for name in space.consumers if name != layer.name]
            return f"its input is also read by {others[0]}"
        if len(space.producers) != 1:
            return f"its input is written by {len(space.producers)} layers ({', '.join(space.producers[:3])})"
        (producer,) = space.producers
        written = by_name.get(producer)
        if written is None or not written.fitted:
            why = "is not a plain layer" if written is None else written.left_alone["prune"]
            return f"its producer {producer} is left alone: {why}"
        if not self._reads_whole_channels(use, space) or not self._writes_in_order(producer, space):
            return "the columns of its input are not whole channels in order"
        repeat = len(use.reads) // space.width
        map_shape = use.map_shape if use.map_shape[0] * use.map_shape[1] == repeat else (repeat, 1)
        return InputSpace(producer, layer.name, space.width, space.carriers, repeat, map_shape)

    def _reads_whole_channels(self, use: Use, space: ChannelSpace) -> bool:
        """Whether a layer's columns are the channels of a space in order, each as often as the others."""
        if len(use.reads) % space.width:
            return False
        columns = self.spaces.roots_of(use.reads).reshape(space.width, -1)
        return bool((columns == space.roots[:, None]).all())

    def _writes_in_order(self, producer: str, space: ChannelSpace) -> bool:
        use = self.spaces.use(producer)
        return use is not None and np.array_equal(self.spaces.roots_of(use.writes), space.roots)


def _propagate_shapes(module: fx.GraphModule, input_shape: Sequence[int], name: str) -> dict[fx.Node, tuple[int, ...]]:
    """Output shape of every node that gives a tensor, for a batch of two."""
    weight = next(module.parameters(), None)
    like = weight if weight is not None else torch.zeros(())
    example = torch.zeros(2, *input_shape, device=like.device, dtype=like.dtype)
    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                shapes[n] = tuple(value.shape)
            return value

    try:
        with torch.no_grad():
            Shapes(module).run(example)
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        size = "x".join(map(str, input_shape))
        raise TraceError(
            name, f"does not run at input size {size}: {reason}", fix="give another input size, CxHxW"
        ) from error
    return shapes


def _steps_ruled_out(module: Convolution | nn.Linear) -> dict[str, str]:
    """Steps that a layer's class and its kernel rule out, each with the reason."""
    if type(module) not in (*CONVOLUTIONS, nn.Linear):
        return every_step(f"{type(module).__name__} is not a plain layer")
    if isinstance(module, nn.Linear):
        return {
            "spatial": "a linear layer has no kernel to split",
            "channel": "linear layers are only narrowed with the channels they read",
        }
    if module.groups > 1:
        kind = DEPTHWISE if module.groups == module.in_channels else f"grouped ({module.groups} groups) convolution"
        return every_step(f"transposed {kind}" if isinstance(module, nn.ConvTranspose2d) else kind)
    if 1 in module.kernel_size:
        return {"spatial": f"a {module.kernel_size[0]}×{module.kernel_size[1]} kernel has nothing to split"}
    return {}


def _without(layer: Layer, excluded: Mapping[str, str]) -> Layer:
    """The layer without these steps; one without any step is not fitted either."""
    left_alone = {**layer.left_alone, **excluded}
    return replace(layer, left_alone=left_alone, fitted=layer.fitted and not every_step("").keys() <= excluded.keys())
