"""Commands that show or export a result: every option reaches the stage's argument."""

import json

import click
import pytest
from command_line import Result, decomp_command

from decomp import cli
from decomp.pipelines.commands import result_commands
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

STAGES = {
    "inspect": "stages.inspection.inspect", "evaluate": "stages.evaluate.evaluate", "export": "stages.export.export",
    "report": "stages.report.report", "compare": "stages.report.compare", "status": "stages.status.status",
    "runs": "stages.runs.runs",
}  # fmt: skip
# For each command a line with all of its options, none at its default, and the call of the stage.
FULL = {
    "inspect": (
        "--model zoo:a --data digits --weights w.pt --input-size 28 --module body --leaf a --leaf b --images 20 "
        "--dot a.dot --png a.png",
        ("zoo:a",),
        {
            "data": "digits", "weights": "w.pt", "input_size": "28", "part": "body", "leaves": ("a", "b"),
            "n_images": 20, "dot": "a.dot", "png": "a.png",
        },
    ),
    "evaluate": (
        "--run r --batch-size 3 --repeats 4 --runtime compile,eager --layout channels-last --redo --device cpu",
        ("r",),
        {
            "batch_size": 3, "repeats": 4, "runtime": ("compile", "eager"), "layout": "channels-last", "redo": True,
            "device": "cpu",
        },
    ),
    "export": (
        "--run r --format onnx,pt2 --which original --out deploy --dynamic width",
        ("r",),
        {"formats": ("onnx", "pt2"), "which": "original", "out": "deploy", "dynamic": ("width",)},
    ),
    "report": ("--run r --out there", ("r",), {"out": "there"}),
    "compare": ("a b c --out there", (("a", "b", "c"),), {"out": "there"}),
    "status": ("--run r", ("r",), {"program": "python cli.py"}),
    "runs": ("there", ("there",), {}),
}  # fmt: skip
LEAST = {
    "inspect": "--model zoo:a", "evaluate": "--run r", "export": "--run r", "report": "--run r", "compare": "a",
    "status": "--run r", "runs": "",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


@pytest.mark.parametrize("command", FULL)
def test_every_option_reaches_the_argument_of_its_stage(monkeypatch, command):
    threads, shared = [], [] if command in ("status", "runs") else ["--threads", "3", "--quiet"]
    monkeypatch.setattr(result_commands, "begin", threads.append)
    stage, (line, arguments, options) = Recorded(monkeypatch, STAGES[command]), FULL[command]
    assert decomp_command(command, *line.split(), *shared) == Result(0, f"{PRINTED}\n", "")
    assert stage.calls == [(arguments, options)] and threads == [3][: len(shared)]
    assert all(value != stage.default(name) for name, value in options.items())
    if command not in ("inspect", "status", "runs"):
        assert stage.reporters[0].quiet


@pytest.mark.parametrize("command", FULL)
def test_the_full_line_has_all_options_of_the_command(command):
    declared = [param for param in cli.main.commands[command].params if isinstance(param, click.Option)]
    missing = {option.opts[0] for option in declared} - set(FULL[command][0].split())
    common = {"status": set(), "runs": set(), "inspect": {"--threads", "--quiet"}}.get(
        command, {"--threads", "--quiet", "-v"}
    )
    assert missing == {"--json", "--debug"} | common


@pytest.mark.parametrize("command", LEAST)
def test_an_option_left_out_is_the_default_of_the_argument(monkeypatch, command):
    stage = Recorded(monkeypatch, STAGES[command])
    assert decomp_command(command, *LEAST[command].split()).code == 0
    ((_, options),) = stage.calls
    given = {"program": "python cli.py"}
    assert options == {name: given.get(name, stage.default(name)) for name in options}
    if command not in ("inspect", "status", "runs"):
        assert not stage.reporters[0].quiet


@pytest.mark.parametrize("command", LEAST)
def test_json_prints_the_result_alone(monkeypatch, command):
    stage = Recorded(monkeypatch, STAGES[command])
    result = decomp_command(command, *LEAST[command].split(), "--json")
    assert json.loads(result.out) == {"result": PRINTED} and result.err == ""
    if command not in ("inspect", "status", "runs"):
        assert stage.reporters[0].quiet


@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_steps_are_logged_into_the_run_and_a_comparison_nowhere(monkeypatch, command):
    stage = Recorded(monkeypatch, STAGES[command])
    decomp_command(command, "--run", "r")
    assert str(stage.reporters[0].log_path) == "r/log.jsonl" and stage.reporters[0].command == f"{command} --run r"
    compared = Recorded(monkeypatch, STAGES["compare"])
    decomp_command("compare", "a", "b")
    assert compared.reporters[0].log_path is None
