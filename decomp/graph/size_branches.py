"""Questions that a forward pass asks about sizes while it is traced, answered for images of one size.

``if x.shape[-1] < 7`` has one answer for all images of a size; ``if x.sum() > 0`` has not. The first is answered by
running what has been traced so far on images of zeros, the second is refused.
"""

import torch
from torch import fx

# What one answer must not depend on: the answer is asked for with both numbers of images.
BATCHES = (1, 2)
# What makes a number of a tensor without looking at its values; all else (`item`, `tolist`, ...) does look.
SIZE_METHODS = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point")
SIZE_FUNCTIONS = (getattr, len, torch.numel, torch.is_tensor, torch.is_floating_point)


class SizeQuestions:
    """Answers for a graph that is still growing.

    Parameters
    ----------
    root : torch.nn.Module
        In evaluation mode; what is traced.
    shape : tuple of int
        (C, H, W) of the images.
    """

    def __init__(self, root, shape):
        self.root, self.shape = root, shape
        self._runs, self._looked, self._seen = [], set(), 0

    def answer(self, node):
        """True or False; None where it is not for sizes alone to tell."""
        try:
            with torch.no_grad():
                self._catch_up(node.graph)
        except Exception:  # does not run on these images, which the stages say in their own words
            return None
        found = [run.env[node] for run in self._runs]
        if node in self._looked or not all(_is_plain(value) for value in found):
            return None
        answers = {bool(value) for value in found}
        return answers.pop() if len(answers) == 1 else None

    def _catch_up(self, graph):
        """Run the nodes that have been added, once for each number of images."""
        self._runs = self._runs or [self._run(graph, n) for n in BATCHES]
        for node in list(graph.nodes)[self._seen :]:
            for run in self._runs:
                run.env[node] = run.run_node(node)
            if self._looks(node) or not self._looked.isdisjoint(node.all_input_nodes):
                self._looked.add(node)
            self._seen += 1

    def _looks(self, node):
        """Whether a node makes a number of a tensor's values."""
        values = self._runs[0].env
        if not _is_plain(values[node]) or all(_is_plain(values[before]) for before in node.all_input_nodes):
            return False
        sizes = SIZE_METHODS if node.op == "call_method" else SIZE_FUNCTIONS
        return node.op != "get_attr" and node.target not in sizes

    def _run(self, graph, n_images):
        parameter = next(self.root.parameters(), torch.zeros(()))
        run = fx.Interpreter(self.root, garbage_collect_values=False, graph=graph)
        run.args_iter = iter([torch.zeros(n_images, *self.shape, device=parameter.device, dtype=parameter.dtype)])
        return run


def _is_plain(value):
    """A number, or numbers."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (bool, int, float))


def size_branch_message(places, shape):
    """That a network goes by the size of its images, and where in its source, for a person."""
    where = ", ".join(places[:3]) + (" and more" if len(places) > 3 else "")
    return f"goes by the size of its images ({where}): what is made of it is for {'x'.join(map(str, shape))} alone"
