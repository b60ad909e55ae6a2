"""Replay of a traced network up to a node, from a cache of intermediate activations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from decomp.execution.footprint import last_uses
from decomp.time_spent import part

# Value of every node that is still needed; tensors, and whatever else a forward pass computes.
Values = dict[fx.Node, Any]


class ActivationStore(Protocol):
    """Cache of the values between two nodes, batch by batch.

    Attributes
    ----------
    least_work : float
        Values are not stored where that saves less than this share of a pass.
    """

    least_work: float

    def admits(self, n_bytes: int) -> bool:
        """Whether values that take so many bytes for all images are stored."""

    def put(self, index: int, values: Values) -> None:
        """Store the values of a batch, in place of earlier ones."""

    def get(self, index: int) -> Values:
        """The values of a batch. The caller may change them in place; the stored ones stay."""

    def clear(self) -> None:
        """Remove all values."""


class InMemory:
    """Activation store in memory; the default of :class:`Replay`.

    Parameters
    ----------
    budget : int
        Most bytes of the values of all images.
    """

    least_work: float = 0.0

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._values: dict[int, Values] = {}

    def admits(self, n_bytes: int) -> bool:
        """Whether values that take so many bytes for all images are stored."""
        return n_bytes <= self.budget

    def put(self, index: int, values: Values) -> None:
        """Store the values of a batch, in place of earlier ones."""
        self._values[index] = values

    def get(self, index: int) -> Values:
        """A copy of the values of a batch."""
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._values[index].items()}

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()


class Replay:
    """Runs a traced network batch by batch up to a node, from the last node whose values are stored.

    The modules may be exchanged between calls as long as :meth:`advance` only moves over nodes whose modules are
    final. Values are recomputed from stored ones with the same batches, so a resumed run computes the same numbers
    as an uninterrupted one.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    images : callable
        ``images(start, stop)`` gives a float tensor (stop − start, C, H, W).
    n_images, batch_size : int
    budget : int
        Most bytes of stored values; values that take more are recomputed from the last stored ones.
    device : str or torch.device
    store : ActivationStore, optional
        In place of :class:`InMemory`; then ``budget`` has no effect.
    work : sequence of float, optional
        Share of each node in the work of a pass (:func:`decomp.execution.footprint.measure`); equal shares if None.
    own : callable, optional
        The batches to go through, by number, of so many; all if None.

    Attributes
    ----------
    forward_images : float
        Work so far, in passes times images: the shares of all nodes that were run, of the network as given. Nodes
        that have become cheaper since count in full.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        images: Callable[[int, int], Tensor],
        n_images: int,
        *,
        batch_size: int = 100,
        budget: int = 2 << 30,
        device: str | torch.device = "cpu",
        store: ActivationStore | None = None,
        work: Sequence[float] | None = None,
        own: Callable[[int], range] | None = None,
    ) -> None:
        self.module, self.images, self.n_images = module, images, n_images
        self.batch_size, self.device, self.own = batch_size, device, own or range
        self.store: ActivationStore = InMemory(budget) if store is None else store
        self.nodes = list(module.graph.nodes)
        self._place = {node: i for i, node in enumerate(self.nodes)}
        self._last_use = last_uses(self.nodes)
        self.work = [1 / len(self.nodes)] * len(self.nodes) if work is None else work
        # Index of the node whose inputs are stored, and the channels to take out of stored values.
        self._stored_at = 0
        self._columns: dict[fx.Node, Tensor] = {}
        self.forward_images = 0.0

    def batches(self) -> list[tuple[int, int]]:
        """(start, stop) of every batch that is gone through."""
        size, n_images = self.batch_size, self.n_images
        return [(i * size, min((i + 1) * size, n_images)) for i in self.own(-(-n_images // size))]

    def inputs(self, node: fx.Node, beside: fx.Node | None = None) -> Iterator[tuple[int, int, Any]]:
        """Iterate (start, stop, value of the node's first input) over all batches.

        With ``beside``, a node in front of this one whose value a later node reads, the value is a pair: that of the
        input and that of ``beside``.
        """
        for start, stop, _, value, other in self.call_inputs([node], {} if beside is None else {node: beside}):
            yield start, stop, value if beside is None else (value, other)

    def call_inputs(
        self, calls: Sequence[fx.Node], beside: Mapping[fx.Node, fx.Node] | None = None
    ) -> Iterator[tuple[int, int, fx.Node, Any, Any]]:
        """Iterate (start, stop, node, value of its first input, other) over all batches and, within each, the calls.

        Each value is yielded before a later node can change it in place. ``other`` is the value of the node that
        ``beside`` names for this one, or None.

        Parameters
        ----------
        calls : sequence of torch.fx.Node
            In execution order, none before the place that :meth:`advance` has reached.
        beside : mapping of torch.fx.Node to torch.fx.Node, optional
        """
        others, stops = beside or {}, [self._place[node] for node in calls]
        for start, stop in self.batches():
            interpreter, place = self._interpreter(start, self._stored_at), self._stored_at
            for node, target in zip(calls, stops):
                self._run_between(interpreter, start, stop, place, target)
                place, other = target, others.get(node)
                value = interpreter.env[_first_input(node)]
                yield start, stop, node, value, None if other is None else interpreter.env[other]

    def visit(
        self, wanted: Collection[fx.Node], beside: Mapping[fx.Node, fx.Node] | None = None
    ) -> Iterator[tuple[int, int, fx.Node, Any, Any]]:
        """Iterate (start, stop, node, output, other) for a full run, right after each wanted node is computed.

        The outputs are yielded one node at a time, before a later node can change them in place. ``other`` is the
        value at that moment of the node that ``beside`` names for this one, or None.
        """
        others = beside or {}
        for start, stop in self.batches():
            interpreter = self._interpreter(start, 0)
            for place, node in enumerate(self.nodes):
                interpreter.env[node] = self._run_node(interpreter, node, start, stop)
                if node in wanted:
                    other = interpreter.env.get(others[node]) if node in others else None
                    yield start, stop, node, interpreter.env[node], other
                self._forget(interpreter.env, place)
            self.forward_images += stop - start

    def outputs(self) -> Iterator[tuple[int, int, Any]]:
        """Iterate (start, stop, output of the network) over all batches."""
        node = self.nodes[-1]
        for start, stop in self.batches():
            yield start, stop, fx.node.map_arg(node.args[0], self._run(start, stop, self._place[node]).__getitem__)

    def advance(self, node: fx.Node) -> None:
        """Store the values that the network from this node on needs, if the store admits them."""
        target = self._place[node]
        if target <= self._stored_at:
            return
        if sum(self.work[self._stored_at : target]) < self.store.least_work:
            return
        batches = self.batches()
        n_images = sum(stop - start for start, stop in batches)
        for start, stop in batches:
            values = self._run(start, stop, target)
            # All images are of one size, so the first batch determines the size of all.
            size = sum(v.nbytes for v in values.values() if isinstance(v, Tensor))
            if start == batches[0][0] and not self.store.admits(size * n_images // (stop - start)):
                return
            self.store.put(start // self.batch_size, values)
        # The channels were taken out before the values were stored.
        self._stored_at, self._columns = target, {}

    def narrow(self, columns: Mapping[fx.Node, Tensor]) -> None:
        """Take the selected channels out of the stored values, as if their producers had been narrow before.

        Parameters
        ----------
        columns : dict of torch.fx.Node to torch.LongTensor
            For each value that loses channels, the indices along axis 1 that stay.
        """
        # Applied at each read: a store on a disk would have to be read and written as a whole.
        for node, stay in columns.items():
            before = self._columns.get(node)
            self._columns[node] = stay if before is None else before[stay]

    def _interpreter(self, start: int, place: int) -> fx.Interpreter:
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        if place:
            interpreter.env = self.store.get(start // self.batch_size)
            for node in self._columns.keys() & interpreter.env.keys():
                value = interpreter.env[node]
                interpreter.env[node] = value.index_select(1, self._columns[node].to(value.device))
        return interpreter

    def _run_node(self, interpreter: fx.Interpreter, node: fx.Node, start: int, stop: int) -> Any:
        with torch.no_grad():
            if node.op == "placeholder":
                if node.args and not node.users:
                    return node.args[0]
                return self.images(start, stop).to(self.device)
            return interpreter.run_node(node)

    def _run(self, start: int, stop: int, target: int) -> Values:
        interpreter = self._interpreter(start, self._stored_at)
        self._run_between(interpreter, start, stop, self._stored_at, target)
        return interpreter.env

    def _run_between(self, interpreter: fx.Interpreter, start: int, stop: int, first: int, target: int) -> None:
        """Run the nodes from one place up to another, that one not."""
        with part("forward"):
            for place in range(first, target):
                interpreter.env[self.nodes[place]] = self._run_node(interpreter, self.nodes[place], start, stop)
                self._forget(interpreter.env, place)
        self.forward_images += (stop - start) * sum(self.work[first:target])

    def _forget(self, env: Values, place: int) -> None:
        """Drop values that no later node reads."""
        for node in [n for n in env if self._last_use.get(n, -1) <= place]:
            del env[node]


def _first_input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source
