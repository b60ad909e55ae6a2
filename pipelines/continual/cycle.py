"""Cycle of CPG for one task: fine-tune and grow until the goal is met, prune, choose, retrain picks, commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from decomp.schemes import cpg_ladder, cpg_owners, cpg_picks
from decomp.schemes.cpg_decision import COMMIT, GROW, PRUNE, Finetuned, Goal, decide
from decomp.schemes.cpg_module import TaskState

from ...data.formats.task_file import TaskFile
from ...data.weights import digest_state_dict
from ..measure.intervals import short_share
from . import phases
from .goal import goal_of
from .guard import scores
from .phases import Learning, Phase
from .starts import start

MET, BELOW = "met", "below goal"
#: What follows a fine-tuning, for a reader.
_NEXT = {PRUNE: "weights are released", GROW: "the network grows", COMMIT: "it has no weights to release"}


@dataclass
class _Course:
    """Facts about the way to the result, for the record."""

    attempts: list[dict[str, float]] = field(default_factory=list)
    ladder: list[dict[str, float]] = field(default_factory=list)
    chosen: float = 0.0
    retrained: float | None = None
    kept_retrained: bool = False


def learn(learning: Learning, tasks: Sequence[TaskFile]) -> TaskFile:
    """Learn one task to its end and return what is to be committed.

    Every phase that is finished is read from its file, so that an interrupted call goes on and ends with the same
    bytes.
    """
    before, course = learning.store.committed(tasks), _Course()
    goal, independent = goal_of(learning)
    tuned, forced, action = _finetune(learning, before, goal, course)
    chosen = tuned if action == COMMIT else _compact(learning, tuned, goal, forced, course)
    if action != COMMIT and learning.number > 1 and learning.options.picking:
        chosen = _retrain(learning, chosen, course)
    learning.guard.check_state(chosen.state)
    facts = _facts(learning, chosen, goal, course) | {"independent": independent}
    return _task_file(learning, chosen.state, facts)


def _finetune(
    learning: Learning, before: TaskState, goal: Goal, course: _Course
) -> tuple[Phase, bool, str]:  # fmt: skip
    """Fine-tune at growing widths; every attempt begins from the state after the task before."""
    options, store, width = learning.options, learning.store, before.width
    while True:
        begin = start(
            store.family_at(width), before, learning.number, width, learning.images.n_classes, seed=learning.seed,
            reinitialise=options.free_weights == "kaiming",
        )  # fmt: skip
        own = cpg_owners.shares(begin.owners).get(learning.number, 0.0)
        parent = phases.state_digest(begin)
        tuned = phases.finetune(learning, begin, parent, owns=own > 0, name=f"finetune-{width:.2f}")
        facts = {"width": width, "validation": tuned.validation, "training": tuned.training, "own": own}
        course.attempts.append(facts)
        state = Finetuned(tuned.validation, tuned.training, own, width)
        action, forced = decide(state, goal, options.train_gate, options.width_step, options.max_width)
        _tell(learning, f"width {width:g}: validation accuracy", tuned.validation, f"{_goal(goal)}: {_NEXT[action]}")
        if action != GROW:
            return tuned, forced, action
        width = round(width + options.width_step, 6)


def _compact(learning: Learning, tuned: Phase, goal: Goal, forced: bool, course: _Course) -> Phase:
    """Climb the ladder and choose the most compact model that meets the goal."""
    options = learning.options
    found: dict[float, Phase] = {0.0: tuned}
    recorded: dict[float, float] = {}
    must = cpg_ladder.forced_share(learning.number, options.planned or learning.number + 1)
    current = tuned
    steps = cpg_ladder.EPOCHS * learning.steps_per_epoch()
    steps = min(steps, options.prune_epochs * learning.steps_per_epoch())
    for rung in cpg_ladder.rungs(options.ladder, steps):
        if forced and rung.start >= must:
            break
        pruned = phases.prune(learning, current.state, current.content, rung, name=f"prune-{rung.target:g}")
        if pruned is None:
            break
        sparsity = cpg_owners.sparsity(pruned.state.owners, learning.number)
        course.ladder.append(
            {"target": rung.target, "released": sparsity, "validation": pruned.validation, "training": pruned.training}
        )
        _tell(learning, f"{100 * sparsity:.1f} % released: validation accuracy", pruned.validation, "")
        if options.train_gate > 0 and pruned.training <= options.train_gate:
            break
        recorded[rung.target], found[rung.target], current = pruned.validation, pruned, pruned
    course.chosen = cpg_ladder.choose(recorded, goal.least, forced)
    return found[course.chosen]


def _retrain(learning: Learning, chosen: Phase, course: _Course) -> Phase:
    """Learn the picks anew; kept only where that is better than the chosen model with its own picks."""
    begin = replace(chosen.state, picks=cpg_picks.fresh(chosen.state.owners))
    retrained = phases.retrain(learning, begin, chosen.content, name="retrain")
    course.retrained, course.kept_retrained = retrained.validation, retrained.validation > chosen.validation
    _tell(learning, "picks learned anew: validation accuracy", retrained.validation,
          "kept" if course.kept_retrained else f"not kept, it was {100 * chosen.validation:.1f} %")  # fmt: skip
    return retrained if course.kept_retrained else chosen


def _goal(goal: Goal) -> str:
    tolerated = f", met from {100 * max(goal.least, 0.0):.1f} % (one standard error)" if goal.tolerance else ""
    return f"goal {100 * goal.accuracy:.1f} %{tolerated}"


def _tell(learning: Learning, what: str, accuracy: float, more: str) -> None:
    words = short_share(accuracy, len(learning.images.held_out))
    learning.reporter.step(f"{what} {words}{', ' if more else ''}{more}")


def _facts(learning: Learning, chosen: Phase, goal: Goal, course: _Course) -> dict[str, Any]:
    state, number = chosen.state, learning.number
    picked = {layer: cpg_picks.picked(values) for layer, values in state.picks.items()}
    return {
        "options": learning.options.to_json(),
        "identity": learning.identity,
        "status": MET if chosen.validation >= goal.least else BELOW,
        "goal": goal.accuracy,
        "tolerance": goal.tolerance,
        "validation": chosen.validation,
        "training": chosen.training,
        "n_validation": len(learning.images.held_out),
        "n_train": len(learning.images.train),
        "data_digest": learning.images.source.digest("train"),
        "attempts": course.attempts,
        "ladder": course.ladder,
        "chosen": course.chosen,
        "retrained": course.retrained,
        "kept_retrained": course.kept_retrained,
        "task_ratio": cpg_owners.task_ratio(state.owners, number, state.width),
        "zero_ratio": cpg_owners.task_ratio(state.owners, cpg_owners.FREE, state.width),
        "sparsity": cpg_owners.sparsity(state.owners, number),
        "shared_ratio": cpg_owners.shared_ratio(state.owners, number, picked) if picked else None,
    }


def _task_file(learning: Learning, state: TaskState, facts: dict[str, Any]) -> TaskFile:
    """What is committed, with the test accuracy, which is measured here and decides nothing."""
    number, images = learning.number, learning.images
    picked = {layer: cpg_picks.picked(values) for layer, values in state.picks.items()}
    used = {
        layer: (owner == number) | (cpg_owners.old(owner, number) & picked.get(layer, owner > 0))
        for layer, owner in state.owners.items()
    }
    values = {layer: state.weights[layer][owner == number] for layer, owner in state.owners.items()}
    network = learning.store.family_at(state.width).build(state.width, images.n_classes)
    effective = state.effective(number)
    network.load_state_dict(effective)
    probe, labels = images.probe()
    facts["test"] = images.test(network.to(learning.device), learning.device)
    facts["n_test"] = None if images.source.test is None else len(images.source.test)
    return TaskFile(
        number, learning.options.name, state.width, images.n_classes, used, values, state.private,
        {"images": probe, "labels": labels, "scores": scores(network.cpu(), effective, probe)},
        digest_state_dict(effective), facts,
    )  # fmt: skip
