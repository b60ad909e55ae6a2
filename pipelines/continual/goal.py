"""Goal of a task: a number, or the accuracy of an independent network that is trained for the same steps first."""

from __future__ import annotations

from typing import Any

from decomp.schemes.cpg_decision import Goal, standard_error
from decomp.schemes.cpg_module import TaskModule

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from ..training.hooks import Hooks
from ..training.loop import fit
from . import phases
from .guard import Guard
from .phases import Learning
from .scheme import CpgScheme
from .starts import alone
from .store import base_state

KIND = "decomp independent"


def goal_of(learning: Learning) -> tuple[Goal, dict[str, float | None] | None]:
    """The goal of a task, and the accuracies of the independent network where one was trained.

    The tolerance is one standard error of an accuracy measured on the held-out images, or 0 where the goal is strict.
    """
    asked, n = learning.options.goal, len(learning.images.held_out)
    independent = None if isinstance(asked, float) else _independent(learning)
    accuracy = float(asked) if independent is None else float(independent["validation"] or 0.0)
    tolerance = 0.0 if learning.options.strict else standard_error(accuracy, n)
    return Goal(accuracy, tolerance), independent


def _independent(learning: Learning) -> dict[str, Any]:
    """Accuracies of the base network's structure, trained on this task alone at width 1."""
    path = learning.work / "independent.json"
    identity = digest_json([learning.identity, "independent"])
    if path.exists():
        record = read_json(path, kind=KIND, fix="add the task with --redo", sealed=True)
        if record.get("identity") == identity:
            return {"validation": record["validation"], "test": record["test"]}
    images, options, store = learning.images, learning.options, learning.store
    family = store.family(False)
    redrawn = learning.number if learning.number > 1 and store.options.weights is None else None
    begin = alone(family, base_state(store.base, family), images.n_classes, seed=learning.seed, redrawn=redrawn)
    module = TaskModule(family.build(1.0, images.n_classes), begin, 1)
    scheme = CpgScheme(module, Guard(store, ()), options.weight_decay)

    def validate(network: Any) -> dict[str, float]:
        return {"score": (value := images.validation(network, learning.device)), "validation_accuracy": value}

    learning.reporter.step(f"task {options.name}: an independent network for its goal")
    checkpoint = learning.work / "independent.checkpoint"
    training = fit(
        module, phases.finetune_recipe(learning), stage=f"tasks/{learning.number}/independent",
        n_images=len(images.train), batches=images.batches, loss=phases.classification_loss, validate=validate,
        keep_best=False, checkpoint=checkpoint, start_over=f"remove {checkpoint}",
        identity={"phase": identity}, hooks=[Hooks.of(scheme, "cpg")], device=learning.device,
        reporter=learning.reporter,
    )  # fmt: skip
    record = {
        "identity": identity, "validation": training.history[-1]["validation_accuracy"],
        "test": images.test(module, learning.device),
    }  # fmt: skip
    write_json(path, record, kind=KIND, seal=True)
    checkpoint.unlink(missing_ok=True)
    return {"validation": record["validation"], "test": record["test"]}
