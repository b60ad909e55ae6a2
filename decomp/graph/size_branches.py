"""Numbers, lengths and conditions that the image size fixes, evaluated during tracing for images of one size.

``if x.shape[-1] < 7`` goes the same way for all images of a size, and ``x.chunk(2, 1)`` has two parts: both are found
by running the graph traced so far on images of zeros. ``if x.sum() > 0`` has no answer of this kind and is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

# A condition is evaluated for each of these numbers of images, and must not depend on them. The second is one that
# hardly anybody uses: networks that keep what they computed for the shape of the last batch must not find it again.
BATCHES = (1, 7)
# Calls that make a number of a tensor without looking at its values; all others (`item`, `tolist`, ...) look.
SIZE_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_contiguous")
SIZE_FUNCTIONS = (getattr, len, torch.numel, torch.is_tensor, torch.is_floating_point)
# Calls whose result has a shape that depends on values.
SHAPED_BY_VALUES = (
    torch.nonzero, torch.argwhere, torch.masked_select, torch.unique, torch.unique_consecutive, torch.bincount,
    torch.repeat_interleave, "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
)  # fmt: skip


class SizeBranches:
    """Evaluates nodes of a graph that is still growing.

    Parameters
    ----------
    root : torch.nn.Module
        The module that is traced, in evaluation mode.
    shape : sequence of int
        (C, H, W) of the images.
    """

    def __init__(self, root: nn.Module, shape: Sequence[int]):
        self.root, self.shape = root, shape
        self._runs: list[fx.Interpreter] = []
        self._other_size: fx.Interpreter | None = None
        self._value_dependent: set[fx.Node] = set()
        self._size_dependent: set[fx.Node] = set()
        self._n_run = 0

    def evaluate(self, node: fx.Node) -> bool | None:
        """The condition at a node; None where it depends on values or on the number of images."""
        answers = [bool(value) for value in self._values(node) if _is_plain(value)]
        return answers[0] if len(answers) == len(BATCHES) and len(set(answers)) == 1 else None

    def number(self, node: fx.Node) -> Any:
        """The number, or tuple of numbers, at a node; None where it depends on values or on the number of images."""
        values = [value for value in self._values(node) if _is_plain(value) and value is not None]
        return values[0] if len(values) == len(BATCHES) and values[0] == values[1] else None

    def type_of(self, node: fx.Node) -> type | None:
        """The class of the value at a node; None where the network does not run."""
        self._values(node)
        return type(self._runs[0].env[node]) if self._runs and node in self._runs[0].env else None

    def length(self, node: fx.Node) -> int | None:
        """Number of parts of the value at a node; None where it depends on values or on the number of images."""
        lengths = {_length(value) for value in self._values(node)}
        return lengths.pop() if len(lengths) == 1 else None

    def depends_on_size(self, node: fx.Node) -> bool:
        """Whether images of another size may give another number."""
        return node in self._size_dependent

    def length_depends_on_size(self, node: fx.Node) -> bool:
        """Whether images of another size may give another number of parts: one for each row, say."""
        other = None if self._other_size is None else _length(self._other_size.env[node])
        return _length(self._runs[0].env[node]) != other

    def _values(self, node: fx.Node) -> list[Any]:
        """The value at a node for each number of images; empty where other images give another one."""
        try:
            with torch.no_grad():
                self._run_new_nodes(node.graph)
        except Exception:  # does not run on these images; the stages report that in their own words
            return []
        return [] if node in self._value_dependent else [run.env[node] for run in self._runs]

    def _run_new_nodes(self, graph: fx.Graph) -> None:
        """Run the nodes that have been added, once for each number of images."""
        if not self._runs:
            self._runs = [self._interpreter(graph, n, self.shape) for n in BATCHES]
            channels, height, width = self.shape
            self._other_size = self._interpreter(graph, BATCHES[0], (channels, height + 32, width + 64))
        for node in list(graph.nodes)[self._n_run :]:
            for run in self._runs:
                run.env[node] = run.run_node(node)
            if self._changes_with_size(node):
                self._size_dependent.add(node)
            if self._reads_values(node) or not self._value_dependent.isdisjoint(node.all_input_nodes):
                self._value_dependent.add(node)
            self._n_run += 1

    def _changes_with_size(self, node: fx.Node) -> bool:
        """Whether a number, or what it is computed from, is another one for images of another size."""
        try:
            if self._other_size is not None:
                self._other_size.env[node] = self._other_size.run_node(node)
        except Exception:  # the network takes no other size: what it computes from here on is for this one
            self._other_size = None
        value = self._runs[0].env[node]
        if not _is_plain(value):
            return False
        if self._other_size is None or bool(value != self._other_size.env[node]):
            return True
        entry = node.target is operator.getitem  # a size by itself may be the same where others differ
        return not entry and not self._size_dependent.isdisjoint(node.all_input_nodes)

    def _reads_values(self, node: fx.Node) -> bool:
        """Whether a node makes a number, or a shape, of a tensor's values."""
        values = self._runs[0].env
        if node.target in SHAPED_BY_VALUES:
            return True
        if not _is_plain(values[node]) or all(_is_plain(values[before]) for before in node.all_input_nodes):
            return False
        sizes = SIZE_METHODS if node.op == "call_method" else SIZE_FUNCTIONS
        return node.op != "get_attr" and node.target not in sizes

    def _interpreter(self, graph: fx.Graph, n_images: int, shape: Sequence[int]) -> fx.Interpreter:
        like = next(self.root.parameters(), torch.zeros(()))
        run = fx.Interpreter(self.root, garbage_collect_values=False, graph=graph)
        run.args_iter = iter([torch.zeros(n_images, *shape, device=like.device, dtype=like.dtype)])
        return run


def _is_plain(value: object) -> bool:
    """A number, a name, a device or another value without tensors; or a tuple or list of these."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.device, torch.dtype))


def _length(value: object) -> int | None:
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    return len(value) if isinstance(value, (tuple, list)) else None


def size_branch_message(places: Sequence[str], shape: Sequence[int]) -> str:
    """Message: control flow depends on the input size, and where.

    Parameters
    ----------
    places : sequence of str
        'file.py:line' of every branch.
    shape : sequence of int
        (C, H, W) that the network was traced for.
    """
    where = ", ".join(places[:3]) + (" and more" if len(places) > 3 else "")
    size = "x".join(map(str, shape))
    return f"control flow depends on the input size ({where}); the result is valid for {size} only"
