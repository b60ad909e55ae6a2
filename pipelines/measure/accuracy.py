"""Accuracy and logits of a network on a split of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decomp.errors import UsageError
from decomp.execution.output_change import Outputs
from decomp.execution.outputs import named_tensors

from ...data.splits import Split
from ..distributed.process_group import own_part, total
from .devices import to_device

#: Numbers of images or outputs that networks are given at a time: 500 images of 3x105x105, 111 of 3x224x224.
ENTRIES_AT_A_TIME = 1 << 24


@torch.no_grad()
def outputs_of(
    module: nn.Module, images: Tensor, device: torch.device, outputs: Outputs, batch_size: int = 500
) -> dict[str, Tensor]:
    """Outputs of a network in evaluation mode, by name.

    Parameters
    ----------
    module : torch.nn.Module
        On `device`; set to evaluation mode.
    images : torch.Tensor of shape (m, C, H, W)
    device : torch.device
    outputs : Outputs
    batch_size : int
        Fewer where they are large, see :data:`ENTRIES_AT_A_TIME`.

    Returns
    -------
    dict of str to torch.Tensor of float32, shape (m, ...)
        On the CPU.
    """
    module.eval()
    parts = [outputs.named(module(to_device(part, device)), len(part)) for part in _parts(images, batch_size)]
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}


@torch.no_grad()
def logits_of(module: nn.Module, images: Tensor, device: torch.device, batch_size: int = 500) -> Tensor:
    """Class scores of a network in evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        On `device`; set to evaluation mode. Returns class scores alone, perhaps in a dict or list.
    images : torch.Tensor of shape (m, C, H, W)
    device : torch.device
    batch_size : int

    Returns
    -------
    torch.Tensor of float32, shape (m, n_classes)
        On the CPU.
    """
    module.eval()
    parts = []
    for part in _parts(images, batch_size):
        (scores,) = named_tensors(module(to_device(part, device)), len(part)).values()
        parts.append(scores.float().cpu())
    return torch.cat(parts)


def _parts(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    entries = images[0].numel() if len(images) else 1
    return images.split(max(1, min(batch_size, ENTRIES_AT_A_TIME // max(entries, 1))))


def accuracy(module: nn.Module, split: Split, indices: Tensor, device: torch.device, batch_size: int = 500) -> float:
    """Share of the images at ``indices`` of a split whose largest logit is that of their label, in 0..1.

    Of several processes each one looks at its share of the images.

    Raises
    ------
    UsageError
        The split has no labels.
    """
    n_correct = 0
    for images, labels in split.batches(own_part(indices), batch_size):
        if labels is None:
            raise UsageError("accuracy", "the images must have labels", got="images without")
        n_correct += int((logits_of(module, images, device).argmax(1) == labels.cpu()).sum())
    return total(n_correct) / len(indices)


def check_labels(labels: Tensor, logits: Tensor, data: str) -> None:
    """Check that the network has an output for every label.

    Parameters
    ----------
    labels : torch.Tensor of int64, shape (m,)
    logits : torch.Tensor of shape (m, n_classes)
    data : str
        Name of the image source, for the error.

    Raises
    ------
    UsageError
        A label is n_classes or larger.
    """
    if int(labels.max()) >= logits.shape[1]:
        raise UsageError(
            data,
            f"its labels must be below {logits.shape[1]}, the number of the network's outputs",
            got=int(labels.max()),
            fix="give the images that the network was trained for",
        )
