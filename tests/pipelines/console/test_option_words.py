"""Recorded options as the command line names them."""

import dataclasses

import pytest

from decomp.errors import UsageError
from decomp.pipelines.commands.main import main
from decomp.pipelines.console.finetune_options import FinetuneOptions
from decomp.pipelines.console.option_words import option_words
from decomp.pipelines.console.options import DecomposeOptions, FreezeOptions, TrainOptions
from decomp.pipelines.console.prune_options import PruneOptions
from decomp.pipelines.console.python_words import said_for_python


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("n_images", 60, "--images 60"), ("speedup", 2.0, "--speedup 2"),
        ("steps", ["prune", "channel"], "--steps prune,channel"),
        ("leave_out", [], "--leave-out not given"), ("leave_out", ["auto"], "--leave-out auto"),
        ("max_layer_speedup", None, "--max-layer-speedup not given"), ("keep_first", True, "--keep-first"),
        ("keep_first", False, "--keep-first not given"),
        ("mix", False, "--no-mix"), ("mix", True, "--no-mix not given"),
        ("refine_blocks", True, "--refine-blocks"), ("refine_blocks", False, "--no-refine-blocks"),
        ("activation_aware", False, "--linear"), ("seed", 0, "--seed 0"),
    ],
)  # fmt: skip
def test_a_value_is_told_by_its_option(name, value, words):
    assert option_words(name, value) == words


@pytest.mark.parametrize(
    "command, kind",
    [
        ("freeze", FreezeOptions), ("decompose", DecomposeOptions), ("prune", PruneOptions),
        ("finetune", FinetuneOptions), ("train", TrainOptions),
    ],
)  # fmt: skip
def test_every_recorded_option_is_told_by_one_that_the_command_has(command, kind):
    has = {name for entry in main.commands[command].params for name in (*entry.opts, *entry.secondary_opts)}
    for entry in dataclasses.fields(kind):
        for value in (True, False, 3):
            told = next(word for word in option_words(entry.name, value).split() if word.startswith("--"))
            assert told in has, entry.name


def test_in_python_they_are_arguments():
    rule = ", ".join(option_words(*pair) for pair in (("refine", True), ("activation_aware", False), ("n_images", 60)))
    with pytest.raises(UsageError) as caught, said_for_python({"images": "n_images"}):
        raise UsageError("runs/a", f"was begun with {rule}", got=option_words("skip", ["a"]))
    assert str(caught.value) == (
        "runs/a: was begun with refine=False not given, activation_aware=False, n_images 60, got skip a."
    )
