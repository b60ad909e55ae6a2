"""Verification of committed tasks: weights by their digest, and class scores on the stored probe, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decomp.errors import FileError

from ...data.formats.task_file import TaskFile
from ...data.weights import digest_state_dict
from ..console.words import counted
from . import matrix
from .store import TaskStore

IDENTICAL, OTHER_SCORES, CHANGED, UNREADABLE = "bit-identical", "same weights", "changed", "unreadable"


@dataclass(frozen=True)
class Verified:
    """One task: ``state`` is 'bit-identical', 'same weights', 'changed' or 'unreadable', with the reason.

    'same weights': the weights are the committed ones, but this machine computes other last digits than the one that
    committed them.
    """

    name: str
    state: str
    reason: str = ""

    @property
    def good(self) -> bool:
        """Whether the task has the weights that were committed."""
        return self.state in (IDENTICAL, OTHER_SCORES)

    def words(self) -> str:
        """Human-readable line."""
        return f"{self.name}: {self.state}" + (f" ({self.reason})" if self.reason else "")


def verify(store: TaskStore) -> list[Verified]:
    """Verify every task of a run, each from its files and in an ordinary network.

    A damaged file also hides the tasks behind it, which may use its weights; those before it are verified.
    """
    tasks, hidden = store.readable()
    results = []
    for number, task in enumerate(tasks, start=1):
        try:
            results.append(_verified(store, tasks[:number]))
        except FileError as error:  # its values do not fit its bits
            results.append(Verified(task.name, UNREADABLE, str(error).rstrip(".")))
    results += [Verified(name, UNREADABLE, reason) for name, reason in hidden.items()]
    gone = [] if hidden else matrix.lost(store)
    return results + [Verified(name, UNREADABLE, f"there is no file of it in {store.run.tasks_dir}") for name in gone]


@torch.no_grad()
def _verified(store: TaskStore, tasks: list[TaskFile]) -> Verified:
    task, state = tasks[-1], store.effective(tasks)
    if digest_state_dict(state) != task.effective:
        return Verified(task.name, CHANGED, "its weights are not those that were committed")
    now, then = store.built(task, state)(task.probe["images"]), task.probe["scores"]
    if torch.equal(now, then):
        return Verified(task.name, IDENTICAL, counted(len(then), "image"))
    off = float((now - then).abs().max())
    reason = f"class scores differ by at most {off:.2g}: this machine rounds otherwise than the one that committed it"
    return Verified(task.name, OTHER_SCORES, reason)
