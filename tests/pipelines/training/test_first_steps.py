"""Decisions by timed steps: the precision, and an original that answers once for every image."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decomp.pipelines.training import first_steps
from decomp.pipelines.training.first_steps import original_answers_once, precision_for
from decomp.pipelines.training.recipe import Recipe
from decomp.pipelines.training.unlabelled import UnlabelledTask
from tests.pipelines.small_runs import quiet

CPU, NET = torch.device("cpu"), nn.Linear(2, 2)
STEPS = {"n_images": 100, "batches": None, "loss": None, "device": CPU, "n_parts": 3}


def recipe(epochs=1):
    return Recipe(epochs=epochs, learning_rate=0.1, batch_size=10)


class Task(UnlabelledTask):
    def __init__(self, keeps=True):
        self.keeps_targets, self.train, self.kept = keeps, torch.arange(100), []

    def keep_targets(self, original, device, reporter):
        self.kept.append((original, device))


@pytest.mark.parametrize("given", [None, object()])
def test_precisions_are_timed_where_there_is_a_time_limit(monkeypatch, given):
    lines, timed, reporter = [], [], quiet()

    def step_time(network, recipe, *, most, precision, **steps):
        timed.append(precision)
        assert (network, most, steps) == (NET, first_steps.STEPS, STEPS)
        return {"float32": 3.0, "bfloat16": 1.5}[precision]

    monkeypatch.setattr(first_steps, "step_time", step_time)
    reporter.step = lines.append
    found = precision_for("auto", NET, recipe(), STEPS, given, {}, reporter)
    assert found == ("float32" if given is None else "bfloat16") and set(timed) == (set() if given is None else {
        "float32", "bfloat16"})  # fmt: skip
    assert len(lines) == (given is not None)


@pytest.mark.parametrize(
    "epochs, seconds, begun, expected",
    [
        (1, None, {}, False), (2, None, {}, True), (1, 0.9, {}, True), (1, 1.1, {}, False),
        (2, None, {"targets_kept": False}, False), (1, 1.1, {"targets_kept": True}, True),
    ],
)  # fmt: skip
def test_the_original_answers_once_where_images_are_seen_more_than_once(monkeypatch, epochs, seconds, begun, expected):
    monkeypatch.setattr(first_steps, "step_time", lambda *arguments, **options: seconds)
    # Of 100 images in batches of ten a pass has ten steps; there is time for ten steps of a second each.
    limit = None if seconds is None else SimpleNamespace(has=lambda needed: needed < 10)
    task = Task()
    steps = {**STEPS, "precision": "float32"}
    assert original_answers_once(task, NET, NET, recipe(epochs), steps, limit, begun, quiet()) is expected
    assert task.kept == ([(NET, CPU)] if expected else [])


def test_an_original_that_is_not_needed_or_whose_answers_do_not_fit_is_not_asked():
    steps = {**STEPS, "precision": "float32"}
    for task, original in ((Task(keeps=False), NET), (Task(), None), (SimpleNamespace(), NET)):
        assert original_answers_once(task, original, NET, recipe(5), steps, None, {}, quiet()) is False
