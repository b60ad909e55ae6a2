"""Questions that a forward pass asks about sizes while it is traced, answered for images of one size.

``if x.shape[-1] < 7`` has one answer for all images of a size; ``if x.sum() > 0`` has not. The first is answered by
running what has been traced so far on images of zeros, the second is refused.
"""

import torch
from torch.fx.node import map_arg

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
        self.root = root
        parameter = next(root.parameters(), torch.zeros(()))
        self._images = [torch.zeros(n, *shape, device=parameter.device, dtype=parameter.dtype) for n in BATCHES]
        self._values = [{} for _ in BATCHES]
        self._looked, self._seen = set(), 0

    def answer(self, node):
        """True or False; None where it is not for sizes alone to tell."""
        try:
            with torch.no_grad():
                self._catch_up(node.graph)
        except Exception:  # does not run on these images, which the stages say in their own words
            return None
        found = [values.get(node) for values in self._values]
        if node in self._looked or not all(_is_plain(value) for value in found):
            return None
        answers = {bool(value) for value in found}
        return answers.pop() if len(answers) == 1 else None

    def _catch_up(self, graph):
        """Run the nodes that have been added, once for each number of images."""
        nodes = list(graph.nodes)
        for node in nodes[self._seen :]:
            for values, images in zip(self._values, self._images):
                values[node] = self._run(node, values, images)
            if self._looks(node) or not self._looked.isdisjoint(node.all_input_nodes):
                self._looked.add(node)
            self._seen += 1

    def _looks(self, node):
        """Whether a node makes a number of a tensor's values."""
        values = self._values[0]
        if not _is_plain(values[node]) or all(_is_plain(values[before]) for before in node.all_input_nodes):
            return False
        sizes = SIZE_METHODS if node.op == "call_method" else SIZE_FUNCTIONS
        return node.op != "get_attr" and node.target not in sizes

    def _run(self, node, values, images):
        if node.op == "placeholder":
            return images
        if node.op == "get_attr":
            value = self.root
            for name in node.target.split("."):
                value = getattr(value, name)
            return value
        args, kwargs = (map_arg(part, lambda n: values[n]) for part in (node.args, node.kwargs))
        if node.op == "call_module":
            return self.root.get_submodule(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


def _is_plain(value):
    """A number, or numbers."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (bool, int, float))


def words(places, shape):
    """That a network goes by the size of its images, and where in its source, for a person."""
    where = ", ".join(places[:3]) + (" and more" if len(places) > 3 else "")
    return f"goes by the size of its images ({where}): what is made of it is for {'x'.join(map(str, shape))} alone"
