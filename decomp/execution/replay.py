"""Rows at points: run part of a network, gather patches and responses; nothing is left on the model."""

import torch
from torch import fx

from decomp.execution.footprint import last_uses


class InMemory:
    """Keeps values in memory; what :class:`Replay` takes when it is given no other store.

    Parameters
    ----------
    budget : int
        Bytes that the values of all images may take.
    """

    least_work = 0.0

    def __init__(self, budget):
        self.budget, self._values = budget, {}

    def admits(self, n_bytes):
        """Whether values are kept that take so many bytes for all images."""
        return n_bytes <= self.budget

    def put(self, index, values):
        """Keep the values of a batch, in place of earlier ones."""
        self._values[index] = values

    def get(self, index):
        """The values of a batch, which may be changed in place: they are needed again."""
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in self._values[index].items()}


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
    store : optional
        Where values are kept, as :class:`InMemory` does; then ``budget`` says nothing. Values are not kept where
        that saves less than its ``least_work``, a share of a pass.
    work : sequence of float, optional
        For every node its share of the work of a pass (:func:`decomp.execution.footprint.measure`); the same for all
        if None.

    Attributes
    ----------
    forward_images : float
        Work done so far, in passes times images: the shares of all nodes that were run, as the network came. Nodes
        that have become cheaper since count in full.
    """

    def __init__(
        self, module, images, n_images, *, batch_size=100, budget=2 << 30, device="cpu", store=None, work=None
    ):
        self.module, self.images, self.n_images = module, images, n_images
        self.batch_size, self.device = batch_size, device
        self.store = InMemory(budget) if store is None else store
        self.nodes = list(module.graph.nodes)
        self._place = {node: i for i, node in enumerate(self.nodes)}
        self._last_use = last_uses(self.nodes)
        self.work = [1 / len(self.nodes)] * len(self.nodes) if work is None else work
        self._kept_at, self._columns = 0, {}
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
        """Keep the values that the network from this node on needs, if the store admits them."""
        target = self._place[node]
        if target <= self._kept_at:
            return
        if sum(self.work[self._kept_at : target]) < self.store.least_work:
            return
        for index, (start, stop) in enumerate(self.batches()):
            values = self._run(start, stop, target)
            # All images are of one size, so the first batch tells already.
            size = sum(v.nbytes for v in values.values() if isinstance(v, torch.Tensor))
            if index == 0 and not self.store.admits(size * self.n_images // (stop - start)):
                return
            self.store.put(index, values)
        # What was put is narrow already.
        self._kept_at, self._columns = target, {}

    def narrow(self, columns):
        """Take the kept channels out of the kept values, as if their producers had been narrow already.

        Parameters
        ----------
        columns : dict of torch.fx.Node to torch.LongTensor
            For each value that loses channels, the places along axis 1 that stay.
        """
        # Done whenever they are taken out: a store on a disk would have to be read and written as a whole.
        for node, stay in columns.items():
            before = self._columns.get(node)
            self._columns[node] = stay if before is None else before[stay]

    def _interpreter(self, start, stop, place):
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        if place:
            interpreter.env = self.store.get(start // self.batch_size)
            for node in self._columns.keys() & interpreter.env.keys():
                value = interpreter.env[node]
                interpreter.env[node] = value.index_select(1, self._columns[node].to(value.device))
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
        self.forward_images += (stop - start) * sum(self.work[self._kept_at : target])
        return interpreter.env

    def _forget(self, env, place):
        """Drop values that no later node reads."""
        for node in [n for n in env if self._last_use.get(n, -1) <= place]:
            del env[node]
