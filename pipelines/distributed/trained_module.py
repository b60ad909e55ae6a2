"""Training of one module by several processes: mean gradients, common batch normalisation, shares of batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from decomp.errors import UsageError

from .process_group import count, own_range, summed


@contextmanager
def shared_training(module: nn.Module) -> Iterator[nn.Module]:
    """The module to call for the loss while all processes train `module` together.

    Its gradients are the means of those of all processes, and its batch normalisations use the statistics of the
    images of all of them. At the beginning every process gets the parameters and buffers of the first one.
    """
    if count() == 1:
        yield module
        return
    # torch.nn.SyncBatchNorm takes no CPU tensors, and a module of another class would be missed by those that look for
    # batch normalisations; so the modules stay and only compute their statistics over all processes.
    changed = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for part in changed:
        part.forward = MethodType(_normalised, part)  # type: ignore[method-assign]
    try:
        on_gpu = next(module.parameters()).is_cuda
        yield DistributedDataParallel(
            module, device_ids=[torch.cuda.current_device()] if on_gpu else None,
            broadcast_buffers=False,  # they are equal: the statistics are common
            static_graph=True,  # parameters that no loss reaches are known after the first step
        )  # fmt: skip
    finally:
        for part in changed:
            del part.forward


def _normalised(self: _BatchNorm, values: Tensor) -> Tensor:
    """Forward pass of a batch normalisation with the statistics of the values of all processes.

    Ioffe and Szegedy 2015, algorithm 1; the running variance is that of a sample (divided by m - 1), as PyTorch's is.
    """
    if not self.training:
        return type(self).forward(self, values)
    rows = values.to(torch.promote_types(values.dtype, torch.float32)).transpose(0, 1).flatten(1)
    m = float(summed(torch.tensor(float(rows.shape[1]), dtype=torch.float64)))
    mean = all_reduce(rows.sum(1)) / m
    variance = all_reduce((rows - mean[:, None]).square().sum(1)) / m
    with torch.no_grad():
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), step)
        self.running_var.lerp_((variance * (m / max(m - 1, 1))).to(self.running_var), step)
    shape, scale = (1, -1, *[1] * (values.dim() - 2)), torch.rsqrt(variance + self.eps)
    scale = scale if self.weight is None else scale * self.weight
    result = (values - mean.reshape(shape)) * scale.reshape(shape)
    return (result if self.bias is None else result + self.bias.reshape(shape)).to(values.dtype)


def take_from_first(module: nn.Module) -> None:
    """Give the module the parameters and buffers that it has in the first process, in place."""
    for value in module.state_dict().values() if count() > 1 else ():
        dist.broadcast(value, src=0)


def own_places(batch_size: int) -> slice:
    """Places in every batch of this process.

    Raises
    ------
    UsageError
        There are fewer images in a batch than processes.
    """
    if batch_size < count():
        rule, fix = "each process must have an image of every batch", "give a larger batch or start fewer processes"
        raise UsageError("--batch-size", rule, got=f"{batch_size} for {count()} processes", fix=fix)
    mine = own_range(batch_size)
    return slice(mine.start, mine.stop)


def places_of(order: Tensor, batch_size: int, places: slice | None) -> tuple[Tensor, int]:
    """The entries of an order at some places of every batch, and how many a batch then has.

    Parameters
    ----------
    order : LongTensor
        Full batches, or one that is smaller.
    batch_size : int
    places : slice, optional
        All where not given.
    """
    if places is None:
        return order, batch_size
    kept = order.reshape(-1, min(batch_size, len(order)))[:, places]
    return kept.flatten(), kept.shape[1]
