"""Typed options: each is checked when made, recorded as plain data, and compared with a record."""

import dataclasses
import json
from inspect import signature

import numpy as np
import pytest
import torch

from decomp.allocation.plan import SIZES
from decomp.criteria.names import CRITERIA
from decomp.errors import UsageError
from decomp.pipelines.commands.main import main
from decomp.pipelines.console import options
from decomp.pipelines.console.finetune_options import FinetuneOptions
from decomp.pipelines.console.options import (
    DecomposeOptions,
    EvaluateOptions,
    FreezeOptions,
    StageOptions,
    TrainOptions,
)  # fmt: skip
from tests.pipelines.digit_runs import Collected

MADE = (
    FreezeOptions(model="zoo:vgg-digits", data="digits"), DecomposeOptions(speedup="4x"), FinetuneOptions(),
    TrainOptions(model="zoo:vgg-digits"), EvaluateOptions(),
)  # fmt: skip


def test_the_choices_are_those_of_the_modules_that_use_them():
    from decomp.allocation import plan
    from decomp.cost.latency_model import LatencyCost
    from decomp.cost.models import MacsCost, ParamsCost
    from decomp.data.formats import exported
    from decomp.pipelines.training import recipe
    from decomp.runtimes import eager
    from decomp.solvers import solve_layer

    assert options.STEPS == plan.STEPS and set(options.STEPS) == set(plan.SIZES)
    assert set(options.SELECTORS) == set(solve_layer.SELECTORS)
    assert set(options.AS_SELECTORS) < set(CRITERIA) and not set(options.AS_SELECTORS) & set(options.SELECTORS)
    assert options.FORMATS == tuple(exported.FORMATS)
    assert set(options.LAYOUTS) == set(eager.LAYOUTS)
    assert options.ALLOCATIONS == plan.ALLOCATIONS and options.COSTS == plan.COSTS
    assert set(options.COSTS) == {MacsCost.name, ParamsCost.name, LatencyCost.name}
    assert set(options.SCHEDULES) < set(recipe.SCHEDULES)


@pytest.mark.usefixtures("one_thread", "known_networks")
@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_every_allocation_makes_another_plan(run):
    """None of the names falls through to the plan of another one."""
    plans = {}
    for name in options.ALLOCATIONS:
        given = {"speedup": 2, "multiple": 1, "plan_only": True, "redo": bool(plans), "reporter": Collected()}
        stage_of("decompose")(run, allocation=name, **given)
        plan = json.loads(run.plan_json.read_text())
        assert plan["allocation"] == name
        plans[name] = [[layer[size] for size in SIZES.values()] for layer in plan["layers"]]
    assert len({str(sizes) for sizes in plans.values()}) == len(options.ALLOCATIONS) == 3


# Options whose flag on the command line says the opposite.
NEGATED = {"activation_aware": "linear", "refine": "no_refine", "recovery": "no_recovery", "sampler": "no_sampler"}
COMPARED = {"freeze": 16, "decompose": 18, "finetune": 11, "train": 20, "evaluate": 4}


def stage_of(name):
    module = __import__(f"decomp.pipelines.stages.{name}", fromlist=[name])
    return getattr(module, name)


@pytest.mark.parametrize(
    "name, kind", [("freeze", FreezeOptions), ("decompose", DecomposeOptions), ("finetune", FinetuneOptions),
                   ("train", TrainOptions), ("evaluate", EvaluateOptions)],
)  # fmt: skip
def test_command_stage_and_options_have_the_same_defaults(name, kind):
    """Every option of a stage has one default: that of its class, also where it is None."""
    parameters, command = signature(stage_of(name)).parameters, main.commands[name]
    needed = [f"{option.opts[0]}=x" for option in command.params if option.required]
    typed = command.make_context(name, needed).params
    typed = {**typed, **{option: not typed[flag] for option, flag in NEGATED.items() if flag in typed}}
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    assert set(defaults) <= set(typed) & set(parameters)
    for option in {"model", "data", "speedup", "plan"} & set(defaults):  # given above, or of another kind in a record
        del defaults[option]
    assert len(defaults) == COMPARED[name]
    assert {option: parameters[option].default for option in defaults} == defaults
    assert {option: typed[option] for option in defaults} == defaults


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_options_come_back_from_their_record_and_do_not_change(made):
    record = json.loads(json.dumps(made.to_json()))
    assert type(made).from_json(record) == made and made.differences(record) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 3


def test_differences_name_every_option_that_is_another():
    record = DecomposeOptions(speedup=4, multiple=4, skip="conv1").to_json()
    now = DecomposeOptions(speedup=3, skip=["conv1"])
    assert now.differences(record) == [("speedup", 4.0, 3.0), ("multiple", 4, 8)]


def test_an_option_that_an_earlier_version_did_not_record_takes_its_default():
    assert FreezeOptions.from_json({"model": "a:b", "data": "digits", "later": 1}).n_points == 10


MISTAKES = {
    "cost": ("flops", "--cost: must be one of macs, params, latency, got 'flops'."),
    "allocation": (
        "jiont",
        "--allocation: must be one of joint, energy, uniform, got 'jiont'; did you mean joint.",
    ),
    "steps": (("chanel",), "got 'chanel'; did you mean channel."),
    "selector": ("bset", "got 'bset'; did you mean best."),
    "latency_layout": ("channel-last", "got 'channel-last'; did you mean channels-last."),
    "multiple": (0, "--multiple: must be a whole number from 1, got 0."),
    "max_layer_speedup": (0.5, "--max-layer-speedup: must be a number from 1, got 0.5."),
    "latency_batch": (2.5, "--batch-size: must be a whole number from 1, got 2.5."),
    "coupled": (1.5, "--coupled: must be a number above 0 and at most 1, or auto, got 1.5."),
    "leave_out": (("auto", "b"), "--leave-out: must be auto alone, or names, got auto, b; leave one of them out."),
    "speedup": ("fast", "--speedup: must be a number above 1, got 'fast'; give for example 4x."),
    "skip": ([3], "--skip: must be a text that is not empty, got 3."),
    "refine": ("no", "refine: must be True or False, got 'no'."),
    "keep_first": (1, "--keep-first: must be True or False, got 1."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_option_of_decompose_is_refused_when_it_is_made(name):
    value, line = MISTAKES[name]
    with pytest.raises(UsageError) as caught:
        DecomposeOptions(**{"speedup": 4, name: value})
    assert line in str(caught.value)


def test_every_option_of_decompose_is_checked():
    unchecked = {entry.name for entry in dataclasses.fields(DecomposeOptions) if "check" not in entry.metadata}
    assert unchecked == {"plan"}  # the digest of a file, made by us


@pytest.mark.parametrize(
    "kind, given, line",
    [
        (FreezeOptions, {"model": 3, "data": "digits"}, "--model: must be a text"),
        (FreezeOptions, {"model": "a:b"}, "--data: must be a text"),
        (FreezeOptions, {"model": "a:b", "data": "digits", "n_images": 9}, "--images: must be a whole number from 10"),
        (FreezeOptions, {"model": "a:b", "data": "digits", "n_points": 0}, "--points: must be a whole number from 1"),
        (FinetuneOptions, {"schedule": "cosin"}, "did you mean cosine"),
        (FinetuneOptions, {"labels": "non"}, "did you mean none"),
        (FinetuneOptions, {"labels": "none", "distill": True}, "--distill: adds the original's outputs to labels"),
        (FinetuneOptions, {"learning_rate": 0}, "--lr: must be a number above 0"),
        (TrainOptions, {"model": "zoo:x", "epochs": 0}, "--epochs: must be a whole number from 1"),
        (EvaluateOptions, {"layout": "contigous"}, "did you mean contiguous"),
    ],
)
def test_wrong_options_of_other_stages_are_refused_when_they_are_made(kind, given, line):
    with pytest.raises(UsageError, match=line):
        kind(**given)


def test_latency_conditions_are_part_of_the_record_of_a_plan_by_latency_only():
    assert DecomposeOptions(speedup=2).latency_batch is None
    assert DecomposeOptions(speedup=2, runtime="compile").runtime is None
    assert DecomposeOptions(speedup=2, cost="latency").runtime == "eager"
    with pytest.raises(UsageError, match="^--layout: must be one of contiguous, got 'channels-last'"):
        DecomposeOptions(speedup=2, cost="latency", runtime="onnxruntime", latency_layout="channels-last")
    assert DecomposeOptions(speedup=2, cost="latency").to_json()["latency_layout"] == "contiguous"


def test_a_plan_from_a_file_brings_its_own_numbers():
    made = DecomposeOptions(speedup=1.0, allocation="by hand", plan="0" * 64)
    assert (made.speedup, made.allocation) == (1.0, "by hand")


def test_formats_come_in_the_order_given():
    assert options.formats(["onnx", "pt2", "onnx"]) == ("onnx", "pt2") == options.formats("onnx, pt2")
    with pytest.raises(UsageError, match="--format: .*did you mean onnx"):
        options.formats("onx")


def test_all_options_are_of_one_kind():
    assert all(isinstance(made, StageOptions) for made in MADE)


def test_skip_takes_any_names_and_sets_have_one_order():
    for given in ({"b", "a"}, {"a": 1, "b": 2}.keys(), (name for name in "ab"), np.array(["a", "b"])):
        assert DecomposeOptions(speedup=2, skip=given).skip == ("a", "b")


def test_numbers_and_flags_of_other_libraries_are_taken():
    made = DecomposeOptions(speedup=torch.tensor(2.5), keep_first=np.bool_(True), multiple=np.int64(4))
    assert (made.speedup, made.keep_first, made.multiple) == (2.5, True, 4)
    assert json.dumps(made.to_json())


def test_values_that_mean_the_same_are_no_difference():
    record = DecomposeOptions(speedup=4, max_layer_speedup=3).to_json()
    record.update(steps=["prune", "spatial", "channel"], max_layer_speedup=3)
    del record["sampler"]
    assert DecomposeOptions(speedup="4x", max_layer_speedup=3.0).differences(record) == []


def test_with_a_given_plan_the_conditions_of_latency_are_those_of_the_plan():
    made = DecomposeOptions(speedup=2.0, cost="latency", plan="0" * 64, latency_batch=32)
    assert (made.latency_batch, made.latency_layout) == (None, None)
