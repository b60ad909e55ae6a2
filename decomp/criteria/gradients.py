"""First-order Taylor criterion: how much the loss would change if a channel were not read any more.

For one image the change is, to first order, −Σ a·∂loss/∂a over everything that reads the channel, with a the values as
they are read (Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017). The
values are taken where layers read them: a channel that several layers write or carry, or that goes through a
normalisation or an activation with a value at 0, is then judged as a whole, as it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decomp.criteria.members import places_in
from decomp.errors import UsageError
from decomp.graph.channel_spaces import Spaces

#: Takes the network's output and the labels (or None) of a batch, gives the loss summed over its images.
Loss = Callable[[Any, Any], Tensor]


def own_output_loss(generator: torch.Generator, *, scores: bool = True) -> Loss:
    """A loss that needs no labels: its squared derivative stands for the divergence from the network's own outputs.

    The divergence itself has no first-order part, since it is least where nothing was changed. Its second-order part is
    half the mean square of the derivative of this loss: of the cross-entropy to classes that are drawn with the
    network's own probabilities (the Fisher information), or, for outputs that are no class scores, of their sum with
    signs drawn for each (the squared distance).

    Parameters
    ----------
    generator : torch.Generator
        On the CPU.
    scores : bool
        Whether the outputs are class scores along axis 1.
    """

    def loss(output: Tensor, labels: object) -> Tensor:
        if not scores:
            signs = torch.randint(2, output.shape, generator=generator) * 2 - 1
            return (output * signs.to(output)).sum()
        rows = output.movedim(1, -1).flatten(0, -2)
        chances = rows.detach().to("cpu", torch.float64).softmax(dim=1)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return F.cross_entropy(rows, drawn.to(rows.device), reduction="sum")

    return loss


def taylor(
    network: nn.Module,
    spaces: Spaces,
    names: Sequence[str],
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    loss: Loss,
) -> dict[str, Tensor]:
    """Mean over the images of the squared first-order change of the loss, for each channel of some spaces.

    Parameters
    ----------
    network : torch.nn.Module
        Run in evaluation mode; its mode is restored and no gradient is left behind.
    spaces : decomp.graph.channel_spaces.Spaces
    names : sequence of str
        Channel spaces.
    batches : iterable of torch.Tensor of shape (B, C, H, W), or of pairs of such and labels
        On the network's device.
    loss : callable

    Returns
    -------
    dict of str to torch.Tensor
        Float64, one number per channel. A channel that nothing reads has 0.

    Raises
    ------
    UsageError
        There are no images.
    """
    places = {name: _columns(spaces, name) for name in names}
    readers = sorted({path for columns in places.values() for path in columns})
    total = {name: torch.zeros(spaces[name].width, dtype=torch.float64) for name in names}
    n_images, was_training = 0, network.training
    try:
        network.eval()
        for batch in batches:
            images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            changes = _changes(network, readers, images, labels, loss)
            for name in names:
                change = torch.zeros(len(images), spaces[name].width, dtype=torch.float64)
                for path, (columns, to) in places[name].items():
                    if path in changes:
                        change.index_add_(1, to, changes[path][:, columns])
                total[name] += change.square().sum(dim=0)
            n_images += len(images)
    finally:
        network.train(was_training)
    if not n_images:
        raise UsageError("images", "at least one image is needed for the gradients of the loss", got="none")
    return {name: value / n_images for name, value in total.items()}


def _columns(spaces: Spaces, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """For every layer that reads a space: which of its columns do, and the channel that each of them reads."""
    space, found = spaces[name], {}
    for path in space.consumers:
        use = spaces.use(path)
        assert use is not None  # it is read by it
        places = torch.from_numpy(places_in(space, spaces.roots_of(use.reads)))
        columns = torch.nonzero(places >= 0)[:, 0]
        found[path] = (columns, places[columns])
    return found


def _changes(network: nn.Module, readers: Sequence[str], images: Tensor, labels: Any, loss: Loss) -> dict[str, Tensor]:
    """For each reader, value times derivative of each of its input columns, shape (images, columns), over all calls."""
    read: list[tuple[str, Tensor]] = []

    def hook_of(path: str) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = inputs[0].clone()  # a value of its own, so that the derivative is that through this reader
            read.append((path, own))
            return (own, *inputs[1:])

        return hook

    hooks = [network.get_submodule(path).register_forward_pre_hook(hook_of(path)) for path in readers]
    try:
        with torch.enable_grad():
            # Values depend on the image at least, also where no weight wants a gradient.
            value = loss(network(images.detach().requires_grad_()), labels)
            gradients = torch.autograd.grad(value, [own for _, own in read], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    changes: dict[str, Tensor] = {}
    for (path, own), gradient in zip(read, gradients):
        if gradient is not None:
            change = _summed(own.detach(), gradient).cpu()
            changes[path] = changes[path] + change if path in changes else change
    return changes


def _summed(value: Tensor, gradient: Tensor) -> Tensor:
    """Products summed over the pixels in float64, shape (images, columns)."""
    if value.dim() == 2:
        return value.double() * gradient.double()
    # Image by image, as the products are taken in twice the precision.
    return torch.stack([(a.double() * b.double()).flatten(1).sum(dim=1) for a, b in zip(value, gradient)])
