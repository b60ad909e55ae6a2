"""Phases: recipes, files, the best epoch of a retraining."""

import shutil
from dataclasses import replace

import pytest
import torch

from decomp.errors import FileError, NumericalError
from decomp.pipelines.continual import phases
from decomp.pipelines.continual.phases import finetune_recipe, milestones, state_digest
from decomp.pipelines.continual.starts import start
from decomp.schemes.cpg_ladder import Rung
from tests.pipelines.continual.learnings import learning


@pytest.fixture
def third(learned, tmp_path):
    shutil.copytree(learned.run, tmp_path / "run")
    return learning(tmp_path, tmp_path / "run", retrain_epochs=8)


@pytest.fixture
def begin(third):
    store = third.store
    return start(store.family_at(1.0), store.committed(store.tasks()), 3, 1.0, 2, seed=0)


def test_rates_fall_as_published(third):
    long = replace(third, options=replace(third.options, epochs=100))
    recipe = finetune_recipe(long)
    assert recipe.learning_rate == 0.01 and recipe.milestones == (50, 80) and recipe.gamma == (0.1, 0.1)
    assert recipe.weight_decay == 0 and recipe.nesterov and recipe.momentum == 0.9
    assert milestones(100, 0.5, 0.7) == (50, 70) and milestones(2, 0.5, 0.7) == (1,) and milestones(1, 0.5) == ()


def test_picks_stop_learning_after_seven_tenths_unless_the_task_owns_nothing(third, begin, monkeypatch):
    seen = []
    monkeypatch.setattr(phases, "_run", lambda *args, picks=None, **more: seen.append(picks))
    long = replace(third, options=replace(third.options, epochs=100))
    phases.finetune(long, begin, "p", owns=True, name="a")
    phases.finetune(long, begin, "p", owns=False, name="a")
    assert seen[0] == {
        "learning_rate": 5e-4, "schedule": "milestones", "milestones": (50, 70), "gamma": (0.2, 0.0)
    }  # fmt: skip
    assert seen[1]["milestones"] == (50,) and seen[1]["gamma"] == (0.2,)
    phases.finetune(replace(long, options=replace(long.options, picking=False)), begin, "p", owns=True, name="a")
    assert seen[2] is None


def test_a_phase_that_is_finished_is_read_and_not_trained_again(third, begin, monkeypatch):
    one = phases.finetune(third, begin, state_digest(begin), owns=True, name="finetune-1.00")
    monkeypatch.setattr(phases, "fit", None)
    two = phases.finetune(third, begin, state_digest(begin), owns=True, name="finetune-1.00")
    assert one.content == two.content and one.validation == two.validation
    assert torch.equal(one.state.weights["4"], two.state.weights["4"])
    with pytest.raises(FileError, match="finetune-1.00.safetensors: belongs to another attempt at this task; add"):
        phases.finetune(third, begin, "another", owns=True, name="finetune-1.00")


def test_pruning_leaves_picks_and_earlier_weights_and_releases_the_share(third, begin):
    begin.picks["4"][0] = 0.001
    pruned = phases.prune(third, begin, "p", Rung(0.0, 0.5, 4), name="prune-0.5")
    assert torch.equal(pruned.state.picks["4"], begin.picks["4"])
    own = sum(int((owner == 3).sum()) for owner in begin.owners.values())
    left = sum(int((owner == 3).sum()) for owner in pruned.state.owners.values())
    assert left == pytest.approx(own / 2, abs=2)
    old = begin.owners["4"] < 3
    assert torch.equal(pruned.state.weights["4"][old], begin.weights["4"][old])


def test_a_ladder_ends_where_a_rung_diverges(third, begin, monkeypatch):
    def diverge(*args, **more):
        raise NumericalError("epoch 1", "the training diverges")

    monkeypatch.setattr(phases, "fit", diverge)
    assert phases.prune(third, begin, "p", Rung(0.0, 0.5, 4), name="prune-0.5") is None


def test_a_retraining_keeps_its_best_epoch_in_one_file(third, begin, monkeypatch):
    histories, real = [], phases.fit
    monkeypatch.setattr(phases, "fit", lambda *a, **k: histories.append(real(*a, **k)) or histories[-1])
    result = phases.retrain(third, begin, "p", name="retrain")
    (training,) = histories
    accuracies = [line["validation_accuracy"] for line in training.history]
    assert result.validation == max(accuracies) and training.best_epoch == accuracies.index(max(accuracies))
    assert training.epoch < 8 or max(accuracies[-6:]) == max(accuracies)
    assert [path.name for path in third.work.glob("*.safetensors")] == ["retrain.safetensors"]
    network = third.store.family_at(1.0).build(1.0, 2)
    network.load_state_dict(result.state.effective(3))
    assert third.images.validation(network, third.device) == result.validation


def test_the_digest_of_a_state_sees_every_part(begin):
    before = state_digest(begin)
    begin.picks["4"][0, 0, 0, 0] = 0.5
    assert state_digest(begin) != before


def test_phases_are_told_in_words():
    names = ("finetune-1.50", "prune-0.3", "prune-0.95", "retrain")
    assert [phases.in_words(name) for name in names] == [
        "fine-tune at width 1.5", "release 30 % of its weights", "release 95 % of its weights", "learn its picks anew",
    ]  # fmt: skip
