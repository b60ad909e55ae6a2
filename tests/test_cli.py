"""Command line: the whole path once, JSON results, help and completion."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import ROOT, decomp_command

import decomp
from decomp import cli
from decomp.pipelines.commands.group import COMMANDS
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.record import read_log
from tests.pipelines import task_runs


@pytest.fixture(scope="module")
def decomposed(frozen):
    result = decomp_command("decompose", "--run", frozen, "--speedup", "2x")
    assert result.code == 0, result.err
    return frozen


@pytest.fixture(scope="module")
def finished(decomposed):
    for command in (["finetune", "--epochs", "1"], ["evaluate", "--batch-size", "8", "--repeats", "2"]):
        result = decomp_command(command[0], "--run", decomposed, *command[1:])
        assert result.code == 0, result.err
    return decomposed


def test_the_emitted_network_has_the_target_cost(decomposed):
    import torch

    from decomp.cost.count import cost

    network = decomp.load(Path(decomposed) / "model")
    original = decomp.load(Path(decomposed) / "original")
    before, after = cost(original, (1, 8, 8)).macs, cost(network, (1, 8, 8)).macs
    assert before / after >= 2 * 0.99
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_stage_that_is_done_does_no_work_and_says_so(finished):
    times = {
        path: path.stat().st_mtime_ns
        for name in ("frozen.h5", "plan.json", "layers", "model", "original", "finetune/best")
        for path in [Path(finished, name), *Path(finished, name).rglob("*")]
    }
    for command in (
        "freeze --model net.py:build --data digits --images 150 --points 5",
        "decompose --speedup 2x",
        "finetune --epochs 1",
    ):
        result = decomp_command(*command.split(), "--run", finished)
        assert result.code == 0 and "nothing to do" in result.out, (command, result)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_evaluate_prints_a_table_and_the_same_as_json(finished):
    table = decomp_command("evaluate", "--run", finished, "--batch-size", "8", "--repeats", "2")
    assert table.code == 0
    for name in ("original", "decomposed", "fine-tuned"):
        assert any(name in line for line in table.out.splitlines())
    result = decomp_command("evaluate", "--run", finished, "--batch-size", "8", "--repeats", "2", "--json")
    rows = json.loads(result.out)["rows"]
    assert len(rows) == 3 and result.err == ""
    assert rows[0]["macs"] / rows[1]["macs"] >= 2 * 0.99


# A key of the JSON result of each command; the demo takes a minute and has a test of its own.
JSON_RESULTS = {
    "inspect": ("inspect --model net.py:build --data digits", "layers"),
    "freeze": ("freeze --model net.py:build --data digits --images 150 --points 5 --run {run}", "run"),
    "decompose": ("decompose --speedup 2x --run {run}", "run"),
    "finetune": ("finetune --epochs 1 --run {run}", "run"),
    "evaluate": ("evaluate --batch-size 8 --repeats 2 --run {run}", "rows"),
    "export": ("export --format state-dict --run {run}", "exported"),
    "report": ("report --run {run}", "figures"),
    "compare": ("compare {run} {other}", "figures"),
    "status": ("status --run {run}", "run"),
    "runs": ("runs .", "runs"),
    "prune": ("prune --model net.py:build --data digits --images 150 --points 5 --ratio 0.25 --run runs/pruned", "run"),
    "sensitivity": ("sensitivity --run {run} --ratios 0.5", "facts"),
    "tasks": ("tasks list --run runs/tasks", "tasks"),
    "recipe": (
        "recipe imagenet --data digits --network zoo:vgg-digits=2x --epochs 0 --images 60 --run runs/table",
        "ours",
    ),
    "train": ("train --model zoo:vgg-digits --data digits --epochs 1 --out json.safetensors", "weights"),
    "slim": (
        "slim --model zoo:vgg-digits --data digits --run runs/json --passes 1 --epochs 1 --tune-epochs 1 --images 20",
        "passes",
    ),
}


@pytest.mark.parametrize("command", JSON_RESULTS)
def test_every_command_prints_its_result_as_json(finished, command):
    other = "runs/copy"
    if command == "compare" and not Path(other).is_dir():
        shutil.copytree(finished, other)
    if command == "tasks":
        Path("net_of_tasks").mkdir()
        data = task_runs.halves("halves.npz", 0)
        task_runs.add("runs/tasks", "rows", data, model=task_runs.network_file(Path("net_of_tasks")))
    line, key = JSON_RESULTS[command]
    line = line.format(run=finished, other=other)
    result = decomp_command(*line.split(), "--json")
    assert result.code == 0 and result.err == "", result
    value = json.loads(result.out)[key]
    assert value and (key != "run" or line.endswith(f"--run {value}"))
    if command == "export":
        assert Path(value[0]["path"]).stat().st_size == value[0]["bytes"]


def test_the_json_of_every_command_is_tested():
    assert set(JSON_RESULTS) == set(COMMANDS) - {"demo"}


def test_status_names_what_is_done_and_the_next_command(place, finished):
    RunDirectory.create("runs/new")
    new = decomp_command("status", "--run", "runs/new")
    assert "next: decomp freeze" in new.out
    done = decomp_command("status", "--run", finished, "--json")
    stages = json.loads(done.out)["stages"]
    assert [stage["state"] for stage in stages[:4]] == ["done"] * 4
    open_stages = [stage["name"] for stage in stages if stage["state"] != "done"]
    assert json.loads(done.out)["next"] == (f"decomp {open_stages[0]} --run {finished}" if open_stages else None)


def test_the_log_holds_every_stage_with_its_time(finished):
    ends = [event for event in read_log(Path(finished) / "log.jsonl") if event.get("event") == "end"]
    stages = [event["stage"] for event in ends]
    assert stages[:3] == ["freeze", "decompose", "finetune"] and "evaluate" in stages
    assert all(event["took"] >= 0 for event in ends)


def test_another_run_can_start_from_the_frozen_points(decomposed):
    result = decomp_command(
        "decompose", "--run", "runs/b", "--from", decomposed, "--speedup", "1.5", "--steps", "spatial"
    )
    assert result.code == 0, result.err
    assert RunDirectory.open("runs/b").config("decompose")["asked"]["steps"] == ["spatial"]


def test_quiet_prints_the_result_alone(place):
    result = decomp_command(*"freeze --model net.py:build --data digits --run runs/q --images 20 --quiet".split())
    assert (result.code, result.err) == (0, "") and "runs/q" in result.out


def test_trained_weights_are_taken_by_freeze(place):
    command = "train --model zoo:vgg-digits --data digits --epochs 1 --out trained.safetensors"
    result = decomp_command(*command.split())
    assert result.code == 0, result.err
    assert json.loads(Path("trained.json").read_text())["epochs"] == 1
    again = decomp_command(*command.split())
    assert again.code == 0 and "nothing to do" in again.out
    command = "freeze --model zoo:vgg-digits --weights trained.safetensors --data digits --run runs/t --images 20"
    assert decomp_command(*command.split()).code == 0


@pytest.mark.slow
def test_the_demo_runs_all_stages_and_then_has_nothing_left_to_do(place):
    first = decomp_command("demo")
    assert first.code == 0, first.err
    assert "fine-tuned" in first.out and "runs/demo/report.html" in first.out.splitlines()[-1]
    second = decomp_command("demo")
    assert second.err.count("nothing to do") == 3 and "measured earlier" in second.out
    rows = json.loads(Path("runs/demo/report.json").read_text())["rows"]
    assert rows[1]["counted_speedup"] >= 4 and min(row["top1"] for row in rows) > 0.95


def test_a_family_is_one_command(frozen):
    result = decomp_command("decompose", "--run", "runs/f", "--from", frozen, "--speedup", "1.5x,2x", "--keep-first")
    assert result.code == 0, result.err
    assert "runs/f-1.5x" in result.out and "runs/f-2x" in result.out
    for name in ("1.5x", "2x"):
        plan = json.loads(Path(f"runs/f-{name}/plan.json").read_text())
        assert plan["layers"][0]["limits"] == {"skip": "--keep-first"}
        assert decomp_command("status", "--run", f"runs/f-{name}").out.count("done") >= 2


# -- help --------------------------------------------------------------------------------------------------------


def commands_with_options():
    """Each command by its words; of a group of commands those in it."""
    for name, command in cli.main.commands.items():
        inner = command.commands if isinstance(command, click.Group) else None
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {word}", entry) for word, entry in inner.items())


WITH_OPTIONS = dict(commands_with_options())


@pytest.mark.parametrize("words", [*WITH_OPTIONS, "tasks"])
def test_every_command_helps(words):
    result = decomp_command(*words.split(), "--help")
    assert result.code == 0 and f"Usage: decomp {words} " in result.out
    assert ("--debug" in result.out) == (words in WITH_OPTIONS)


@pytest.mark.parametrize("words", WITH_OPTIONS)
def test_every_option_has_a_sentence_of_help_and_those_with_a_value_say_their_default(words):
    context = click.Context(WITH_OPTIONS[words])
    options = [param for param in context.command.params if isinstance(param, click.Option)]
    assert len(options) >= 2
    for option in options:
        _, text = option.get_help_record(context)
        sentence = text.split("  [")[0]
        assert sentence[:1].isupper() or sentence.split()[0] in ("safetensors", "zoo:NAME,", "digits,"), text
        assert sentence.endswith("."), text
        if not option.is_flag and not option.required:
            assert re.search(r"\[(no )?default", text), text


def test_help_lists_every_command_and_the_version_is_that_of_the_package():
    assert set(cli.main.commands) == set(COMMANDS)
    shown = decomp_command("--help").out
    assert all(re.search(rf"^  {command} ", shown, re.MULTILINE) for command in COMMANDS)
    assert decomp_command().out == shown
    assert decomp_command("--version").out == f"decomp {decomp.__version__}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("decomp de", {"decompose", "demo"}),
        ("decomp decompose --sel", {"--selector"}),
        ("decomp decompose --selector la", {"lasso", "largest"}),
        ("decomp bogus --x", set()),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words, offered):
    code = "import sys; sys.argv[:] = ['decomp']; from decomp.cli import main; main()"
    completion = {"_DECOMP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **completion}, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stderr == "" and {line.split(",")[1] for line in result.stdout.splitlines() if line} == offered


def test_no_line_of_the_list_of_commands_is_cut():
    lines = decomp_command("--help").out.split("Commands:\n")[1].splitlines()
    assert len(lines) == len(COMMANDS) and not [line for line in lines if line.endswith("...")]
