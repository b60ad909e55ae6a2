"""Guard of committed tasks: frozen weights, owners, released zeros and class scores, while others are learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.func import functional_call

from decomp.errors import DecompError
from decomp.schemes import cpg_owners
from decomp.schemes.cpg_module import TaskModule, TaskState, effective_state

from ...data.formats.task_file import TaskFile
from .store import TaskStore, at_width_of


@torch.no_grad()
def scores(network: fx.GraphModule, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Class scores of a network with the values of a state dict, on the CPU, all images in one batch.

    Bits depend on the size of the batch and on the widths of the layers, so that both are always the same.
    """
    result: Tensor = functional_call(network, dict(state), (images,))
    return result


@dataclass(frozen=True, eq=False)
class _Committed:
    task: TaskFile
    template: fx.GraphModule
    scores: Tensor


class Guard:
    """What must not change while a task is learned.

    Parameters
    ----------
    store : TaskStore
    tasks : sequence of TaskFile
        All committed ones. Their scores on this machine, at the begin, are those that must stay: another processor may
        round otherwise than the one that committed them.
    """

    def __init__(self, store: TaskStore, tasks: Sequence[TaskFile]) -> None:
        self.task = len(tasks) + 1
        self.committed: list[_Committed] = []
        for number in range(1, len(tasks) + 1):
            task, state = tasks[number - 1], store.effective(tasks[:number])
            template = store.family_at(task.width).build(task.width, task.n_classes)
            self.committed.append(_Committed(task, template, scores(template, state, task.probe["images"])))
        self.digest = ""
        self.owners: dict[str, Tensor] = {}
        if tasks:
            now = store.committed(tasks)
            self.digest = cpg_owners.frozen_digest(now.weights, now.owners, self.task)
            self.owners = now.owners

    def check_module(self, module: TaskModule) -> None:
        """See :meth:`check`; for a network in training."""
        weights = {layer: _plain(weight) for layer, weight in module.weights.items()}
        self.check(weights, {layer: _plain(owner) for layer, owner in module.owners.items()})

    def check_state(self, state: TaskState) -> None:
        """See :meth:`check`."""
        self.check(state.weights, state.owners)

    def check(self, weights: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> None:
        """Compare shared weights and owners, contiguous and on the CPU, with the committed ones.

        Raises
        ------
        DecompError
            A frozen weight or an owner has changed, a released weight is not 0, or a task's scores are others.
        """
        cpg_owners.require_zero_where_free(weights, owners)
        if not self.committed:
            return
        for layer, before in self.owners.items():
            now = owners[layer][tuple(slice(0, size) for size in before.shape)]
            if not torch.equal(now[before != cpg_owners.FREE], before[before != cpg_owners.FREE]):
                raise DecompError(layer, "the owner of a weight that a committed task owns must not change")
        if cpg_owners.frozen_digest(weights, owners, self.task) != self.digest:
            raise DecompError("frozen weights", "must stay as they were committed to the last bit", got="other ones")
        for entry in self.committed:
            self._check_scores(entry, weights, owners)

    def _check_scores(self, entry: _Committed, weights: Mapping[str, Tensor], owners: Mapping[str, Tensor]) -> None:
        task = entry.task
        shared = at_width_of(task, weights), at_width_of(task, owners)
        state = {**task.private, **effective_state(*shared, task.number, task.used)}
        now = scores(entry.template, state, task.probe["images"])
        if not torch.equal(now, entry.scores):
            off = float((now - entry.scores).abs().max())
            raise DecompError(f"task {task.name}", "its class scores must not change by a bit", got=f"{off:.3g}")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
