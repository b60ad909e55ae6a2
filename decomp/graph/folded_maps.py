"""Maps of several frames or crops of an image that a network folds into its batch, and the order of these rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True)
class MapsOfCall:
    """The rows of the batch at a call that belong to one image.

    Row (i · N + image) · inner + j of N images is map i · inner + j of that image: with ``inner`` 1 the batch is made
    by ``torch.cat((a, b), 0)``, with ``inner`` equal to ``n`` by ``x.view(-1, C, H, W)`` of an image of several frames.

    Attributes
    ----------
    n : int
        Maps for each image.
    inner : int
        Divides ``n``.
    """

    n: int = 1
    inner: int = 1

    def split(self, value: Tensor) -> list[Tensor]:
        """The maps of a batch one by one, each (images, ...) in the order of the images; without copies."""
        if self.n == 1:
            return [value]
        parts = value.reshape(self.n // self.inner, -1, self.inner, *value.shape[1:])
        return [parts[i, :, j] for i in range(self.n // self.inner) for j in range(self.inner)]


def find_maps(
    module: fx.GraphModule, input_shape: Sequence[int], shapes: Mapping[fx.Node, Sequence[int]],
    calls: Collection[fx.Node],
) -> dict[fx.Node, MapsOfCall]:  # fmt: skip
    """The order of the rows at each call.

    Two images are run, the second of them NaN: its rows are those that become NaN, whatever the functions in between.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    input_shape : sequence of int
        (C, H, W).
    shapes : mapping of torch.fx.Node to sequence of int
        For a batch of two.
    calls : collection of torch.fx.Node
        Calls of layers.

    Returns
    -------
    dict of torch.fx.Node to MapsOfCall
        Without the calls whose rows do not belong to one image each, or lie in another order.
    """
    found = {call: MapsOfCall() for call in calls if shapes[call][0] == 2}
    folded = {call for call in calls if shapes[call][0] > 2 and shapes[call][0] % 2 == 0}
    if folded:
        for call, marked in _marked_rows(module, input_shape, folded).items():
            n = len(marked) // 2
            for inner in (inner for inner in range(1, n + 1) if n % inner == 0):
                if marked == [row // inner % 2 == 1 for row in range(2 * n)]:
                    found[call] = MapsOfCall(n, inner)
    return found


def _marked_rows(
    module: fx.GraphModule, input_shape: Sequence[int], calls: Collection[fx.Node]
) -> dict[fx.Node, list[bool]]:
    """For each call whether each row of its output holds NaN, where the second of two images does."""
    like = next(module.parameters(), torch.zeros(()))
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(like)
    images[1] = torch.nan
    marked: dict[fx.Node, list[bool]] = {}

    class Marking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in calls:
                marked[n] = value.isnan().flatten(1).any(1).tolist()
            return value

    with torch.no_grad():
        Marking(module).run(images)
    return marked
