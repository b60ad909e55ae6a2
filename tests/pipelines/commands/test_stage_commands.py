"""Commands that make something: every option reaches the stage's argument."""

import click
import pytest
from command_line import Result, decomp_command

from decomp import cli
from decomp.pipelines.commands import stage_commands
from tests.pipelines.commands.recorded_calls import PRINTED, Recorded

STAGES = {
    "freeze": "stages.freeze.freeze", "finetune": "stages.finetune.finetune",
    "train": "stages.train.train", "demo": "recipes.demo.demo",
}  # fmt: skip
# For each command a line with all of its options, none at its default, and the call of the stage.
FULL = {
    "freeze": (
        "--model zoo:a --data digits --run r --weights w.pt --input-size 3x8x8 --module body --leaf a --leaf b.c "
        "--images 20 --points 3 --batch-size 7 --memory 2MiB --seed 5 --device cuda:1 --skip-bad --outputs values "
        "--mean 0.5,0.4,0.3 --std 0.2 --resize 40x36 --crop 32 --no-flip --transforms t.py:make "
        "--no-mix",
        ("r",),
        {
            "model": "zoo:a", "data": "digits", "weights": "w.pt", "input_size": "3x8x8", "part": "body",
            "leaves": ("a", "b.c"), "n_images": 20, "n_points": 3, "batch_size": 7, "memory": 2 << 20, "seed": 5,
            "device": "cuda:1", "skip_bad": True, "mean": (0.5, 0.4, 0.3), "std": (0.2,), "resize": (40, 36),
            "crop": (32,), "flip": False, "transforms": "t.py:make", "outputs": "values",
            "mix": False,
        },
    ),
    "finetune": (
        "--run r --epochs 7 --lr 0.5 --batch-size 9 --schedule constant --labels none --distill --weight-decay 0 "
        "--redo --seed 3 --device cpu --minutes 2.5 --data npz:a --images 20 --memory 2GiB --precision bfloat16",
        ("r",),
        {
            "minutes": 2.5, "data": "npz:a", "n_images": 20, "memory": 2 << 30, "precision": "bfloat16",
            "epochs": 7, "learning_rate": 0.5, "batch_size": 9, "schedule": "constant", "labels": "none",
            "distill": True, "weight_decay": 0.0, "redo": True, "seed": 3, "device": "cpu",
        },
    ),
    "train": (
        "--model zoo:a --data digits --out w.safetensors --run r --epochs 3 --lr 0.25 --batch-size 6 --redo --seed 8 "
        "--device cpu --schedule constant --scheme repr --s1 2 --s2 1 --drop 0.4 --cycles 5 --min-keep 0.2 --first "
        "--coupled --order random --reinit qr --scale clip --next keep --sparsity 0.01 --proximal --memory 3GiB "
        "--precision float32",
        ("zoo:a",),
        {
            "data": "digits", "out": "w.safetensors", "run": "r", "epochs": 3, "learning_rate": 0.25, "batch_size": 6,
            "redo": True, "seed": 8, "device": "cpu", "schedule": "constant", "sparsity": 0.01, "proximal": True,
            "memory": 3 << 30, "precision": "float32",
            "scheme": "repr", "s1": 2, "s2": 1,
            "drop": 0.4, "cycles": 5, "min_keep": 0.2, "first": True, "coupled": True, "order": "random",
            "method": "qr", "scale": "clip", "next_slice": "keep",
        },
    ),
    "demo": ("--run r", ("r",), {}),
}  # fmt: skip
LEAST = {
    "freeze": "--model zoo:a --data digits --run r", "finetune": "--run r",
    "train": "--model zoo:a", "demo": "",
}  # fmt: skip


@pytest.fixture
def threads(monkeypatch):
    """The numbers of threads that commands set."""
    calls = []
    monkeypatch.setattr(stage_commands, "begin", calls.append)
    return calls


@pytest.mark.parametrize("command", FULL)
def test_every_option_reaches_the_argument_of_its_stage(monkeypatch, tmp_path, threads, command):
    monkeypatch.chdir(tmp_path)
    stage, (line, arguments, options) = Recorded(monkeypatch, STAGES[command]), FULL[command]
    result = decomp_command(command, *line.split(), "--threads", "3", "--quiet")
    assert result == Result(0, f"{PRINTED}\n", "")
    assert stage.calls == [(arguments, options)] and threads == [3] and stage.reporters[0].quiet
    # A value that is the default of the argument would not show that the option reaches it.
    assert all(value != stage.default(name) for name, value in options.items())


@pytest.mark.parametrize("command", FULL)
def test_the_full_line_has_all_options_of_the_command(command):
    declared = [param for param in cli.main.commands[command].params if isinstance(param, click.Option)]
    elsewhere = {"--threads", "--quiet", "-v", "--json", "--debug"}
    elsewhere |= {"--data"} if command == "demo" else set()  # of the masked demo
    there = elsewhere | set(FULL[command][0].split())
    assert [option.opts for option in declared if not there & {*option.opts, *option.secondary_opts}] == []


@pytest.mark.parametrize("command", LEAST)
def test_an_option_left_out_is_the_default_of_the_argument(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, STAGES[command])
    assert decomp_command(command, *LEAST[command].split()).code == 0
    ((arguments, options),) = stage.calls
    given = {"model": "zoo:a", "data": "digits"} if command == "freeze" else {}
    for name, value in options.items():
        assert value == given.get(name, stage.default(name)), name
    assert not stage.reporters[0].quiet
    if command == "demo":
        assert arguments == ("runs/demo",)


@pytest.mark.parametrize("command", ["finetune", "train"])
def test_the_learning_rate_has_a_long_name_too(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    stage = Recorded(monkeypatch, STAGES[command])
    decomp_command(command, *LEAST[command].split(), "--learning-rate", "0.125")
    assert stage.calls[0][1]["learning_rate"] == 0.125


def test_the_demo_of_tasks_has_a_run_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tasks = Recorded(monkeypatch, "recipes.task_demo.task_demo")
    assert decomp_command("demo", "tasks").out == f"{PRINTED}\n"
    assert decomp_command("demo", "tasks", "--run", "r").code == 0
    assert [str(arguments[0]) for arguments, _ in tasks.calls] == ["runs/demo-tasks", "r"]
    result = decomp_command("demo", "tasks", "--data", "digits")
    assert result.code == 2 and "--data: has no effect on this demo" in result.err


def test_the_masked_demo_takes_images_and_no_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage, masked = Recorded(monkeypatch, STAGES["demo"]), Recorded(monkeypatch, "recipes.masked.masked")
    assert decomp_command("demo", "masked").out == f"{PRINTED}\n"
    assert decomp_command("demo", "masked", "--data", "mnist:there").code == 0
    assert masked.calls == [((), {}), ((), {"data": "mnist:there"})] and stage.calls == []
    result = decomp_command("demo", "masked", "--run", "r")
    assert result.err == "error: --run: has no effect on the masked demo, which writes nothing; leave it out.\n"
    result = decomp_command("demo", "--data", "digits")
    assert result.code == 2 and "leave it out, or write `demo masked`" in result.err and stage.calls == []
