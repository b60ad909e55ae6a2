"""The process group: numbers of processes, sums over them, values of the first one, shares of the work.

Without torchrun there is one process: every sum is what it was, and every share is all. All functions that exchange
values must be called by all processes, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from decomp.errors import DecompError
from decomp.exact_sum import ExactSum
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


def summed(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor; all of them get the same bits."""
    if count() == 1:
        return values
    values = values.clone(memory_format=torch.contiguous_format)
    _count_bytes(values.nbytes)
    with _exchange():
        dist.all_reduce(values)
    return values


def exact_total(own: ExactSum) -> Tensor:
    """A sum over the terms of all processes, rounded to float64: the bits of one process that has all of the terms."""
    total = exact_total_for(None, own)
    assert total is not None
    return total


def exact_total_for(owner: int | None, own: ExactSum) -> Tensor | None:
    """The same sum in the process `owner`, None in the others; in all of them where the owner is None.

    Each process adds up a part of the entries for all, so that none sends more than three times the sum's size.

    Parameters
    ----------
    owner : int or None
    own : ExactSum
        Of this process's terms, perhaps of none.
    """
    if count() == 1:
        return own.rounded()
    n = own.high.numel()
    size = -(-n // count())
    sent = own.high.new_zeros(count(), 2, size)
    for place, values in enumerate((own.high, own.low)):
        for rank, part_of_rank in enumerate(values.flatten().split(size)):
            sent[rank, place, : len(part_of_rank)] = part_of_rank
    received = torch.empty_like(sent)
    with _exchange():
        dist.all_to_all_single(received, sent)
        total = ExactSum((size,), own.high.device)
        for high, low in received:
            total.add(high)
            total.low += low
        mine = total.rounded()
        wanted = owner is None or owner == number()
        parts = [torch.empty_like(mine) for _ in range(count())] if wanted else None
        if owner is None:
            assert parts is not None
            dist.all_gather(parts, mine)
        else:
            dist.gather(mine, parts, dst=owner)
    _count_bytes(sent.nbytes + mine.nbytes)
    return None if parts is None else torch.cat(parts)[:n].view(own.high.shape)


def joined(rows: Tensor) -> Tensor:
    """The rows of all processes one below the other, in the order of the processes, in all of them."""
    if count() == 1:
        return rows
    _count_bytes(rows.nbytes)
    return torch.cat(gathered(rows.cpu())).to(rows.device)


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
    """A value that the first process makes, in all processes; a mistake that it finds is raised in all of them."""
    if count() == 1:
        return make()
    found: list[Any] = [None, None]
    if number() == 0:
        try:
            found[0] = make()
        except DecompError as error:
            got = None if error.got is None else str(error.got)
            # A class with arguments of its own is raised as the one that it was derived from.
            kind = next(one for one in type(error).__mro__ if one is DecompError or "__init__" not in vars(one))
            found[1] = kind, error.thing, error.rule, got, error.fix
            dist.broadcast_object_list(found, device=torch.device("cpu"))
            raise
    dist.broadcast_object_list(found, device=torch.device("cpu"))
    if found[1] is not None:
        kind, *words = found[1]
        raise kind(*words)
    return found[0]


def own_range(n: int) -> range:
    """The share of this process of `n` things: neighbours, as many as the others have or one more."""
    return range_of(number(), n)


def range_of(rank: int, n: int) -> range:
    """The share of a process of `n` things."""
    return range(rank * n // count(), (rank + 1) * n // count())


def batches_of(rank: int, n: int, size: int) -> range:
    """The share of a process of `n` images, in whole batches of `size`: they are the batches of one process."""
    batches = range_of(rank, -(-n // size))
    return range(min(batches.start * size, n), min(batches.stop * size, n))


def own_batches(n: int, size: int) -> range:
    """The share of this process of `n` images, in whole batches."""
    return batches_of(number(), n, size)


def spread(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """What a function finds for all items, in their order, in all processes; each applies it to its share."""
    mine = own_range(len(items))
    return [one for of_one in gathered(function(items[mine.start : mine.stop])) for one in of_one]


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
