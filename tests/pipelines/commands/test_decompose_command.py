"""Command decompose: every option reaches the argument of the stage, of the family or of the search."""

import click
import pytest
from command_line import Result, decomp_command

from decomp import cli
from decomp.errors import UsageError
from decomp.pipelines.commands import decompose_command
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

STAGE = "stages.decompose.decompose"
#: A line with all options, none at its default, and the call of the stage.
FULL = (
    "--run r --speedup 2.5x --cost latency --batch-size 3 --layout channels-last --runtime compile "
    "--allocation uniform --steps prune,spatial --multiple 4 --skip a --skip b.* --keep-first "
    "--max-layer-speedup 6.5 --selector lasso "
    "--linear --no-refine --no-recovery --no-sampler --no-refine-blocks --coupled 0.75 --leave-out b "
    "--leave-out c.* --plan-only --from other --redo --memory 1GB --device cpu",
    ("r",),
    {
        "speedup": 2.5, "cost": "latency", "latency_batch": 3, "latency_layout": "channels-last",
        "runtime": "compile",
        "allocation": "uniform", "steps": ("spatial", "prune"), "multiple": 4, "skip": ("a", "b.*"),
        "keep_first": True, "max_layer_speedup": 6.5, "selector": "lasso", "activation_aware": False,
        "refine": False, "recovery": False, "sampler": False, "refine_blocks": False, "coupled": 0.75,
        "leave_out": ("b", "c.*"),
        "plan_only": True, "plan": None,
        "source_run": "other", "redo": True, "memory": 10**9, "device": "cpu",
    },
)  # fmt: skip


def test_every_option_reaches_the_argument_of_the_stage(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    threads = []
    monkeypatch.setattr(decompose_command, "begin", threads.append)
    stage, (line, arguments, options) = Recorded(monkeypatch, STAGE), FULL
    result = decomp_command("decompose", *line.split(), "--threads", "3", "--quiet")
    assert result == Result(0, f"{PRINTED}\n", "")
    assert stage.calls == [(arguments, options)] and threads == [3] and stage.reporters[0].quiet
    # A value that is the default of the argument would not show that the option reaches it.
    assert all(value != stage.default(name) for name, value in options.items() if name != "plan")


def test_the_full_line_has_all_options_of_the_command():
    declared = [param for param in cli.main.commands["decompose"].params if isinstance(param, click.Option)]
    elsewhere = {"--threads", "--quiet", "-v", "--json", "--debug"}
    elsewhere |= {"--plan", "--max-drop", "--evaluate", "--export"}  # not beside the others, see below
    there = elsewhere | set(FULL[0].split())
    assert [option.opts for option in declared if not there & {*option.opts, *option.secondary_opts}] == []


def test_an_option_left_out_is_the_default_of_the_argument(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, STAGE)
    assert decomp_command(*"decompose --run r --speedup 2".split()).code == 0
    ((_, options),) = stage.calls
    for name, value in options.items():
        assert value == {"speedup": 2.0}.get(name, stage.default(name)), name
    assert not stage.reporters[0].quiet


@pytest.mark.parametrize("flag", ["refine", "recovery", "sampler"])
def test_a_no_flag_turns_off_its_own_part_alone(monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, STAGE)
    decomp_command("decompose", "--run", "r", "--speedup", "2", f"--no-{flag}")
    options = stage.calls[0][1]
    values = {name: options[name] for name in ("refine", "recovery", "sampler", "activation_aware")}
    assert values == {**dict.fromkeys(values, True), flag: False}


def test_several_speedups_go_to_the_family_with_all_other_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage, family = Recorded(monkeypatch, STAGE), Recorded(monkeypatch, "recipes.family.family")
    line, arguments, options = FULL
    result = decomp_command("decompose", *line.replace("2.5x", "4x,2x,3").split())
    assert result.out == f"{PRINTED}\n" and stage.calls == []
    expected = {name: value for name, value in options.items() if name != "speedup"}
    assert family.calls == [(arguments, {**expected, "speedups": (4.0, 2.0, 3.0)})] and result.code == 0


def test_a_family_of_which_one_failed_prints_its_result_and_ends_with_its_exit_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Recorded(monkeypatch, "recipes.family.family")
    monkeypatch.setattr("tests.pipelines.commands.recorded_calls.Result.exit_code", 1)
    result = decomp_command("decompose", "--run", "r", "--speedup", "2x,3x")
    assert (result.code, result.out) == (1, f"{PRINTED}\n")


def test_a_largest_loss_goes_to_its_own_search_with_all_other_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    search = Recorded(monkeypatch, "recipes.loss_budget.decompose_within")
    result = decomp_command(*"decompose --run r --max-drop 1% --steps prune --no-refine".split())
    assert result.out == f"{PRINTED}\n"
    ((arguments, options),) = search.calls
    assert arguments == ("r",) and (options["max_drop"], options["speedup"]) == (0.01, None)
    assert (options["steps"], options["refine"]) == (("prune",), False)


def test_a_plan_is_taken_instead_of_a_speedup(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, STAGE)
    line = "decompose --run r --plan p.json --selector l1 --no-refine --batch-size 2 --max-layer-speedup 3"
    assert decomp_command(*line.split()).code == 0
    options = stage.calls[0][1]
    assert (options["plan"], options["speedup"], options["selector"], options["refine"]) == (
        "p.json",
        None,
        "l1",
        False,
    )


@pytest.mark.parametrize(
    "option",
    [
        "--speedup 2", "--steps prune", "--allocation joint", "--cost macs", "--multiple 8", "--skip a", "--keep-first",
        "--coupled 0.5", "--coupled auto", "--leave-out auto", "--speedup 2,3",
    ],
)  # fmt: skip
def test_what_a_plan_contains_is_refused_beside_it(monkeypatch, option):
    stage, name = Recorded(monkeypatch, STAGE), option.split()[0]
    result = decomp_command("decompose", "--run", "r", "--plan", "p.json", *option.split())
    fault = UsageError(
        "--plan", f"contains the value of {name} itself", got=f"{name} beside it", fix="leave one of them out"
    )
    assert result == Result(2, "", f"error: {fault}\n") and stage.calls == []


def test_the_export_is_tried_with_the_options_of_the_decomposition(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Recorded(monkeypatch, "recipes.loss_budget.decompose_within")
    tried = Recorded(monkeypatch, "recipes.exported.require_exportable")
    decomp_command(*"decompose --run r --max-drop 1% --export onnx,pt2 --steps prune --skip a".split())
    ((arguments, options),) = tried.calls
    assert arguments == ("r", ("onnx", "pt2")) and options["speedup"] == 2.0
    assert (options["options"]["steps"], options["options"]["skip"]) == (("prune",), ("a",))
