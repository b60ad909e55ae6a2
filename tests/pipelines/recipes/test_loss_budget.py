"""Loss budget: the bisection on known losses, the search on a run, its record, and refusals."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.measure.held_out_loss import HeldOutLoss
from decomp.pipelines.recipes import loss_budget
from decomp.pipelines.recipes.loss_budget import BudgetResult, Trial, bisect, decompose_within
from decomp.pipelines.run.calibration import draw_images
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import load_network
from decomp.pipelines.stages.freeze import freeze
from tests.pipelines.digit_runs import Collected, bytes_of


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "run"
    freeze(path, model="zoo:vgg-digits", data="digits", n_images=200, reporter=Collected())
    return path


@pytest.fixture
def run(frozen, tmp_path):
    shutil.copytree(frozen, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


@pytest.mark.parametrize("largest", [1.12, 1.3, 1.9, 2.0, 3.33, 7.7])
def test_bisection_ends_within_five_percent_of_the_largest_speedup(largest):
    tried = bisect(lambda ratio: 0.0 if ratio <= largest else 1.0, 0.5)
    low = max(ratio for ratio, loss in tried.items() if loss <= 0.5)
    high = min(ratio for ratio, loss in tried.items() if loss > 0.5)
    assert low <= largest < high <= 1.05 * low + 0.01
    assert len(tried) <= loss_budget.MOST_TRIALS


def test_bisection_stops_where_nothing_is_within_the_budget():
    tried = bisect(lambda ratio: 1.0, 0.5)
    assert min(tried) >= loss_budget.LEAST and len(tried) <= loss_budget.MOST_TRIALS
    assert min(tried) < 1.2


def test_a_speedup_out_of_reach_bounds_the_search():
    tried = bisect(lambda ratio: 0.0 if ratio < 2.5 else math.inf, 0.5)
    assert 2.38 <= max(ratio for ratio, loss in tried.items() if loss == 0.0) < 2.5


def losses(result):
    return {trial.speedup: trial.loss.loss for trial in result.trials if trial.loss is not None}


@pytest.fixture
def three_trials(monkeypatch):
    monkeypatch.setattr(loss_budget, "MOST_TRIALS", 3)


def test_the_answer_is_the_largest_speedup_within_the_budget_and_all_networks_are_kept(run, three_trials):
    result = decompose_within(run, max_drop="2%", reporter=Collected())
    measured = losses(result)
    assert len(measured) == 3
    assert result.best.speedup == max(ratio for ratio, loss in measured.items() if loss <= 0.02)
    for trial in result.trials:
        made = RunDirectory.open(f"{run}-{trial.speedup:g}x")
        record = made.config("decompose")["held_out_loss"]["loss"]
        assert HeldOutLoss(**record) == trial.loss
        # The same by a second route: accuracies on the images that are not among those fitted.
        train = open_source("digits", input_shape=(1, 8, 8)).train
        fitted = set(draw_images(open_source("digits", input_shape=(1, 8, 8)), 200, 0)[:180].tolist())
        rest = [i for i in range(len(train)) if i not in fitted]
        assert trial.loss.n_images == len(rest)
        with torch.no_grad():
            right = [
                float((load_network(made, folder)(train.images(rest)).argmax(1) == train.labels(rest)).float().mean())
                for folder in (made.original_dir, made.model_dir)
            ]
        assert (trial.loss.original, trial.loss.network) == pytest.approx(right)
        assert (made.path / "curves.npz").samefile(run.curves)  # one survey for all
    assert run.config("decompose") is None
    lines = list(result.lines())
    assert lines[-1].endswith(f"finetune --run {result.best.result.run}")


def test_a_repeated_search_reads_what_it_measured(run, three_trials, monkeypatch):
    first = decompose_within(run, max_drop=0.02, reporter=Collected())
    before = bytes_of(first.best.result.run)

    def refuse(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(loss_budget, "held_out_loss", refuse)
    again = decompose_within(run, max_drop=0.02, reporter=Collected())
    assert losses(again) == losses(first) and again.best.speedup == first.best.speedup
    assert bytes_of(again.best.result.run) == before


def test_a_network_made_anew_is_measured_anew(run, three_trials, monkeypatch):
    first = decompose_within(run, max_drop=0.02, reporter=Collected())
    member = first.trials[0].result.run
    facts = member.config("decompose")
    facts["held_out_loss"]["of"]["network"] = "0" * 64
    facts["held_out_loss"]["loss"]["loss"] = 0.9
    member.update_config("decompose", facts)
    assert losses(decompose_within(run, max_drop=0.02, reporter=Collected())) == losses(first)


@pytest.mark.parametrize("name", ["speedup", "plan", "plan_only"])
def test_what_says_the_speedup_itself_is_refused_before_any_work(run, name, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match=f"finds the speed-up itself.*--{name.replace('_', '-')} beside it"):
        decompose_within(run, max_drop=0.01, **{name: 3.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "fix"), [("1", "write 1%"), (0, "1% or 0.01"), ("-1%", "1% or"), (True, "1% or"), ("x", "1% or")]
)
def test_a_budget_must_be_a_share(run, given, fix):
    with pytest.raises(UsageError, match=f"--max-drop: must be a loss above 0 %.*{fix}"):
        decompose_within(run, max_drop=given)


def trial(speedup, loss, high):
    class Made:
        def __str__(self):
            return f"runs/a-{speedup:g}x"

        def config(self, stage):
            return {}

    return Trial(speedup, HeldOutLoss("agreement", 500, loss, 0.0, high), SimpleNamespace(run=Made()))


def test_the_answer_says_how_sure_it_is():
    sure, unsure, much = trial(2.0, 0.004, 0.009), trial(2.0, 0.008, 0.02), trial(3.0, 0.05, 0.08)
    assert "sure by these 500 images" in "\n".join(BudgetResult(0.01, [sure, much], sure, "macs").lines())
    text = "\n".join(BudgetResult(0.01, [unsure, much], unsure, "macs").lines())
    assert "not sure: a loss of up to 2.00 %" in text and "3x, loses more" in text


def test_no_speedup_within_the_budget_is_said():
    lines = list(BudgetResult(0.01, [trial(1.1, 0.05, 0.08)], None, "macs").lines())
    assert lines[-1].startswith("no speed-up keeps the loss within 1 %, and 1.1x loses 5.00 %")


def test_the_images_of_the_fits_are_those_of_the_frozen_file_or_drawn_again_for_files_of_before(run, monkeypatch):
    read, source = loss_budget._held_out(run).indices, open_source("digits", input_shape=(1, 8, 8))
    monkeypatch.setattr(loss_budget, "draw_images", None)
    assert torch.equal(loss_budget._held_out(run).indices, read)
    monkeypatch.undo()
    opened = loss_budget.loading.open_frozen

    def before(run):
        frozen, network = opened(run)
        frozen.drawn = None
        return frozen, network

    monkeypatch.setattr(loss_budget.loading, "open_frozen", before)
    assert torch.equal(loss_budget._held_out(run).indices, read)
    assert not set(read.tolist()) & set(draw_images(source, 200, 0)[:180].tolist())


def test_a_network_without_class_scores_has_a_budget_of_variance(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_budget, "MOST_TRIALS", 2)
    freeze(
        tmp_path / "run", model="zoo:vgg-digits", data="digits", n_images=100, outputs="values", reporter=Collected()
    )
    result = decompose_within(tmp_path / "run", max_drop="10%", reporter=Collected())
    assert [trial.loss.kind for trial in result.trials] == ["values"] * 2
    made = result.trials[0].result.run
    source = open_source("digits", input_shape=(1, 8, 8))
    fitted = set(draw_images(source, 100, 0)[:90].tolist())
    x = source.train.images([i for i in range(len(source.train)) if i not in fitted])
    with torch.no_grad():
        wanted, got = (load_network(made, folder)(x).double() for folder in (made.original_dir, made.model_dir))
    calibration = source.train.images(draw_images(source, 100, 0))
    with torch.no_grad():
        spread = load_network(made, made.original_dir)(calibration).double().var(0, correction=0).mean()
    assert result.trials[0].loss.loss == pytest.approx(float((got - wanted).square().mean() / spread), rel=1e-4)


def test_a_budget_of_less_than_one_image_is_refused_before_any_work(run, monkeypatch):
    few = loss_budget._held_out(run)
    monkeypatch.setattr(loss_budget, "_held_out", lambda base: replace(few, indices=few.indices[:60]))
    with pytest.raises(UsageError, match="at least one of the 60 training images .* .1.7 %., got 1.0 %; allow more"):
        decompose_within(run, max_drop="1%")
    assert not run.curves.exists()
