r"""Which errors of a layer the network's output feels: the output metric.

An error e in the responses of a layer changes the network's output by about eᵀFe, with F the second moment of the
gradient of the output at these responses. For class scores the loss is the negative log-likelihood of a label drawn
from the network's own softmax, so F is a block of the Fisher information, and eᵀFe is twice the Kullback–Leibler
divergence to second order (Amari 1998). No labels are needed.
"""

import torch
import torch.nn.functional as F

from decomp import seeds
from decomp.execution.outputs import as_tensor

# Added to the diagonal, relative to its mean: directions that no sampled label felt still count a little.
DAMPING = 0.1


def output_metrics(view, batches, seed=0):
    """The output metric of every layer of a network.

    Parameters
    ----------
    view : decomp.graph.network_graph.NetworkGraph
        In evaluation mode; nothing is left on it.
    batches : iterable of torch.Tensor
        Images (m, C, H, W) on the network's device.
    seed : int
        For the labels drawn, or the directions where the output is not class scores.

    Returns
    -------
    dict of str to torch.Tensor
        (n, n) for each layer that is fitted, float64, symmetric, positive definite, mean diagonal 1.
    """
    sums, hooks = {}, []
    for layer in view.layers:
        if layer.fitted:
            module = view.module.get_submodule(layer.name)
            hooks.append(module.register_forward_hook(_gather(sums, layer.name)))
    generator = seeds.generator(seed, "output metric")
    try:
        for images in batches:
            # A leaf that wants a gradient, so that every response has one, whatever the parameters want.
            leaf = images.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                loss = _loss(as_tensor(view.module(leaf)), generator)
                torch.autograd.grad(loss, leaf)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _damped(total) for name, total in sums.items()}


def _gather(sums, name):
    def hook(module, inputs, output):
        def add(gradient):
            rows = gradient.detach().flatten(2).transpose(1, 2).flatten(0, 1) if gradient.dim() == 4 else gradient
            product = (rows.T @ rows).double()
            sums[name] = sums[name] + product if name in sums else product

        # On the tensor as it leaves the layer, before anything changes it in place.
        output.register_hook(add)

    return hook


def _loss(output, generator):
    """A scalar whose gradient's second moment is the metric at the output."""
    if output.dim() == 2:
        # One number an image, whatever the batch: torch.multinomial would draw others for other batches.
        drawn = torch.rand(len(output), 1, generator=generator, dtype=torch.float64)
        below = output.detach().double().softmax(1).cumsum(1).cpu() < drawn
        labels = below.sum(1).clamp_max(output.shape[1] - 1)
        return F.cross_entropy(output, labels.to(output.device), reduction="sum")
    return (output * torch.randn(output.shape, generator=generator).to(output)).sum()


def _damped(total):
    total = (total + total.T) / 2
    scale = total.diagonal().mean()
    eye = torch.eye(len(total), dtype=total.dtype, device=total.device)
    if not scale > 0:
        return eye
    return (total / scale + DAMPING * eye) / (1 + DAMPING)
