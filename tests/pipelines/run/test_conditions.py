"""Recorded options of a stage and their comparison with those of a new call."""

import pytest

from decomp.data.image_options import IN_MEMORY
from decomp.errors import FileError, UsageError
from decomp.pipelines.console.options import DecomposeOptions, FreezeOptions
from decomp.pipelines.run.conditions import (
    freeze_options,
    label_options,
    pruned_words,
    recorded_options,
    require_not_decomposed,
    require_not_pruned,
    require_same_options,
)
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def test_a_stage_that_was_not_called_has_no_options(run):
    assert recorded_options(run, "freeze", FreezeOptions) is None
    with pytest.raises(UsageError, match="holds no frozen points; run freeze --run"):
        freeze_options(run)


def test_recorded_options_come_back_typed(run):
    options = FreezeOptions(model="a.py:b", data="digits", leaves=["x"])
    run.update_config("freeze", {"asked": options.to_json()})
    assert freeze_options(run) == options


@pytest.mark.parametrize("record", [{}, [], "x", {"model": "a:b", "data": "digits", "n_images": "many"}])
def test_a_record_of_something_else_is_a_broken_file(run, record):
    run.update_config("freeze", {"asked": record})
    with pytest.raises(FileError, match="run.json: the options of freeze cannot be read, got .*start a new run"):
        recorded_options(run, "freeze", FreezeOptions)


def test_the_same_options_pass_and_others_do_not(run):
    options = DecomposeOptions(speedup=4, skip=["conv1"])
    assert require_same_options(run, "decomposed", options, options.to_json(), "x") is None
    with pytest.raises(UsageError, match=r"was decomposed with --skip conv1, got --skip not given"):
        require_same_options(run, "decomposed", DecomposeOptions(speedup=4), options.to_json(), "x")


def test_all_differences_are_told_with_both_values(run):
    record = DecomposeOptions(speedup=4, multiple=4).to_json()
    with pytest.raises(UsageError) as caught:
        require_same_options(run, "decomposed", DecomposeOptions(speedup=3), record, "use --redo")
    assert str(caught.value) == (
        f"{run.path}: was decomposed with --speedup 4, --multiple 4, got --speedup 3, --multiple 8; use --redo."
    )


def test_a_value_can_be_shown_otherwise(run):
    record = DecomposeOptions(speedup=4).to_json()
    with pytest.raises(UsageError, match="with --plan none, got --plan a digest"):
        require_same_options(
            run, "decomposed", DecomposeOptions(speedup=4, plan="0" * 64), record, "x",
            shown=lambda name, value: "none" if value is None else "a digest",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "data", "kinds", "expected"),
    [
        ({"labelled": True}, "digits", ["scores"], ""),
        ({"labelled": False}, "digits", ["scores"], "--labels none"),
        ({"labelled": True}, "images in memory", ["scores"], "--labels none"),
        ({"labelled": True}, "digits", ["values"], "--labels none"),
        ({"labelled": True}, "digits", ["scores", "values"], "--labels none"),
    ],
)
def test_labels_are_proposed_where_finetune_takes_them(tmp_path, source, data, kinds, expected):
    run = RunDirectory.create(tmp_path / "run")
    outputs = [{"kind": kind} for kind in kinds]
    run.update_config("freeze", {"asked": {"data": data}, "source": source, "outputs": outputs})
    assert label_options(run) == expected


@pytest.mark.parametrize("stage, refuse", [("decompose", require_not_decomposed), ("prune", require_not_pruned)])
def test_a_run_of_a_network_in_memory_names_calls_and_no_commands(run, stage, refuse):
    refuse(run)  # neither decomposed nor pruned
    run.update_config("freeze", {"asked": FreezeOptions(model="Net in memory", data=IN_MEMORY).to_json()})
    run.update_config(stage, {"asked": {}})
    with pytest.raises(UsageError) as caught:
        refuse(run)
    calls = {
        "decompose": "call decomp.prune(model, images",
        "prune": f"decomp.compress(decomp.load('{run.pruned_dir}')",
    }
    assert calls[stage] in str(caught.value) and "--model" not in str(caught.value)


def test_the_command_for_another_run_has_all_options_of_the_images(run):
    options = FreezeOptions(
        model="nets.py:build", weights="w.pt", data="imagefolder:my photos", mean=(0.3,), std=(0.35,), resize=(20, 24),
        flip=False, n_images=400, leaves=("a.b",), outputs="scores",
    )  # fmt: skip
    run.update_config("freeze", {"asked": options.to_json()})
    run.update_config("decompose", {"asked": {}})
    with pytest.raises(UsageError) as caught:
        require_not_decomposed(run)
    command = (
        "prune --model nets.py:build --weights w.pt --data 'imagefolder:my photos' --mean 0.3 --std 0.35 "
        "--resize 20x24 --outputs scores --images 400 --no-flip --leaf a.b --run OTHER --speedup 2x"
    )
    assert command in str(caught.value)
    run.update_config("decompose", None)
    run.update_config("prune", {"asked": {}})
    with pytest.raises(UsageError) as caught:
        require_not_pruned(run)
    # The folder has the weights and the part alone.
    command = f"freeze --model {run.pruned_dir} --data 'imagefolder:my photos' --mean 0.3 --std 0.35"
    assert command in str(caught.value) and "--leaf" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "share", "words"),
    [
        ({"ratio": 0.5}, 0.505, "by l1, 50 % of the channels"),
        ({"ratio": 0.5}, 0.186, "by l1, 19 % of the channels (50 % asked for)"),
        ({"ratio": 0.5}, None, "by l1, 50 % of the channels"),
        ({"speedup": 2.0}, 0.3, "by l1 at 2x"),
        ({"keep": "abc"}, None, "by a given plan"),
    ],
)
def test_a_pruning_that_limits_stopped_is_not_called_by_the_share_that_was_asked_for(asked, share, words):
    assert pruned_words({"asked": {"criterion": "l1", **asked}, "share": share}) == words
