"""Stage ``train``: weights and record, which images decide them, repeated and resumed calls."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decomp.data import zoo
from decomp.data.formats import network_file
from decomp.data.models import load_model
from decomp.data.sources import open_source
from decomp.errors import FileError, NumericalError, UsageError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.measure.intervals import short_share
from decomp.pipelines.run.conditions import freeze_options
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import open_frozen, original_class
from decomp.pipelines.stages import train as stage
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.freeze import freeze
from decomp.pipelines.stages.status import status
from decomp.pipelines.stages.train import train
from decomp.pipelines.training import loop
from decomp.pipelines.training.hold_out import hold_out
from tests.pipelines.small_runs import Watched, quiet


def short(out, **options):
    options = {"data": "digits", "epochs": 2, "device": "cpu", "reporter": quiet(), **options}
    return train("zoo:vgg-digits", out=out, **options)


def test_weights_and_their_record_say_the_same(tmp_path):
    result = short(tmp_path / "net.safetensors")
    record = json.loads((tmp_path / "net.json").read_text(encoding="utf-8"))
    assert record["sha256"] == hashlib.sha256(result.weights.read_bytes()).hexdigest()
    module = zoo.build("vgg-digits")
    module.load_state_dict(load_file(result.weights))
    source = open_source("digits")
    kept, held_out = hold_out(len(source.train), 0)
    with torch.no_grad():
        module.eval()
        for name, split, indices in (
            ("test", source.test, torch.arange(len(source.test))),
            ("validation", source.train, held_out),
        ):
            right = module(split.images(indices)).argmax(1) == split.labels(indices)
            assert record["accuracy"][name] == pytest.approx(right.double().mean().item())
    assert record["images"] == {"train": len(kept), "validation": len(held_out), "test": 450}
    assert record["parameters"] == sum(p.numel() for p in module.parameters())
    assert record["command"] == (
        "python cli.py train --model zoo:vgg-digits --data digits --epochs 2 --learning-rate 0.05 --batch-size 64 "
        "--seed 0 --out net.safetensors"
    )
    assert not list(tmp_path.glob("*.checkpoint"))
    *_, tested, _, following = result.lines()
    assert tested.endswith(short_share(record["accuracy"]["test"], record["images"]["test"]))
    assert following.startswith("next: decomp freeze --run runs/") and f"--weights {result.weights}" in following


def test_the_same_options_give_the_same_bits_and_a_seed_gives_others(tmp_path):
    first = short(tmp_path / "a.safetensors", epochs=1)
    torch.rand(5)
    second = short(tmp_path / "b.safetensors", epochs=1)
    other = short(tmp_path / "c.safetensors", epochs=1, seed=1)
    assert first.record["sha256"] == second.record["sha256"] != other.record["sha256"]


def test_nothing_but_training_images_decides_the_weights(tmp_path, monkeypatch):
    expected = short(tmp_path / "a.safetensors", epochs=1)
    watched = []

    def without_test(*args, **options):
        source = open_source(*args, **options)
        source.train, source.test = Watched(source.train), None
        watched.append(source.train)
        return source

    monkeypatch.setattr(stage, "open_source", without_test)
    blind = short(tmp_path / "b.safetensors", epochs=1)
    assert blind.record["sha256"] == expected.record["sha256"]
    assert "test" not in blind.record["accuracy"]
    kept, held_out = hold_out(1347, 0)
    seen = watched[0].seen
    assert {index for augmented, index in seen if augmented} <= set(kept.tolist())
    assert {index for augmented, index in seen if not augmented} == set(held_out.tolist())


def test_a_second_time_does_no_work_and_other_options_need_another_name(tmp_path, monkeypatch):
    first = short(tmp_path / "a.safetensors", epochs=1)
    monkeypatch.setattr(stage, "fit", None)
    again = short(tmp_path / "a.safetensors", epochs=1)
    assert again.already_done and {key: again.record[key] for key in first.record} == first.record
    assert "nothing to do" in list(again.lines())[0]
    with pytest.raises(UsageError, match="trained otherwise"):
        short(tmp_path / "a.safetensors", epochs=2)


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = short(tmp_path / "whole.safetensors")
    original = loop._train_epoch

    def stop(state, *rest):
        if state.epoch == 1:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path / "part.safetensors")
    assert not (tmp_path / "part.safetensors").exists()
    monkeypatch.undo()
    assert short(tmp_path / "part.safetensors").record["sha256"] == whole.record["sha256"]


def test_any_network_of_the_zoo_is_built_for_the_images(tmp_path):
    result = train("zoo:mlp-fashion", data="digits", epochs=1, out=tmp_path / "a.safetensors", reporter=quiet())
    assert load_file(result.weights)["1.weight"].shape == (200, 64)


# -- in a run directory -------------------------------------------------------------------------------------------


def in_run(path, **options):
    return short(None, **{"run": path, "epochs": 1, **options})


def test_a_training_in_a_run_gives_the_weights_of_one_beside_a_file(tmp_path):
    file = short(tmp_path / "a.safetensors", epochs=1)
    result = in_run(tmp_path / "run")
    run = RunDirectory.open(tmp_path / "run")
    assert result.weights == run.trained_weights and result.record["sha256"] == file.record["sha256"]
    record = run.config("train")
    assert record["weights"] == file.record["sha256"]
    assert record["facts"] == {"accuracy": file.record["accuracy"], "images": file.record["images"]}
    assert record["asked"]["data"] == "digits" and record["asked"]["batch_size"] == 64  # of the zoo's recipe
    assert result.record["command"].endswith(f"--run {tmp_path / 'run'}")
    made = {path.name for path in run.trained_weights.parent.iterdir()}
    assert made - {"events"} == {"epochs.csv", "weights.json", "weights.safetensors"}
    assert list(result.lines())[-1] == f"next: decomp freeze --run {tmp_path / 'run'}"


def test_a_training_in_a_run_that_was_killed_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = short(tmp_path / "whole.safetensors")
    original = loop._train_epoch

    def stop(state, *rest):
        if state.epoch == 1:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        in_run(tmp_path / "run", epochs=2, reporter=Reporter.for_run(RunDirectory(tmp_path / "run"), quiet=True))
    monkeypatch.undo()
    run = RunDirectory.open(tmp_path / "run")
    assert run.config("train") is None and not run.trained_weights.exists()
    stages = {stage.name: (stage.state, stage.detail) for stage in status(run).stages}
    assert stages["train"] == ("partly", "epoch 1 of 2")
    with pytest.raises(FileError, match="epochs 2 .now 3.*give --redo to train anew"):
        in_run(run, epochs=3)
    resumed = in_run(run, epochs=2)
    assert resumed.record["sha256"] == whole.record["sha256"]
    assert status(run).stages[0].detail.startswith("zoo:vgg-digits on digits, 2 epochs; ")
    assert status(run).next == f"decomp freeze --run {run}"


def test_a_repeated_training_in_a_run_does_nothing_and_others_are_refused_without_redo(tmp_path, monkeypatch):
    first = in_run(tmp_path / "run")
    with pytest.raises(UsageError, match="was trained with --seed 0, got --seed 1; give --redo"):
        in_run(tmp_path / "run", seed=1)
    second = in_run(tmp_path / "run", seed=1, redo=True)
    assert second.record["sha256"] != first.record["sha256"]
    monkeypatch.setattr(stage, "fit", None)
    again = in_run(tmp_path / "run", seed=1)
    assert again.already_done and {key: again.record[key] for key in second.record} == second.record


def test_freeze_takes_network_images_and_weights_from_the_training_in_its_run(tmp_path):
    trained = in_run(tmp_path / "run")
    run, options = tmp_path / "run", {"n_images": 20, "n_points": 2, "device": "cpu", "reporter": quiet()}
    with pytest.raises(
        UsageError, match="holds weights of zoo:vgg-digits that were trained in it, got zoo:vgg-fashion"
    ):
        freeze(run, model="zoo:vgg-fashion", **options)
    freeze(run, **options)
    frozen, original = open_frozen(RunDirectory(run))
    frozen.close()
    module = zoo.build("vgg-digits").eval()
    module.load_state_dict(load_file(trained.weights))
    images = open_source("digits").train.images(torch.arange(5))
    torch.testing.assert_close(original(images), module(images), rtol=1e-4, atol=1e-4)
    moved = run.rename(tmp_path / "moved")  # what is recorded of the weights does not depend on the folder's name
    assert freeze(moved, **options).done_before
    assert freeze(
        moved, model="zoo:vgg-digits", weights=str(moved / "trained/weights.safetensors"), **options
    ).done_before
    for change in ({"seed": 1, "redo": True}, {"redo": True}):
        with pytest.raises(UsageError, match="trained before anything is made from it.*another --run"):
            in_run(moved, **change)
    assert in_run(moved).already_done


def test_a_run_and_a_file_are_not_both_trained_into_and_redo_needs_a_run(tmp_path):
    with pytest.raises(UsageError, match="--out: .*got --run beside it"):
        train("zoo:vgg-digits", out=tmp_path / "a.safetensors", run=tmp_path / "run", reporter=quiet())
    with pytest.raises(UsageError, match="--redo: .*got no --run"):
        train("zoo:vgg-digits", out=tmp_path / "a.safetensors", redo=True, reporter=quiet())
    with pytest.raises(UsageError, match="npz:none.npz: there is no such file"):
        train("mlp.py:network", data="npz:none.npz", run=tmp_path / "run", reporter=quiet())
    assert not list(tmp_path.iterdir())


# -- network slimming ---------------------------------------------------------------------------------------------


def test_sparse_training_lowers_scale_factors_from_a_half_and_counts_them(tmp_path):
    result = in_run(tmp_path / "run", sparsity=0.3, proximal=True)
    weights = load_file(result.weights)
    values = torch.cat([weights[f"{i}.weight"].abs() for i in (1, 4, 8, 11)])
    facts = RunDirectory(tmp_path / "run").config("train")["facts"]["scale_factors"]
    assert facts == {"channels": 192, "near_zero": int((values < 0.01).sum()), "zero": int((values == 0).sum())}
    assert facts["zero"] > 20 and values.max() < 0.9
    assert f"scale factors below 0.01: {facts['near_zero']} of 192, {facts['zero']} of them 0" in list(result.lines())
    assert " --sparsity 0.3 --run " in result.record["command"].replace(" --proximal", "")
    with pytest.raises(UsageError, match="was trained with --sparsity 0.3, --proximal, got --sparsity not given"):
        in_run(tmp_path / "run")


def test_milestones_lower_the_rate_after_half_and_three_quarters_of_the_epochs(tmp_path, monkeypatch):
    recipes = []
    monkeypatch.setattr(stage, "_fit", lambda module, recipe, *rest: recipes.append(recipe) or 1 / 0)
    for epochs in (160, 3):
        with pytest.raises(ZeroDivisionError):
            short(tmp_path / "a.safetensors", epochs=epochs, schedule="milestones")
    assert [recipe.milestones for recipe in recipes] == [(80, 120), (1, 2)]
    assert recipes[0].gamma == 0.1 and recipes[0].schedule == "milestones"
    with pytest.raises(UsageError, match="--schedule: milestones need at least 3 epochs, got 2"):
        short(tmp_path / "a.safetensors", schedule="milestones")
    with pytest.raises(UsageError, match="milestones, as the recipe of zoo:vgg-bn has them, need at least 3 epochs"):
        train("zoo:vgg-bn", out=tmp_path / "a.safetensors", epochs=1, reporter=quiet())
    with pytest.raises(UsageError, match="--proximal: is a way to apply a sparsity, got none; give --sparsity 1e-4"):
        short(tmp_path / "a.safetensors", proximal=True)


def test_a_mistake_is_one_line_that_names_the_option(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="must end in .safetensors"):
        short(tmp_path / "net.pt")
    with pytest.raises(UsageError, match="one of vgg-fashion"):
        train("zoo:nothing", reporter=quiet())
    with pytest.raises(UsageError, match="--data fashion-mnist"):
        train("torchvision:resnet18", reporter=quiet())
    with pytest.raises(UsageError, match="--epochs: must be a whole number from 1, got 0"):
        short(tmp_path / "net.safetensors", epochs=0)

    def unlabelled(*args, **options):
        source = open_source(*args, **options)
        source.train = Watched(source.train, labels=False)
        return source

    monkeypatch.setattr(stage, "open_source", unlabelled)
    with pytest.raises(UsageError, match="digits: training needs images with labels"):
        short(tmp_path / "net.safetensors")


@pytest.mark.parametrize("model", ["zoo:vgg-fashion", "torchvision:squeezenet1_1"])
def test_weights_record_the_images_and_classes_that_they_are_for(model, tmp_path):
    """Each network has other images and classes of its own: 28x28, and 224x224 of 1,000 classes."""
    source = open_source("digits")
    size = None if model.startswith("zoo") else "3x40x40"
    data = "digits" if size is None else images_of(tmp_path, (3, 40, 40))
    result = train(model, data=data, out=tmp_path / "net.safetensors", epochs=1, device="cpu", reporter=quiet())
    loaded = load_model(model, weights=result.weights)
    assert loaded.input_shape == (source.input_shape if size is None else (3, 40, 40))
    assert loaded.n_classes == 10 and loaded.module(torch.zeros(1, *loaded.input_shape)).shape == (1, 10)
    if size is not None:  # what is given goes before what is recorded
        assert load_model(model, weights=result.weights, input_size="50").input_shape == (3, 50, 50)


def images_of(folder, shape):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (40, *shape), dtype=np.uint8), np.arange(40) % 10
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return f"npz:{folder / 'images.npz'}"


def test_a_network_trained_on_other_images_goes_through_the_stages(tmp_path):
    out = tmp_path / "net.safetensors"
    train("zoo:vgg-fashion", data="digits", out=out, epochs=1, device="cpu", reporter=quiet())
    run, reporter = tmp_path / "run", quiet()
    options = {"n_images": 60, "n_points": 2, "device": "cpu", "reporter": reporter}
    freeze(run, model="zoo:vgg-fashion", data="digits", weights=str(out), **options)
    frozen, _ = open_frozen(RunDirectory(run))
    with frozen:
        assert frozen.meta["input_shape"] == [1, 8, 8] and frozen.meta["n_classes"] == 10
        found = {name: frozen.meta[name] for name in ("input_shape", "n_classes")}
        module = original_class(freeze_options(RunDirectory(run)), **found)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    decompose(RunDirectory(run), speedup=2.0, steps=("spatial",), device="cpu", reporter=reporter)
    assert network_file.load(run / "model", into=module)(torch.zeros(2, 1, 8, 8)).isfinite().all()


# --- the scheme repr ---

REPR = {"scheme": "repr", "s1": 1, "s2": 1, "drop": 0.3, "epochs": 4}


def c3(run, **options):
    return train("zoo:c3-32", data="digits", run=run, device="cpu", batch_size=256, **{"reporter": quiet(), **options})


def test_repr_is_recorded_with_its_settings_and_events_and_standard_takes_as_many_steps(tmp_path):
    result, standard = c3(tmp_path / "repr", **REPR), c3(tmp_path / "standard", epochs=4)
    scheme = result.record["scheme"]
    assert [(event["event"], event["epoch"]) for event in scheme["events"]] == [("drop", 1), ("restore", 2)]
    assert sum(map(len, scheme["events"][0]["dropped"].values())) == 19  # of 64
    assert scheme["left_out"] == {"0": "reads the image"} and scheme["settings"]["drop"] == 0.3
    assert result.record["steps"] == standard.record["steps"] == 4 * (1213 // 256)
    # A pair: until the first drop the two trainings are the same.
    by_epoch = [one.record["validation_accuracy_by_epoch"] for one in (result, standard)]
    assert by_epoch[0][:2] == by_epoch[1][:2] and by_epoch[0] != by_epoch[1]
    assert "scheme" not in standard.record and result.record["sha256"] != standard.record["sha256"]
    assert (
        "--scheme repr --s1 1 --s2 1 --drop 0.3 --cycles 3 --min-keep 0.1 --order overlap" in result.record["command"]
    )
    best = result.record["best"]
    values = result.record["validation_accuracy_by_epoch"]
    assert best["validation"] == max(values) == values[best["epoch"]]
    lines = list(result.lines())
    assert any(line.startswith(f"best on the validation images, after epoch {best['epoch']}: ") for line in lines)
    with pytest.raises(UsageError, match="was trained with --scheme repr.*got --scheme standard"):
        c3(tmp_path / "repr", epochs=4)


def test_the_best_weights_are_measured_and_the_last_ones_are_written(tmp_path, monkeypatch):
    seen = []
    measured = stage.accuracy
    monkeypatch.setattr(stage, "accuracy", lambda m, split, *rest: seen.append(copy_of(m)) or measured(m, split, *rest))
    result = c3(tmp_path / "run", **REPR)
    assert torch.equal(seen[-2], load_file(result.weights)["0.weight"])
    assert result.record["best"]["epoch"] == 4 or not torch.equal(seen[-1], seen[-2])


def copy_of(module):
    return module.state_dict()["0.weight"].clone().contiguous()


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_repr_killed_in_an_epoch_resumes_to_the_same_files(tmp_path, monkeypatch, epoch):
    whole = c3(tmp_path / "whole", **REPR)
    original = loop._train_epoch

    def stop(state, *rest):
        if state.epoch == epoch:
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        c3(tmp_path / "part", **REPR)
    monkeypatch.undo()
    part = c3(tmp_path / "part", **REPR)
    assert part.record["sha256"] == whole.record["sha256"] and part.record["scheme"] == whole.record["scheme"]
    maps = [(tmp_path / run / "trained" / "filters.csv").read_text() for run in ("whole", "part")]
    assert maps[0] == maps[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"s1": 4}, "--s1: has no effect with the scheme standard; leave it out, or give --scheme repr."),
        ({"scheme": "repr", "epochs": 3}, "--epochs: must be at least 31 for one cycle (s1 20 + s2 10)"),
        ({"scheme": "repr", "epochs": 40, "drop": 0.001}, "--drop: must drop at least one of 64 filters, got 0.001"),
        ({"scheme": "reper"}, "--scheme: must be one of standard, repr, got 'reper'; did you mean repr."),
    ],
)
def test_options_that_do_not_fit_leave_no_run_behind(tmp_path, options, message):
    with pytest.raises(UsageError) as error:
        c3(tmp_path / "run", **options)
    assert str(error.value).startswith(message) and not (tmp_path / "run").exists()


def test_a_network_without_such_filters_names_the_option_that_helps(tmp_path):
    options = {"data": "digits", "run": tmp_path / "run", "scheme": "repr", "epochs": 40, "reporter": quiet()}
    with pytest.raises(UsageError, match=r"filters can be dropped; train another network\.$"):
        train("zoo:mlp-fashion", **options)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def one(): return nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 10))\n"
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"can be dropped \(0 reads the image\); give --first\.$"):
        train(f"{tmp_path / 'nets.py'}:one", **options)


def test_a_sparse_training_that_diverges_is_told_to_take_a_smaller_penalty(tmp_path):
    with pytest.raises(NumericalError, match=r"take a smaller --sparsity \(now 1000\), or lower the learning rate"):
        train("zoo:vgg-bn", data="digits", run=tmp_path / "r", sparsity=1e3, epochs=3, reporter=quiet())
