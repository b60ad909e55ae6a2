"""Accuracy and outputs of a network on a split of images."""

import torch

from decomp.errors import UsageError

from .devices import to_device


@torch.no_grad()
def logits_of(module, images, device, batch_size=500):
    """Outputs of `module` in eval mode and float32 for images ``(m, C, H, W)``: ``(m, n_classes)`` on the CPU."""
    module.eval()
    parts = [module(to_device(part, device)).float().cpu() for part in images.split(batch_size)]
    return torch.cat(parts)


def accuracy(module, split, indices, device, batch_size=500):
    """Share of the images ``split[indices]`` whose highest logit is their label's."""
    right = 0
    for images, labels in split.batches(indices, batch_size):
        right += int((logits_of(module, images, device).argmax(1) == labels.cpu()).sum())
    return right / len(indices)


def check_labels(labels, logits, data):
    """Refuse labels for which the network has no output."""
    if int(labels.max()) >= logits.shape[1]:
        raise UsageError(
            data,
            f"its labels must be below {logits.shape[1]}, the number of the network's outputs",
            got=int(labels.max()),
            fix="give the images that the network was trained for",
        )
