"""Stage ``finetune``: what is learned from, what is written, and calls that are interrupted or repeated."""

import csv
import shutil

import pytest
import torch
from torch import nn

import decomp
from decomp.data.formats import network_file
from decomp.data.sources import open_source
from decomp.errors import FileError, NumericalError, UsageError
from decomp.execution.output_change import kl_divergence
from decomp.pipelines.measure.intervals import short_share
from decomp.pipelines.run import images as run_images
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.networks import existing
from decomp.pipelines.run.replacement import beside
from decomp.pipelines.stages import finetune as stage
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.status import status
from decomp.pipelines.training import epochs, loop, outputs
from decomp.pipelines.training.hold_out import hold_out
from tests.pipelines.small_runs import SHAPE, Watched, make_run, quiet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finetune") / "run")


@pytest.fixture
def run(prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "run")
    return type(prepared)(tmp_path / "run")


def tune(run, **options):
    return finetune(run, **{"epochs": 2, "batch_size": 64, "reporter": quiet(), **options})


def with_folded(run):
    """The run, its original as if normalisations had been folded into both of its convolutions."""
    original = network_file.load(run.original_dir)
    network_file.save(original, run.original_dir, edited=["0", "1", "3"], input_shape=SHAPE, meta={"model": "test"})
    return run


def weights(path):
    return network_file.load(path).state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def metrics(run):
    with open(run.finetune_dir / "metrics.csv", newline="") as file:
        return [{key: float(value) if value else None for key, value in line.items()} for line in csv.DictReader(file)]


def accuracy(network, indices):
    train = open_source("digits").train
    with torch.no_grad():
        return (network(train.images(indices)).argmax(1) == train.labels(indices)).double().mean().item()


# --- what it does ---


@pytest.mark.parametrize("labels", ["train", "none"])
def test_dropout_stays_where_there_are_labels(run, monkeypatch, labels):
    trained = []
    monkeypatch.setattr(stage, "disable_dropout", trained.append)
    finetune(run, epochs=1, labels=labels, reporter=quiet())
    assert len(trained) == (labels == "none")


def test_fine_tuning_with_labels_helps_on_images_it_has_not_seen(run):
    result = tune(run, epochs=3)
    _, held_out = hold_out(1347, 0)
    before, after = (accuracy(network_file.load(path), held_out) for path in (run.model_dir, run.finetune_dir / "best"))
    assert after > before
    assert result.facts["before"] == pytest.approx(before) and result.facts["after"] == pytest.approx(after)
    assert result.facts["n_train"] + result.facts["n_validation"] == 1347
    lines = result.lines()
    assert any(short_share(after, len(held_out)) in line for line in lines)
    assert lines[-1] == f"next: decomp evaluate --run {run}"


def test_fine_tuning_without_labels_comes_closer_to_the_original(run):
    result = tune(run, labels="none", epochs=3, batch_size=16)
    assert result.facts["after"] < 0.7 * result.facts["before"]
    assert (result.facts["n_train"], result.facts["n_validation"]) == (1347 - 30, 30)
    images = open_source("digits").train.images(torch.arange(270, 300))  # what decompose held out
    with torch.no_grad():
        target = network_file.load(run.original_dir)(images)
        tuned = network_file.load(run.finetune_dir / "best")(images)
        measured = kl_divergence(target, tuned).mean().item()
    assert measured == pytest.approx(result.facts["after"], rel=1e-4)


def test_distillation_changes_what_is_learned(run):
    tune(run, epochs=1)
    plain = weights(run.finetune_dir / "last")
    tune(run, epochs=1, distill=True, redo=True)
    assert not torch.equal(weights(run.finetune_dir / "last")["7.weight"], plain["7.weight"])


def test_the_test_split_is_never_read_and_held_out_images_are_not_trained_on(run, monkeypatch):
    sources = []

    def watched(*args, **options):
        source = open_source(*args, **options)
        source.train, source.test = Watched(source.train), Watched(source.test, forbidden=True)
        sources.append(source)
        return source

    monkeypatch.setattr(run_images, "open_source", watched)
    tune(run, epochs=2)
    (source,) = sources
    kept, held_out = hold_out(1347, 0)
    trained_on = {index for augmented, index in source.train.seen if augmented}
    validated_on = {index for augmented, index in source.train.seen if not augmented}
    # All but the few images of each epoch's incomplete batch.
    assert trained_on <= set(kept.tolist()) and len(trained_on) > 0.95 * len(kept)
    assert validated_on == set(held_out.tolist())


def test_a_fine_tuning_that_only_harms_keeps_the_network_as_it_was(run):
    network = network_file.load(run.original_dir)
    network_file.save(network, run.model_dir, input_shape=(1, 8, 8), meta={})
    result = tune(run, labels="none", epochs=1, learning_rate=0.3, schedule="constant")
    assert result.facts["best_epoch"] == 0
    assert_same(weights(run.finetune_dir / "best"), network.state_dict())
    assert not torch.equal(weights(run.finetune_dir / "last")["7.weight"], network.state_dict()["7.weight"])
    lines = result.lines()
    assert lines[0].endswith("before, and none of 1 epoch was better") and "the same one" in lines[1]
    assert next(s for s in status(run).stages if s.name == "finetune").detail.endswith("before, no epoch better")
    assert [network.name for network in existing(RunDirectory.open(run))] == ["original", "decomposed"]


def test_last_and_best_load_by_themselves_and_into_the_original_class(run):
    tune(run)
    assert network_file.read_structure(run.finetune_dir / "last")["meta"]["finetune"]["epoch"] == 2
    structure = network_file.read_structure(run.finetune_dir / "best")
    assert structure["meta"]["plan"] == "test"
    assert [edit["module"] for edit in structure["edits"]] == ["0", "3", "7"]
    original = nn.Sequential(*network_file.load(run.original_dir).children())
    alone, inside = (
        network_file.load(run.finetune_dir / "best"),
        network_file.load(run.finetune_dir / "best", into=original),
    )
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(alone(images), inside(images))
    # The run stands for the best network it holds.
    assert_same(decomp.load(run.path).state_dict(), alone.state_dict())


@pytest.fixture
def trained_modules(monkeypatch):
    """The paths of the normalisations in every network that is trained."""
    seen, fit = [], stage.fit

    def watched(module, *arguments, **options):
        seen.append([name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)])
        return fit(module, *arguments, **options)

    monkeypatch.setattr(stage, "fit", watched)
    return seen


def test_batch_normalisations_are_in_the_network_only_while_it_is_trained(run, trained_modules):
    result = tune(with_folded(run))
    assert trained_modules == [["0.norm", "3.norm"]]
    _, held_out = hold_out(1347, 0)
    for name, epoch in (("last", 2), ("best", result.facts["best_epoch"])):
        network = network_file.load(run.finetune_dir / name)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
        # What was validated is what is written.
        assert accuracy(network, held_out) == pytest.approx(metrics(run)[epoch]["validation_accuracy"])
    before, after = weights(run.model_dir), weights(run.finetune_dir / "last")
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_small_batches_have_no_batch_normalisations(run, trained_modules):
    tune(with_folded(run), epochs=1, batch_size=8)
    assert trained_modules == [[]]


def test_metrics_have_one_line_per_epoch(run):
    result = tune(run, epochs=3)
    lines = metrics(run)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["loss"] is None and all(line["loss"] > 0 for line in lines[1:])
    assert lines[0]["validation_accuracy"] == result.facts["before"]
    assert lines[result.facts["best_epoch"]]["validation_accuracy"] == result.facts["after"]
    assert max(line["validation_accuracy"] for line in lines) == result.facts["after"]
    assert lines[1]["learning_rate"] > lines[3]["learning_rate"] > 0


# --- stopped and given again ---


class Killed(BaseException):
    pass


@pytest.mark.parametrize("options", [{}, {"labels": "none"}, {"folded": True}])
@pytest.mark.parametrize("place", ["before_epoch", "during_files"])
def test_killed_and_resumed_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch, options, place):
    if options.get("folded"):
        run, options = with_folded(run), {}
    shutil.copytree(run.path, tmp_path / "whole")
    whole = type(run)(tmp_path / "whole")
    expected = tune(whole, epochs=3, **options)

    if place == "before_epoch":
        original = loop._train_epoch
        monkeypatch.setattr(
            loop, "_train_epoch", lambda state, *rest: original(state, *rest) if state.epoch < 1 else die()
        )
    else:
        # The checkpoint of epoch 2 is written, what follows from it is not.
        original = outputs.NetworkWriter.__call__
        monkeypatch.setattr(
            outputs.NetworkWriter, "__call__", lambda self, state: original(self, state) if state.epoch < 2 else die()
        )
    with pytest.raises(Killed):
        tune(run, epochs=3, **options)
    monkeypatch.undo()
    result = tune(run, epochs=3, **options)
    assert result.facts == expected.facts
    for name in ("last", "best"):
        assert_same(weights(run.finetune_dir / name), weights(whole.finetune_dir / name))
    assert [{**line, "seconds": 0} for line in metrics(run)] == [{**line, "seconds": 0} for line in metrics(whole)]
    # The events are there where TensorBoard is installed.
    assert {path.name for path in run.finetune_dir.iterdir()} - {"events"} == {"best", "last", "metrics.csv"}


def die():
    raise Killed


def test_a_second_time_does_no_work_and_says_so(run, monkeypatch):
    first = tune(run)
    monkeypatch.setattr(stage, "fit", None)
    again = tune(run)
    assert again.done_before and again.facts == first.facts
    assert "nothing to do" in list(again.lines())[0]


def test_other_options_are_refused_until_redo(run):
    tune(run, epochs=1)
    with pytest.raises(UsageError, match=r"was fine-tuned with --epochs 1, got --epochs 2; give --redo"):
        tune(run, epochs=2)
    assert tune(run, epochs=2, redo=True).facts["epochs"] == 2
    assert len(metrics(run)) == 3


def killed_after(monkeypatch, run, epoch, **options):
    writer = outputs.NetworkWriter.__call__
    monkeypatch.setattr(
        outputs.NetworkWriter, "__call__", lambda self, state: writer(self, state) if state.epoch < epoch else die()
    )
    with pytest.raises(Killed):
        tune(run, **options)
    monkeypatch.undo()


def test_a_redo_that_is_killed_leaves_the_earlier_result_and_the_same_call_continues(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "whole")
    expected = tune(type(run)(tmp_path / "whole"), epochs=3)
    earlier = tune(run, epochs=1)
    before = weights(run.finetune_dir / "best")
    killed_after(monkeypatch, run, 2, epochs=3, redo=True)
    assert tune(run, epochs=1).done_before and tune(run, epochs=1).facts == earlier.facts
    assert_same(weights(run.finetune_dir / "best"), before)
    trained = []
    original = loop._train_epoch
    monkeypatch.setattr(
        loop, "_train_epoch", lambda state, *rest: trained.append(state.epoch) or original(state, *rest)
    )
    assert tune(run, epochs=3, redo=True).facts == expected.facts
    assert trained == [2]  # the epochs before are in the checkpoint
    for name in ("last", "best"):
        assert_same(weights(run.finetune_dir / name), weights(tmp_path / "whole" / "finetune" / name))
    assert not beside(run.finetune_dir).exists() and not outputs.checkpoint_file(run.finetune_dir).exists()


def test_a_redo_with_other_options_does_not_continue_a_killed_one(run, monkeypatch):
    tune(run, epochs=1)
    killed_after(monkeypatch, run, 2, epochs=3, redo=True)
    assert tune(run, epochs=2, redo=True).facts["epochs"] == 2


def test_other_options_are_refused_for_an_interrupted_fine_tuning_too(run, monkeypatch):
    monkeypatch.setattr(outputs.NetworkWriter, "__call__", lambda self, state: die())
    with pytest.raises(Killed):
        tune(run)
    monkeypatch.undo()
    with pytest.raises(FileError, match=r"learning rate 0.01 \(now 0.02\)"):
        tune(run, learning_rate=0.02)


def test_a_network_decomposed_anew_is_not_taken_for_the_old_one(run):
    tune(run, epochs=1)
    network_file.save(network_file.load(run.original_dir), run.model_dir, input_shape=(1, 8, 8), meta={})
    with pytest.raises(FileError, match="another decomposed network.*--redo"):
        tune(run, epochs=1)


# --- mistakes ---


@pytest.mark.parametrize(
    "options, lower", [({"learning_rate": 1e30, "weight_decay": 1.0}, "0.01"), ({"learning_rate": 100.0}, "0.01")]
)
@pytest.mark.parametrize("labels", ["train", "none"])
def test_a_diverging_fine_tuning_is_stopped_and_keeps_the_network_before_it(run, options, lower, labels):
    with pytest.raises(NumericalError) as caught:
        tune(run, epochs=2, labels=labels, **options)
    best = run.finetune_dir / "best"
    line = str(caught.value)
    assert line.startswith("epoch 1") and f"the best network so far is in {best}" in line
    assert line.endswith(f"begin again with --lr {lower} --redo.")
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    before, kept, last = (decomp.load(path)(x) for path in (run.model_dir, best, run.finetune_dir / "last"))
    assert torch.allclose(kept, before, atol=1e-4) and torch.equal(kept, last)
    assert run.config("finetune") is None
    assert tune(run, epochs=1, labels=labels, redo=True).facts["epochs"] == 1


def test_below_the_default_the_rate_that_is_advised_is_a_tenth(run, monkeypatch):
    monkeypatch.setattr(epochs, "FACTOR", -1.0)  # every epoch without a better validation diverges
    monkeypatch.setattr(epochs, "LEAST_LOSS", 0.0)
    with pytest.raises(NumericalError, match="begin again with --lr 0.0001 --redo"):
        tune(run, epochs=9, learning_rate=0.001)


def test_a_mistake_is_one_line_that_names_the_option(run, monkeypatch):
    with pytest.raises(UsageError, match="--labels: must be one of train, none, got 'some'"):
        tune(run, labels="some")
    with pytest.raises(UsageError, match="--distill.*--labels none"):
        tune(run, labels="none", distill=True)
    with pytest.raises(UsageError, match="--minutes: decides the number of epochs, got --epochs 2 beside it"):
        tune(run, minutes=1)
    with pytest.raises(UsageError, match="--data: is for training without labels.*give --labels none"):
        tune(run, data="digits")
    with pytest.raises(UsageError, match="--images: is for training without labels"):
        tune(run, n_images=7)
    with pytest.raises(UsageError, match="--lr: must be a number above 0, got -1"):
        tune(run, learning_rate=-1)

    def unlabelled(*args, **options):
        source = open_source(*args, **options)
        source.train = Watched(source.train, labels=False)
        return source

    monkeypatch.setattr(run_images, "open_source", unlabelled)
    with pytest.raises(UsageError, match="must be labelled, got digits; .*--labels none"):
        tune(run, redo=True)


def test_without_a_decomposed_network_the_next_command_is_named(run):
    shutil.rmtree(run.model_dir)
    with pytest.raises(FileError, match="decomp decompose --run"):
        tune(run)


def test_labels_beyond_the_networks_outputs_are_a_clear_error(run):
    network = network_file.load(run.model_dir)
    narrow = nn.Sequential(*list(network.children())[:-1], nn.Linear(64, 4))
    network_file.save(torch.fx.symbolic_trace(narrow.eval()), run.model_dir, input_shape=(1, 8, 8), meta={})
    with pytest.raises(UsageError, match="labels must be below 4, .* got 9"):
        tune(run)
