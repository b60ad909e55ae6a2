"""Choice between planned networks by trial: the first stays unless another one is surely better."""

from types import SimpleNamespace

import pytest
import torch

from decomp.pipelines.decomposition import best_of_trials
from decomp.pipelines.decomposition.best_of_trials import BestOfTrials
from tests.pipelines.digit_runs import Collected


@pytest.fixture
def trials(monkeypatch):
    """Trials whose changes are the plans themselves."""

    def say(words, changes, reporter):
        reporter.step(f"{words}: {changes.tolist()}")

    monkeypatch.setattr(best_of_trials, "Judge", lambda opened: SimpleNamespace(opened=opened, say=say))
    monkeypatch.setattr(best_of_trials, "changes_of_plan", lambda surveyed, plans, options, judge: plans)
    return BestOfTrials("opened", "options", Collected())


def changes(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_first_candidate_is_the_best_one_until_another_is_surely_better(trials):
    assert trials.best is None and trials.changes is None
    assert trials.take("first", "a", None, changes(0.2, 0.21, 0.19))
    assert not trials.take("equal", "b", None, changes(0.2, 0.21, 0.19))
    assert not trials.take("unsure", "c", None, changes(0.0, 0.39, 0.0))  # a smaller mean, within the errors
    assert trials.best == "first" and trials.changes.tolist() == [0.2, 0.21, 0.19]
    assert trials.take("better", "d", None, changes(0.1, 0.11, 0.09)) and trials.best == "better"
    # Held against the best one so far, not against the first.
    assert not trials.take("between", "e", None, changes(0.15, 0.16, 0.14))
    assert trials.best == "better" and trials.changes.tolist() == [0.1, 0.11, 0.09]


def test_each_trial_is_said_with_its_words(trials):
    trials.take("first", "with all blocks", None, changes(0.25, 0.75))
    trials.take("second", "without a", None, changes(0.5, 0.5))
    assert trials.reporter.messages == [
        "with all blocks: [0.25, 0.75]",
        "without a: [0.5, 0.5]",
    ]
