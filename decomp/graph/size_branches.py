"""Branches of a forward pass on tensor sizes, decided during tracing for images of one size.

``if x.shape[-1] < 7`` goes the same way for all images of a size; ``if x.sum() > 0`` does not. The first is decided by
running the graph traced so far on images of zeros, the second is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

# A condition is evaluated for each of these numbers of images, and must not depend on them.
BATCHES = (1, 2)
# Calls that make a number of a tensor without looking at its values; all others (`item`, `tolist`, ...) look.
SIZE_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point")
SIZE_FUNCTIONS = (getattr, len, torch.numel, torch.is_tensor, torch.is_floating_point)


class SizeBranches:
    """Evaluates conditions on a graph that is still growing.

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
        self._value_dependent: set[fx.Node] = set()
        self._n_run = 0

    def evaluate(self, node: fx.Node) -> bool | None:
        """The condition at a node; None where it depends on values or on the number of images."""
        try:
            with torch.no_grad():
                self._run_new_nodes(node.graph)
        except Exception:  # does not run on these images; the stages report that in their own words
            return None
        values = [run.env[node] for run in self._runs]
        if node in self._value_dependent or not all(_is_number(value) for value in values):
            return None
        answers = {bool(value) for value in values}
        return answers.pop() if len(answers) == 1 else None

    def _run_new_nodes(self, graph: fx.Graph) -> None:
        """Run the nodes that have been added, once for each number of images."""
        self._runs = self._runs or [self._interpreter(graph, n) for n in BATCHES]
        for node in list(graph.nodes)[self._n_run :]:
            for run in self._runs:
                run.env[node] = run.run_node(node)
            if self._reads_values(node) or not self._value_dependent.isdisjoint(node.all_input_nodes):
                self._value_dependent.add(node)
            self._n_run += 1

    def _reads_values(self, node: fx.Node) -> bool:
        """Whether a node makes a number of a tensor's values."""
        values = self._runs[0].env
        if not _is_number(values[node]) or all(_is_number(values[before]) for before in node.all_input_nodes):
            return False
        sizes = SIZE_METHODS if node.op == "call_method" else SIZE_FUNCTIONS
        return node.op != "get_attr" and node.target not in sizes

    def _interpreter(self, graph: fx.Graph, n_images: int) -> fx.Interpreter:
        like = next(self.root.parameters(), torch.zeros(()))
        run = fx.Interpreter(self.root, garbage_collect_values=False, graph=graph)
        run.args_iter = iter([torch.zeros(n_images, *self.shape, device=like.device, dtype=like.dtype)])
        return run


def _is_number(value: object) -> bool:
    """A number, or a tuple or list of numbers."""
    if isinstance(value, (tuple, list)):
        return all(_is_number(part) for part in value)
    return isinstance(value, (bool, int, float))


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
