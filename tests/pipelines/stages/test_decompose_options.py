"""Mistakes in the options of decompose: one line in the Python API, in both recipes and on the command line."""

import dataclasses
import inspect
import re

import pytest
import torch
from command_line import decomp_command
from torch import nn

import decomp
from decomp.errors import UsageError
from decomp.pipelines.console.options import DecomposeOptions
from decomp.pipelines.decomposition.make_plan import decompose_options
from decomp.pipelines.recipes.family import family
from decomp.pipelines.stages.decompose import decompose

# Keyword, value, the same on the command line, and the line that both end in.
MISTAKES = [
    ("cost", "flops", "--cost flops", "--cost: must be one of macs, params, latency, got 'flops'."),
    ("cost", "mac", "--cost mac", "did you mean macs."),
    ("allocation", "jiont", "--allocation jiont", "got 'jiont'; did you mean joint."),
    ("steps", ("chanel",), "--steps chanel", "got 'chanel'; did you mean channel."),
    ("steps", ",", "--steps ,", "leave it out to use all three."),
    ("selector", "bset", "--selector bset", "got 'bset'; did you mean best."),
    ("latency_layout", "channel-last", "--layout channel-last", "did you mean channels-last."),
    ("runtime", "onxruntime", "--runtime onxruntime", "got 'onxruntime'; did you mean onnxruntime."),
    ("speedup", "fast", "--speedup fast", "--speedup: must be a number above 1, got 'fast'; give for example 4x."),
    ("speedup", "0.5x", "--speedup 0.5x", "--speedup: must be a number above 1, got '0.5x'; give for example 4x."),
    ("multiple", "0", "--multiple 0", "--multiple: must be a whole number from 1, got '0'."),
    ("max_layer_speedup", "0.5", "--max-layer-speedup 0.5", "must be a number from 1, got '0.5'."),
    ("latency_batch", "2.5", "--batch-size 2.5", "--batch-size: must be a whole number from 1, got '2.5'."),
    ("coupled", "1.5", "--coupled 1.5", "--coupled: must be a number above 0 and at most 1, or auto, got '1.5'."),
]


def in_python(message, name):
    """The line as `compress` says it: with the names of its arguments."""
    return re.sub(r"^--[a-z-]+", name, message)


def refused(call, *args, **options):
    with pytest.raises(UsageError) as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value", "words", "line"), MISTAKES, ids=[words for _, _, words, _ in MISTAKES])
def test_a_mistake_is_the_same_line_everywhere_and_comes_before_any_work(tmp_path, name, value, words, line):
    run, options = tmp_path / "run", {"speedup": 2, name: value}
    message = refused(decompose, run, **options)
    assert line in message and "\n" not in message
    speedup = "" if name == "speedup" else "--speedup 2 "
    ended = decomp_command("decompose", "--run", run, *f"{speedup}{words}".split())
    assert ended.code == 2 and ended.errors == [f"error: {message}"]
    # The images would be refused too, if it ever came to them.
    assert refused(decomp.compress, nn.Conv2d(1, 1, 1), "no images", **options) == in_python(message, name)
    speedups = [options.pop("speedup"), 3]
    assert refused(family, run, speedups=speedups, **options) == message
    assert list(tmp_path.iterdir()) == []


def test_every_option_with_a_choice_or_a_number_has_a_mistake_above():
    unchecked = {"plan", "skip", "leave_out"}  # a digest; and names, for which the network must be known
    texts = {entry.name for entry in dataclasses.fields(DecomposeOptions) if "bool" not in str(entry.type)}
    assert texts - unchecked == {name for name, *_ in MISTAKES}


@pytest.mark.parametrize("name", ["keep_first", "activation_aware", "refine", "recovery", "sampler"])
def test_a_switch_takes_no_text(tmp_path, name):
    assert "must be True or False, got 'no'" in refused(decompose, tmp_path / "run", speedup=2, **{name: "no"})


def test_an_option_that_does_not_exist_is_named_with_the_nearest():
    line = refused(decomp.compress, nn.Conv2d(1, 1, 1), torch.zeros(20, 1, 8, 8), selektor="lasso")
    assert line == "selektor: is no option of compress; did you mean selector."
    assert "there are speedup, steps, " in refused(decompose_options, speedup=2, zzz=1)


def test_the_keywords_of_the_stage_have_the_defaults_of_the_options():
    keywords = {name: parameter.default for name, parameter in inspect.signature(decompose).parameters.items()}
    for entry in dataclasses.fields(DecomposeOptions):
        if entry.name != "speedup":
            assert keywords[entry.name] == entry.default, entry.name
