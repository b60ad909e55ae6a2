"""Rows at points: run part of a network, gather patches and responses; nothing is left on the model."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from decomp.surgery import geometry


def draw_positions(n_images, n_points, out_hw, generator):
    """Output positions for every image, drawn without replacement, borders included.

    Parameters
    ----------
    n_images, n_points : int
        A grid of fewer than ``n_points`` places gives all its places.
    out_hw : tuple of int
        Height and width of the output grid.
    generator : torch.Generator

    Returns
    -------
    torch.Tensor of int32, shape (n_images, min(n_points, H·W), 2)
        (row, column), in increasing order within an image.
    """
    height, width = out_hw
    n_places = height * width
    n_points = min(n_points, n_places)
    if n_points == n_places:
        flat = torch.arange(n_places).expand(n_images, n_places)
    elif n_points * 8 <= n_places:
        flat = _draw_sparse(n_images, n_points, n_places, generator)
    else:
        flat = torch.rand(n_images, n_places, generator=generator).argsort(dim=1)[:, :n_points]
    flat = flat.sort(dim=1).values
    return torch.stack((flat // width, flat % width), dim=2).to(torch.int32)


def _draw_sparse(n_images, n_points, n_places, generator):
    """Distinct places by rejection: images with a repeated place are drawn again."""
    flat = torch.randint(n_places, (n_images, n_points), generator=generator)
    while True:
        ordered = flat.sort(dim=1).values
        bad = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero().flatten()
        if len(bad) == 0:
            return flat
        flat[bad] = torch.randint(n_places, (len(bad), n_points), generator=generator)


def pad_like(conv, x):
    """Pad an input the way the convolution does, so that patches can be cut without it."""
    (top, bottom), (left, right) = geometry(conv).pads(conv.kernel_size)
    amounts = [left, right, top, bottom]
    if not any(amounts):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, amounts, mode=mode)


def patches(conv, x, positions):
    """Input patches that a convolution reads at the given output positions, zero padding included.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        Only its kernel size, stride, padding and dilation are used.
    x : torch.Tensor, shape (m, c, H, W)
    positions : torch.Tensor of int, shape (m, P, 2)

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
    """
    padded = pad_like(conv, x).permute(0, 2, 3, 1).contiguous()
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    positions = positions.to(device=x.device, dtype=torch.long)
    rows = (positions[..., 0] * sh)[..., None] + torch.arange(kh, device=x.device) * dh
    columns = (positions[..., 1] * sw)[..., None] + torch.arange(kw, device=x.device) * dw
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    cut = padded[image, rows[..., :, None], columns[..., None, :]]
    return cut.permute(0, 1, 4, 2, 3).flatten(0, 1).contiguous()


def responses(y, positions):
    """Values of a feature map at the given positions.

    Parameters
    ----------
    y : torch.Tensor, shape (m, n, H, W), or (m, n) for a linear layer

    Returns
    -------
    torch.Tensor, shape (m, P, n)
    """
    if y.dim() == 2:
        return y[:, None, :]
    positions = positions.to(device=y.device, dtype=torch.long)
    image = torch.arange(len(y), device=y.device)[:, None]
    return y.permute(0, 2, 3, 1)[image, positions[..., 0], positions[..., 1]]


def layer_rows(module, space, x, positions):
    """Rows of the layer problem: patches of a convolution, or the flattened map of a linear layer.

    Returns
    -------
    torch.Tensor, shape (m·P, c, kh, kw)
        A linear layer behind a flatten of a c×H×W map is a convolution whose kernel is the map.
    """
    if isinstance(module, nn.Conv2d):
        return patches(module, x, positions)
    map_shape = space.map_shape if space is not None else (1, 1)
    return x.reshape(len(x), -1, *map_shape)


class Replay:
    """Runs a traced network batch by batch up to a node, from the furthest point whose values are kept.

    The modules may be exchanged between calls as long as :meth:`advance` is only ever moved over nodes
    whose modules are final. Values are recomputed from kept ones with the same batches, so a resumed run
    sees the same numbers as an uninterrupted one.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    images : callable
        ``images(start, stop)`` gives a float tensor (stop − start, C, H, W).
    n_images, batch_size : int
    budget : int
        Bytes that kept values may take; beyond, the values are recomputed from the last kept point.
    device : str or torch.device

    Attributes
    ----------
    forward_images : int
        Node runs so far, in units of whole passes times images (a measure of the work done).
    """

    def __init__(self, module, images, n_images, *, batch_size=100, budget=2 << 30, device="cpu"):
        self.module, self.images, self.n_images = module, images, n_images
        self.batch_size, self.budget, self.device = batch_size, budget, device
        self.nodes = list(module.graph.nodes)
        self._place = {node: i for i, node in enumerate(self.nodes)}
        self._last_use = {}
        for node in self.nodes:
            for source in node.all_input_nodes:
                self._last_use[source] = self._place[node]
        self._kept_at, self._kept = 0, None
        self.forward_images = 0.0

    def batches(self):
        """(start, stop) of every batch."""
        return [(i, min(i + self.batch_size, self.n_images)) for i in range(0, self.n_images, self.batch_size)]

    def inputs(self, node, beside=None):
        """Iterate (start, stop, value of the node's first input) over all batches.

        With ``beside``, a node that has run before and is needed later, the value is a pair: the input's and its.
        """
        target = self._place[node]
        for start, stop in self.batches():
            values = self._run(start, stop, target)
            value = values[node.args[0]]
            yield start, stop, value if beside is None else (value, values[beside])

    def visit(self, wanted, beside=None):
        """Iterate (start, stop, node, output, other) for a full run, right after each wanted node was computed.

        The outputs are yielded one node at a time, before anything downstream can change them in place. ``other``
        is the value of the node that ``beside`` names for this one at the same moment, or None.
        """
        beside = beside or {}
        for start, stop in self.batches():
            interpreter = self._interpreter(start, stop, 0)
            for place, node in enumerate(self.nodes):
                interpreter.env[node] = self._run_node(interpreter, node)
                if node in wanted:
                    yield start, stop, node, interpreter.env[node], interpreter.env.get(beside.get(node))
                self._forget(interpreter.env, place)
            self.forward_images += stop - start

    def outputs(self):
        """Iterate (start, stop, output of the network) over all batches."""
        node = self.nodes[-1]
        for start, stop in self.batches():
            values = self._run(start, stop, self._place[node])
            yield start, stop, fx.node.map_arg(node.args[0], lambda n, values=values: values[n])

    def advance(self, node):
        """Keep the values that the network from this node on needs, if they fit the budget."""
        target = self._place[node]
        if target <= self._kept_at:
            return
        kept, size = [], 0
        for start, stop in self.batches():
            values = self._run(start, stop, target)
            kept.append(values)
            size += sum(v.nbytes for v in values.values() if isinstance(v, torch.Tensor))
            # All images are of one size, so the first batch tells already.
            if size * self.n_images > self.budget * stop:
                return
        self._kept, self._kept_at = kept, target

    def narrow(self, columns):
        """Take the kept channels out of the kept values, as if their producers had been narrow already.

        Parameters
        ----------
        columns : dict of torch.fx.Node to torch.LongTensor
            For each value that loses channels, the places along axis 1 that stay.
        """
        for values in self._kept or ():
            for node in columns.keys() & values.keys():
                values[node] = values[node].index_select(1, columns[node].to(values[node].device)).contiguous()

    def _interpreter(self, start, stop, place):
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        if place:
            # Copies: the network may change its values in place, and they are needed again.
            kept = self._kept[start // self.batch_size]
            interpreter.env = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
        self._batch = (start, stop)
        return interpreter

    def _run_node(self, interpreter, node):
        with torch.no_grad():
            if node.op == "placeholder":
                if node.args and not node.users:
                    return node.args[0]
                return self.images(*self._batch).to(self.device)
            return interpreter.run_node(node)

    def _run(self, start, stop, target):
        interpreter = self._interpreter(start, stop, self._kept_at)
        for place in range(self._kept_at, target):
            interpreter.env[self.nodes[place]] = self._run_node(interpreter, self.nodes[place])
            self._forget(interpreter.env, place)
        self.forward_images += (stop - start) * (target - self._kept_at) / len(self.nodes)
        return interpreter.env

    def _forget(self, env, place):
        """Drop values that no later node reads."""
        for node in [n for n in env if self._last_use.get(n, -1) <= place]:
            del env[node]
