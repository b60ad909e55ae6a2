"""Weights that were trained in a run: which inputs later stages take, and when a run can still be trained."""

import pytest

from decomp.errors import FileError, UsageError
from decomp.pipelines.console.options import TrainOptions
from decomp.pipelines.run import trained
from decomp.pipelines.run.directory import RunDirectory

GIVEN = ("nets.py:build", "digits", "net.pth")


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    run.trained_weights.parent.mkdir()
    run.trained_weights.write_bytes(b"weights")
    run.update_config("train", {"asked": TrainOptions(model="zoo:a", data="digits", epochs=2).to_json()})
    return run


def test_without_a_training_the_inputs_are_those_that_are_given(tmp_path):
    assert trained.inputs(RunDirectory(tmp_path / "none"), *GIVEN) == GIVEN
    assert trained.inputs(RunDirectory.create(tmp_path / "new"), *GIVEN) == GIVEN
    assert trained.weights_file(RunDirectory(tmp_path), "DEFAULT") == "DEFAULT"
    with pytest.raises(UsageError, match="--model: a network must be named, since none was trained in"):
        trained.inputs(RunDirectory(tmp_path / "none"), None, "digits", None)
    with pytest.raises(UsageError, match="--data: images must be named"):
        trained.inputs(RunDirectory(tmp_path / "none"), "zoo:a", None, None)


def test_a_training_gives_the_inputs_that_are_left_out(run):
    assert trained.inputs(run, None, None, None) == ("zoo:a", "digits", trained.WEIGHTS)
    assert trained.inputs(run, "zoo:a", "imagefolder:x", None) == ("zoo:a", "imagefolder:x", trained.WEIGHTS)
    assert trained.inputs(run, None, None, str(run.trained_weights)) == ("zoo:a", "digits", trained.WEIGHTS)
    assert trained.weights_file(run, trained.WEIGHTS) == str(run.trained_weights)


@pytest.mark.parametrize("given", [("zoo:b", None, None), (None, None, "other.pth"), ("zoo:a", None, "random")])
def test_another_network_than_the_trained_one_is_refused(run, given):
    with pytest.raises(
        UsageError, match="weights of zoo:a that were trained in it, got (zoo:b|other.pth|random); leave"
    ):
        trained.inputs(run, *given)


def test_weights_that_are_gone_are_named_with_the_way_to_have_them_again(run):
    run.trained_weights.unlink()
    with pytest.raises(FileError, match=r"weights.safetensors: .*missing; .*train --run .* --redo"):
        trained.trained_options(run)


@pytest.mark.parametrize("stage", ["freeze", "prune"])
def test_a_run_with_results_is_not_trained_again(run, stage):
    trained.require_untouched(run)
    run.update_config(stage, {})
    with pytest.raises(
        UsageError, match=f"before anything is made from it, got a run with the result of {stage}; give"
    ):
        trained.require_untouched(run)
