"""The process group: numbers of processes, sums over them, values of the first one, shares of the work.

Without torchrun there is one process: every sum is what it was, and every share is all. All functions that exchange
values must be called by all processes, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from decomp.time_spent import part

from .launch import n_started, own_number

Value = TypeVar("Value")

#: A process may work alone for long, such as the first one while it measures latency. One that has ended is noticed by
#: its closed connections, and by torchrun, which then ends the others.
PATIENCE = timedelta(hours=24)

_stores: list[Any] = []
_exchanged = [0]


def join() -> None:
    """Connect this process with the others that torchrun has started; nothing where it is alone.

    CPU tensors travel by gloo, CUDA tensors by NCCL. Processes on one machine get one GPU each.
    """
    if n_started() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    _stores.append(store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def leave() -> None:
    """Disconnect from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def number() -> int:
    """Number of this process, from 0; the first one writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(value: float) -> float:
    """Sum of a number over all processes, in float64."""
    return value if count() == 1 else float(summed(torch.tensor(float(value), dtype=torch.float64)))


def summed(values: Tensor, owner: int | None = None) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor; all of them get the same bits, or only `owner` gets it."""
    if count() == 1:
        return values
    values = values.clone(memory_format=torch.contiguous_format)
    _count_bytes(values.nbytes)
    with _exchange():
        if owner is None:
            dist.all_reduce(values)
        else:
            dist.reduce(values, dst=owner)
    return values


def from_number(rank: int, values: Tensor) -> Tensor:
    """A tensor as one process has it, in all processes; it is of the same shape and order in memory in each."""
    if count() == 1:
        return values
    _count_bytes(values.nbytes)
    sent = values.clone(memory_format=torch.contiguous_format)
    with _exchange():
        dist.broadcast(sent, src=rank)
    # The order in memory decides how a product rounds.
    return values if number() == rank else torch.empty_like(values).copy_(sent)


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in their order."""
    values: list[Value] = [value] * count()
    if count() > 1:
        with _exchange():
            dist.all_gather_object(values, value)
    return values


def gathered_by_first(value: Value) -> list[Value]:
    """The values of all processes, in their order, in the first one; nothing in the others."""
    if count() == 1:
        return [value]
    values: list[Any] | None = [None] * count() if number() == 0 else None
    dist.gather_object(value, values)
    return values or []


def handed(value: Value | None, source: int, target: int) -> Value | None:
    """A value of the process `source` in the process `target`; None in the others. Its tensors are on the CPU."""
    if source == target or number() not in (source, target):
        return value if number() == target else None
    values: list[Any] = [value]
    with _exchange():
        if number() == source:
            dist.send_object_list(values, dst=target, device=torch.device("cpu"))
            return None
        dist.recv_object_list(values, src=source, device=torch.device("cpu"))
    return values[0]


def pass_on(sent: Mapping[int, Tensor], awaited: Mapping[int, Tensor]) -> None:
    """Send tensors to some processes, and fill others with what comes from some; all of them on the CPU.

    Parameters
    ----------
    sent, awaited : mapping of int to torch.Tensor
        By process; called by all that have any.
    """
    with _exchange():
        values = {rank: value.contiguous() for rank, value in sent.items()}
        works = [dist.isend(value, dst=rank) for rank, value in values.items()]
        for rank, value in awaited.items():
            dist.recv(value, src=rank)
        for work in works:
            assert work is not None  # this process is of the group
            work.wait()
    _count_bytes(sum(value.nbytes for value in values.values()))


def exchanged_bytes() -> int:
    """Bytes of tensors that this process has given to exchanges so far; what travels also depends on their number."""
    return _exchanged[0]


def _exchange() -> AbstractContextManager[None]:
    """Time of an exchange and of waiting for the others."""
    return part("exchange with other processes")


def _count_bytes(n_bytes: int) -> None:
    _exchanged[0] += n_bytes


def from_first(make: Callable[[], Value]) -> Value:
    """A value that the first process makes, in all processes."""
    if count() == 1:
        return make()
    values = [make() if number() == 0 else None]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]  # type: ignore[return-value]


def own_range(n: int) -> range:
    """The share of this process of `n` things: neighbours, as many as the others have or one more."""
    return range_of(number(), n)


def range_of(rank: int, n: int) -> range:
    """The share of a process of `n` things."""
    return range(rank * n // count(), (rank + 1) * n // count())


def own_part(values: Tensor) -> Tensor:
    """The entries of the first axis that are this process's share."""
    mine = own_range(len(values))
    return values[mine.start : mine.stop]


def first_to_say() -> bool:
    """Whether this process is the first that asks: of all errors of a job one is printed."""
    if not _stores:
        return own_number() == 0  # not connected yet: all processes stumble over the same mistake
    try:
        return _stores[0].add("said", 1) == 1
    except RuntimeError:
        return own_number() == 0  # the machine of the store has gone
