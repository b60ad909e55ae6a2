r"""Joint refinement of all weights of a block towards the original's values behind it, by gradient steps.

A block of a compressed network reads what the network gives in front of it, x', and its weights are trained so that it
gives what the original gives behind it, y: the mean of ‖block(x') − y‖² over images (Li et al. 2021, "BRECQ", section
3.2, block reconstruction, here without its weights by gradients). No labels are needed, and the many values of each map
hold more of the original than its outputs do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from decomp.graph.blocks import Block, sized

#: Step of a weight, relative to the root mean square of its tensor, at the first of the steps; it falls as a cosine.
RATE = 0.02
#: The error on unseen images is measured so often; the best state stays.
CHECKS = 5
#: A smaller error is of float32 alone: nothing in front of the block or in it has been changed.
ROUNDING = 1e-10


class BlockOf:
    """A block of a traced network as a function of the value that it reads.

    Parameters
    ----------
    module : torch.fx.GraphModule
        In evaluation mode.
    block : decomp.graph.blocks.Block
        Of this network, or of another one with the same nodes.
    images_at_a_time : int
        Where no gradients are needed.
    """

    def __init__(self, module: fx.GraphModule, block: Block, images_at_a_time: int = 100) -> None:
        nodes = {node.name: node for node in module.graph.nodes}
        own = [nodes[name] for name in block.nodes]
        inside = set(own)
        constants = [source for node in own for source in node.all_input_nodes if source.op == "get_attr"]
        outside = [source for node in own for source in node.all_input_nodes if source not in inside]
        self.module, self.images_at_a_time = module, images_at_a_time
        # Numbers of images that an earlier block computes: blocks are not cut where anything else is alive.
        self.counts = [node for node in outside if sized(node) is not None]
        self.source, self.target = nodes[block.source], nodes[block.target]
        self.nodes = [*dict.fromkeys(node for node in constants if node not in inside), *own]

    def __call__(self, value: Tensor) -> Tensor:
        """The block's output; the value may be changed in place."""
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        interpreter.env[self.source] = value
        interpreter.env.update(dict.fromkeys(self.counts, len(value)))
        for node in self.nodes:
            if node.op != "placeholder":
                interpreter.env[node] = interpreter.run_node(node)
        result = interpreter.env[self.target]
        assert isinstance(result, Tensor)
        return result

    @torch.no_grad()
    def of_all(self, values: Tensor) -> Tensor:
        """The outputs for many values, some at a time; the values are not changed."""
        result = values.new_empty(0)
        for start in range(0, max(len(values), 1), self.images_at_a_time):
            part = self(values[start : start + self.images_at_a_time].clone())
            if not start:  # all in one piece, so that there are never two copies of them
                result = part.new_empty(len(values), *part.shape[1:])
            result[start : start + len(part)] = part
        return result

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the modules that are called in this block and nowhere else, by name."""
        inside = set(self.nodes)
        elsewhere = {str(n.target) for n in self.module.graph.nodes if n.op == "call_module" and n not in inside}
        called = dict.fromkeys(str(n.target) for n in self.nodes if n.op == "call_module")
        shared = {id(p) for path in elsewhere for p in self.module.get_submodule(path).parameters()}
        return {
            f"{path}.{name}": parameter
            for path in called
            for name, parameter in self.module.get_submodule(path).named_parameters()
            if id(parameter) not in shared
        }

    def weights(self) -> dict[str, Tensor]:
        """Copies of the values of these parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters of these names, and drop the gradients of all."""
        for name, parameter in self.parameters().items():
            parameter.grad = None
            if name in weights:
                parameter.copy_(weights[name])


@dataclass(frozen=True)
class Pairs:
    """Values that a block reads and those that it should write, for the same images.

    Attributes
    ----------
    inputs, targets : torch.Tensor, shape (N, ...)
    columns : torch.LongTensor, optional
        Channels of the targets that the block still has; all if None.
    """

    inputs: Tensor
    targets: Tensor
    columns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Copies of some of them, in the given order."""
        for places in order.split(size):
            yield self.inputs[places], targets_of(self.targets[places], self.columns)


def relative_error(block: BlockOf, pairs: Pairs, scale: float) -> float:
    """Mean squared difference of a block's output from the targets, over ``scale``."""
    total, n = 0.0, 0
    with torch.no_grad():
        for x, y in pairs.batches(torch.arange(len(pairs)), block.images_at_a_time):
            total += float((block(x) - y).square().sum(dtype=torch.float64))
            n += y.numel()
    return total / (scale * n)


def spread(targets: Tensor, columns: Tensor | None = None) -> float:
    """Mean square of values, or of some channels of them, about the mean of their channel."""
    axes = [0, *range(2, targets.dim())]
    parts = targets.split(100)  # copies of all would take much memory
    n = targets.numel() // targets.shape[1]
    mean = torch.stack([part.sum(axes, keepdim=True, dtype=torch.float64) for part in parts]).sum(0) / n
    squares = [(part - mean).square().sum(axes) for part in parts]
    return float(targets_of(torch.stack(squares).sum(0)[None] / n, columns).mean())


def refine_block(
    block: BlockOf, fitted: Pairs, unseen: Pairs, *, steps: int, batch_size: int, generator: torch.Generator,
    judge: Callable[[], float] | None = None, loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    rate: float = RATE,
) -> dict[str, float]:  # fmt: skip
    """Train the weights of a block; the state of least error on unseen images stays, which may be the one before.

    Parameters
    ----------
    block : BlockOf
        Of the compressed network; its parameters are changed in place.
    fitted, unseen : Pairs
        The second of images that are not among the first.
    steps, batch_size : int
        Of Adam (Kingma and Ba 2015).
    generator : torch.Generator
        Of the order of the images.
    judge : callable, optional
        A number of the present weights in place of that error, for the last block: how much the network's outputs
        change.
    loss : callable, optional
        ``loss(wanted, got)`` of a batch is minimised in place of that error.
    rate : float
        Step of a weight at the first of the steps, relative to the root mean square of its tensor.

    Returns
    -------
    dict
        ``error_before``, ``error_after``: on the unseen images, relative to the variance of the targets; and the
        ``step`` of the state that stays, 0 for the one before. Empty where there is nothing to train, or the targets do
        not vary.
    """
    parameters, scale = block.parameters(), spread(fitted.targets, fitted.columns)
    if not parameters or not scale > 0 or not math.isfinite(scale):
        return {}

    def error() -> float:
        return relative_error(block, unseen, scale)

    judge, before = judge or error, error()
    if before <= ROUNDING:
        return {"error_before": before, "error_after": before, "step": 0}
    best, best_step, state = judge(), 0, block.weights()
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": [p], "step": rate * _size(p)} for p in parameters.values()], lr=0.0)
    batches = _endless(fitted, batch_size, generator)
    for step in range(1, steps + 1):
        x, y = next(batches)
        with torch.enable_grad():
            got = block(x)
            value = (got - y).square().mean() / scale if loss is None else loss(y, got)
            if not value.requires_grad:
                break  # the block ends in a step without a gradient
            gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        for parameter, gradient in zip(parameters.values(), gradients):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = group["step"] * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        optimizer.step()
        if step * CHECKS // steps > (step - 1) * CHECKS // steps:
            found = judge()
            if found < best:  # not where it is NaN
                best, best_step, state = found, step, block.weights()
    block.put(state)
    return {"error_before": before, "error_after": error(), "step": best_step}


def _size(parameter: nn.Parameter) -> float:
    """Root mean square of a tensor; of zeros a small number, so that they can move too."""
    return max(float(parameter.detach().square().mean().sqrt()), 1e-3)


def _endless(pairs: Pairs, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of all pairs in a new order each time round; the last one of a round may be smaller."""
    while True:
        yield from pairs.batches(torch.randperm(len(pairs), generator=generator), batch_size)


def targets_of(values: Tensor, columns: Sequence[int] | Tensor | None) -> Tensor:
    """Values of the original in the channels that the compressed network still has."""
    return values if columns is None else values.index_select(1, torch.as_tensor(columns, device=values.device))
