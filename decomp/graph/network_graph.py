"""What a network is made of: its convolutions in execution order, and what can be done with each.

Here layers are found and judged; which channels stand or fall together is known by
:mod:`decomp.graph.channel_spaces`. A layer's
input can be narrowed in one of two ways. Where exactly one layer writes the channels and this layer alone reads
them, the channels go altogether, with everything in between. Otherwise the layer may read a chosen subset
(a *sampler*), and whoever writes the channels keeps them for the others.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from decomp.errors import TraceError
from decomp.graph.channel_spaces import Spaces
from decomp.graph.fitting_limits import FittingLimits
from decomp.graph.layer import InputSpace, Layer, every_step
from decomp.graph.operations import ACTIVATIONS, NO_OP_MODULES, SUMS


class NetworkGraph:
    """The traced network with shapes: layers in execution order and the spaces between them.

    Parameters
    ----------
    module : torch.fx.GraphModule
        From :func:`decomp.graph.tracing.trace`.
    input_shape : tuple of int
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
        self._modules = dict(module.named_modules())
        self._nodes = {node.name: node for node in module.graph.nodes}
        self._place = {node: i for i, node in enumerate(module.graph.nodes)}
        self._shapes = self._propagate_shapes()
        self._calls: dict[str, list[fx.Node]] = {}
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(node.target, []).append(node)
        self.spaces = Spaces(module, self._shapes)
        self.functional_convs = [
            node.name
            for node in module.graph.nodes
            if node.op == "call_function" and node.target in (F.conv2d, torch.conv2d)
        ]
        found = self._find_layers()
        if fitting is not None:
            found = [_without(layer, fitting.excluded_steps(layer)) for layer in found]
        self.layers = self._linked(found, sampler)
        self._by_name = {layer.name: layer for layer in self.layers}

    def layer(self, name):
        """The layer with this module path."""
        return self._by_name[name]

    def node(self, layer):
        """The graph node that calls this layer."""
        return self._calls[layer.name][0]

    def shortcut_node(self, layer):
        """The node whose value is added to the layer's output, or None."""
        return None if layer.recovers is None else self._nodes[layer.recovers]

    def own_space(self, layer):
        """The channel space that this layer alone reads; only where its input space is not sampled."""
        (space,) = self.spaces.read_by(layer.name)
        return space

    def columns_kept(self, layer, keep):
        """{node: places along axis 1 that stay} when a layer's own space keeps these channels."""
        return self.spaces.kept_columns(self.spaces.alive({self.own_space(layer).name: keep.cpu().numpy()}))

    def shape(self, node):
        """Output shape of a node for a batch of two, or None where it is not a tensor."""
        return self._shapes.get(node)

    # -- reading the graph -------------------------------------------------------------------------------

    def _propagate_shapes(self):
        weight = next(self.module.parameters(), None)
        like = weight if weight is not None else torch.zeros(())
        example = torch.zeros(2, *self.input_shape, device=like.device, dtype=like.dtype)
        try:
            # Where the network does not run, torch prints the whole traceback beside raising it.
            with torch.no_grad(), redirect_stderr(StringIO()):
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

    def _find_layers(self) -> list[Layer]:
        """All convolution and linear layers, judged by themselves: not yet by whom they read and by their size."""
        layers: list[Layer] = []
        for node in self.module.graph.nodes:
            if node.op != "call_module" or node is not self._calls[node.target][0]:
                continue
            module = self._modules[node.target]
            if isinstance(module, nn.Conv2d):
                sizes = (module.in_channels, module.out_channels, tuple(module.kernel_size))
                maps = (self._shapes[node.args[0]][-2:], self._shapes[node][-2:])
            elif isinstance(module, nn.Linear) and len(self._shapes[node]) == 2:
                sizes, maps = (module.in_features, module.out_features, (1, 1)), ((1, 1), (1, 1))
            else:
                continue
            kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
            layer = Layer(node.target, node.name, kind, len(layers), *sizes, *maps, self._activation_after(node))
            layers.append(_without(layer, _steps_ruled_out(module, len(self._calls[node.target]))))
        return layers

    def _users(self, node):
        """Who reads a value, past modules that do nothing."""
        users = list(node.users)
        while len(users) == 1 and users[0].op == "call_module":
            if not isinstance(self._modules[users[0].target], NO_OP_MODULES):
                break
            users = list(users[0].users)
        return users

    def _before(self, source, node):
        """The same value where it is there before ``node``: a shortcut that is an nn.Identity is called behind it."""
        while self._place[source] > self._place[node] and source.op == "call_module":
            if not isinstance(self._modules[source.target], NO_OP_MODULES):
                break
            source = source.args[0]
        return source

    def _activation_after(self, node):
        users = self._users(node)
        if len(users) != 1 or users[0].op == "output":
            return "identity"
        user = users[0]
        if user.op == "call_module":
            module = self._modules[user.target]
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                return "identity"
            return ACTIVATIONS.get(type(module), type(module).__name__)
        if user.op in ("call_function", "call_method") and user.target in ACTIVATIONS:
            return ACTIVATIONS[user.target]
        if user.target in (operator.add, torch.add, torch.cat, operator.iadd):
            return "identity"
        return getattr(user.target, "__name__", str(user.target))

    def _shortcut(self, layer):
        """Name of the node that is added to the layer's output, if its value is there before the layer runs."""
        node = self._calls[layer.name][0]
        users = self._users(node)
        if not layer.fitted or len(users) != 1 or users[0].target not in SUMS or users[0].kwargs:
            return None
        total = users[0]
        others = [source for source in total.args if source is not node and self._shapes.get(source) is not None]
        behind = {node}
        while len(others) > 1:  # the layer's own output, behind modules that do nothing
            behind = {user for one in behind for user in one.users}
            others = [source for source in others if source not in behind]
        others = [self._before(source, node) for source in others]
        same = [o for o in others if self._shapes[o] == self._shapes[node] == self._shapes[total]]
        return same[0].name if same and self._place[same[0]] < self._place[node] else None

    # -- spaces ------------------------------------------------------------------------------------------

    def _linked(self, layers: list[Layer], sampler: bool) -> tuple[Layer, ...]:
        """The layers with what each may drop of its input and the shortcut it makes up for."""
        by_name = {layer.name: layer for layer in layers}
        linked = []
        for layer in layers:
            space, left_alone = None, dict(layer.left_alone)
            if "prune" not in left_alone:
                space, reason = self._private(layer, by_name)
                if space is None and sampler and layer.kind == "conv" and "image" not in reason:
                    space = InputSpace(None, layer.name, layer.in_channels) if layer.in_channels > 1 else None
                if space is None:
                    left_alone["prune"] = reason
            linked.append(replace(layer, input_space=space, left_alone=left_alone, recovers=self._shortcut(layer)))
        return tuple(linked)

    def _private(self, layer, by_name):
        """The input space that this layer alone reads and one layer alone writes; or None and the reason."""
        use = self.spaces.use(layer.name)
        if use is None:
            return None, "the channels of its input are not known"
        read = self.spaces.read_by(layer.name)
        frozen = next((space.frozen for space in read if space.frozen), None)
        if frozen is not None:
            return None, "reads the image itself" if "image" in frozen else f"its input {frozen}"
        space = read[0]
        if len(read) > 1:
            return None, f"its input joins {len(read)} channel spaces"
        if space.consumers != (layer.name,):
            others = [name for name in space.consumers if name != layer.name]
            return None, f"its input is also read by {others[0]}"
        if len(space.producers) != 1:
            return None, f"its input is written by {len(space.producers)} layers ({', '.join(space.producers[:3])})"
        (producer,) = space.producers
        written = by_name.get(producer)
        if written is None or not written.fitted:
            why = "is not a plain layer" if written is None else written.left_alone["prune"]
            return None, f"its producer {producer} is left alone: {why}"
        repeat = len(use.reads) // space.width
        columns = self.spaces.roots_of(use.reads).reshape(space.width, -1) if repeat else None
        whole = repeat and len(use.reads) == space.width * repeat and (columns == space.roots[:, None]).all()
        whole = whole and np.array_equal(self.spaces.roots_of(self.spaces.use(producer).writes), space.roots)
        if not whole:
            return None, "the columns of its input are not whole channels in order"
        map_shape = use.map_shape if use.map_shape[0] * use.map_shape[1] == repeat else (repeat, 1)
        return InputSpace(producer, layer.name, space.width, space.carriers, repeat, map_shape), None


def _steps_ruled_out(module: nn.Conv2d | nn.Linear, n_calls: int) -> dict[str, str]:
    """Steps that a layer's class, its calls and its kernel rule out, each with the reason."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        return every_step(f"{type(module).__name__} is not a plain layer")
    if n_calls > 1:
        return every_step(f"called {n_calls} times")
    if isinstance(module, nn.Linear):
        return {
            "spatial": "a linear layer has no kernel to split",
            "channel": "linear layers are only narrowed with the channels they read",
        }
    if module.groups > 1:
        kind = "depthwise" if module.groups == module.in_channels else f"grouped ({module.groups} groups)"
        return every_step(f"{kind} convolution")
    if 1 in module.kernel_size:
        return {"spatial": f"a {module.kernel_size[0]}×{module.kernel_size[1]} kernel has nothing to split"}
    return {}


def _without(layer: Layer, excluded: Mapping[str, str]) -> Layer:
    """The layer without these steps; one without any step is not fitted either."""
    left_alone = {**layer.left_alone, **excluded}
    return replace(layer, left_alone=left_alone, fitted=layer.fitted and not every_step("").keys() <= excluded.keys())
