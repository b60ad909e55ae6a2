"""The command line as a person meets it: the whole way once, and every mistake as one line."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import decomp
from decomp import cli
from decomp.errors import DecompError, UsageError
from decomp.pipelines import options
from decomp.pipelines.rundir import RunDirectory, read_log

ROOT = Path(__file__).resolve().parent.parent

# A chain small enough for tests, on scikit-learn's digits; its weights are drawn, not trained.
NETWORK = """
import torch
from torch import nn

def build(size=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
        )

def other():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 4, 10))

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(144, 10)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.flatten(1)) if x.sum() > 0 else self.head(-x.flatten(1))

def untraceable():
    return Branch()

def broken():
    raise ValueError("two\\nlines")

not_a_model = 3
def returns_text():
    return "text"
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def errors(self):
        """Lines on standard error, but for those that tell steps."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def decomp_command(*arguments):
    """Give a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
        cli.main([str(argument) for argument in arguments])
    return Result(exit.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network file, in which commands are given."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(NETWORK)
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def frozen(place):
    """A run with frozen points of the small network."""
    result = decomp_command(*"freeze --model net.py:build --data digits --run runs/a --images 150 --points 5".split())
    assert result.code == 0, result.err
    return "runs/a"


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


# -- the whole way ------------------------------------------------------------------------------------------


def test_the_emitted_network_is_loaded_with_the_cost_that_was_asked_for(decomposed):
    import torch

    from decomp.cost import cost

    network = decomp.load(Path(decomposed) / "model")
    original = decomp.load(Path(decomposed) / "original")
    before, after = cost(original, (1, 8, 8)).macs, cost(network, (1, 8, 8)).macs
    assert before / after >= 2 * 0.99
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_stage_that_is_done_does_no_work_and_says_so(finished):
    kept = {
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
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_evaluate_prints_a_table_and_the_same_as_json(finished):
    table = decomp_command("evaluate", "--run", finished, "--batch-size", "8", "--repeats", "2")
    assert table.code == 0
    for name in ("original", "decomposed", "fine-tuned"):
        assert any(name in line for line in table.out.splitlines())
    result = decomp_command("evaluate", "--run", finished, "--batch-size", "8", "--repeats", "2", "--json")
    rows = json.loads(result.out)["rows"]
    assert len(rows) == 3 and result.err == ""
    assert rows[0]["macs"] / rows[1]["macs"] >= 2 * 0.99


def test_every_command_prints_its_result_as_json_where_asked(finished):
    for command in ("decompose --speedup 2x", "finetune --epochs 1", "status"):
        result = decomp_command(*command.split(), "--run", finished, "--json")
        assert result.code == 0 and result.err == "" and json.loads(result.out)["run"] == finished, command
    asked = ("export", "--run", finished, "--format", "state-dict", "--json")
    (item,) = json.loads(decomp_command(*asked).out)["exported"]
    assert Path(item["path"]).stat().st_size == item["bytes"]


def test_status_names_what_is_done_and_the_next_command(place, finished):
    RunDirectory.create("runs/new")
    new = decomp_command("status", "--run", "runs/new")
    assert "next: decomp freeze" in new.out
    done = decomp_command("status", "--run", finished, "--json")
    assert [stage["state"] for stage in json.loads(done.out)["stages"]] == ["done"] * 4
    assert json.loads(done.out)["next"] is None


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
def test_the_demo_goes_the_whole_way_and_then_has_nothing_left_to_do(place):
    first = decomp_command("demo")
    assert first.code == 0, first.err
    assert "fine-tuned" in first.out and "runs/demo" in first.out.splitlines()[-1]
    second = decomp_command("demo")
    assert second.err.count("nothing to do") == 3 and "measured before" in second.out
    rows = json.loads(Path("runs/demo/report.json").read_text())["rows"]
    assert rows[1]["counted_speedup"] >= 4 and min(row["top1"] for row in rows) > 0.95


# -- mistakes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_things(place):
    """Files and folders that are wrong in one way each."""
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(3), "more.bias": torch.zeros(1)}, "foreign.safetensors")
    Path("broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    Path("empty").mkdir()
    Path("photos/train/a").mkdir(parents=True)
    Path("photos/val/a").mkdir(parents=True)
    for i in range(12):
        Path(f"photos/train/a/{i}.png").write_bytes(b"not an image")
        Image.new("L", (8, 8)).save(f"photos/val/a/{i}.png")
    np.savez("wrong.npz", nothing=np.zeros(3))
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("x")
    Path("afile").write_text("x")
    return place


FREEZE = "freeze --data digits --run runs/none"

# The command; its exit code; what the line must name.
MISTAKES = {
    "unknown command": ("frieze", 2, ["frieze", "freeze", "no such command"]),
    "unknown option": ("freeze --modle x", 2, ["--modle", "--model"]),
    "missing option": ("freeze --data digits --run r", 2, ["--model", "zoo:NAME"]),
    "option without value": ("freeze --model", 2, ["--model"]),
    "extra argument": ("status --run r extra", 2, ["extra"]),
    "unknown choice": ("decompose --run r --speedup 2 --selector greedy", 2, ["--selector", "greedy", "lasso"]),
    "unknown step": ("decompose --run r --speedup 2 --steps spatail", 2, ["--steps", "spatail", "spatial"]),
    "no steps": ("decompose --run r --speedup 2 --steps ,", 2, ["--steps", "channel"]),
    "speed-up of one": ("decompose --run r --speedup 1x", 2, ["--speedup", "1x", "above 1"]),
    "speed-up below one": ("decompose --run r --speedup 0.5", 2, ["--speedup", "0.5"]),
    "speed-up in words": ("decompose --run r --speedup fast", 2, ["--speedup", "fast", "4x"]),
    "speed-up nan": ("decompose --run r --speedup nan", 2, ["--speedup", "nan"]),
    "two equal speed-ups": ("decompose --run r --speedup 2x,2.0", 2, ["--speedup", "different"]),
    "no speed-up": ("decompose --run runs/a", 2, ["--speedup", "4x"]),
    "unknown cost": ("decompose --run r --speedup 2 --cost time", 2, ["--cost", "time", "latency"]),
    "a multiple of none": ("decompose --run r --speedup 2 --multiple 0", 2, ["--multiple", "'0'"]),
    "a layer limit below one": ("decompose --run r --speedup 2 --max-layer-speedup .5", 2, ["--max-layer-speedup"]),
    "an unknown layer to skip": (
        "decompose --run runs/s --from runs/a --speedup 2 --skip 66",
        2,
        ["--skip", "66", "6"],
    ),
    "a plan that is not there": ("decompose --run runs/a --plan none.json", 1, ["none.json"]),
    "a plan that is none": ("decompose --run runs/a --plan net.py", 1, ["net.py", "JSON"]),
    "a plan and a speed-up": ("decompose --run r --plan p.json --speedup 2", 2, ["--plan", "--speedup"]),
    "a plan and a cost": ("decompose --run r --plan p.json --cost params", 2, ["--plan", "--cost"]),
    "a plan for a family": ("decompose --run r --plan p.json --speedup 2,3", 2, ["--plan", "--speedup"]),
    "a family with one out of reach": ("decompose --run runs/a --speedup 2x,10000x", 1, ["10000x", "at most"]),
    "epochs in words": ("finetune --run r --epochs many", 2, ["--epochs", "many", "whole number"]),
    "no images": (f"{FREEZE} --model net.py:build --images 0", 2, ["--images", "'0'"]),
    "unknown device": (f"{FREEZE} --model net.py:build --device gpu", 2, ["--device", "gpu", "cuda"]),
    "unknown zoo model": (f"{FREEZE} --model zoo:vgg-digit", 2, ["vgg-digit", "vgg-digits"]),
    "unknown torchvision model": (f"{FREEZE} --model torchvision:vgg61", 2, ["vgg61", "vgg16"]),
    "unknown model form": (f"{FREEZE} --model qqq", 2, ["qqq", "torchvision:NAME"]),
    "no such model file": (f"{FREEZE} --model nett.py:build", 2, ["nett.py"]),
    "no such factory": (f"{FREEZE} --model net.py:biuld", 2, ["biuld", "build"]),
    "a factory that fails": (f"{FREEZE} --model net.py:broken", 1, ["net.py", "ValueError", "two lines"]),
    "a factory of something else": (f"{FREEZE} --model net.py:returns_text", 2, ["returns_text", "Module", "str"]),
    "unknown data": ("freeze --model net.py:build --data digit --run runs/none", 2, ["digit", "digits"]),
    "weights that do not fit": (
        f"{FREEZE} --model net.py:build --weights foreign.safetensors",
        1,
        ["foreign.safetensors", "other.weight"],
    ),
    "weights that are broken": (
        f"{FREEZE} --model net.py:build --weights broken.safetensors",
        1,
        ["broken.safetensors"],
    ),
    "weights that are missing": (f"{FREEZE} --model net.py:build --weights none.pt", 1, ["none.pt"]),
    "wrong input size": (f"{FREEZE} --model net.py:build --input-size 12x12", 2, ["net.py:build", "12x12"]),
    "wrong channels": (f"{FREEZE} --model net.py:build --input-size 3x8x8", 2, ["net.py:build", "3x8x8"]),
    "input size in words": (f"{FREEZE} --model net.py:build --input-size big", 2, ["--input-size", "big"]),
    "an empty folder": ("freeze --model net.py:build --data imagefolder:empty --run runs/none", None, ["empty"]),
    "no folder": ("freeze --model net.py:build --data imagefolder:nowhere --run runs/none", None, ["nowhere"]),
    "unreadable images": (
        "freeze --model net.py:build --data imagefolder:photos --input-size 1x8x8 --run runs/none",
        1,
        ["photos/train/a/", ".png", "--skip-bad"],
    ),
    "an archive of other things": (
        "freeze --model net.py:build --data npz:wrong.npz --run runs/none",
        None,
        ["wrong.npz"],
    ),
    "a forward that cannot be traced": (f"{FREEZE} --model net.py:untraceable", 1, ["net.py:untraceable"]),
    "a run of another model": (
        "freeze --model net.py:other --data digits --run runs/a --images 150 --points 5",
        None,
        ["runs/a", "net.py:build", "net.py:other"],
    ),
    "a run with other options": (
        "freeze --model net.py:build --data digits --run runs/a --images 151 --points 5",
        None,
        ["runs/a", "150", "151"],
    ),
    "a speed-up out of reach": ("decompose --run runs/c --from runs/a --speedup 10000x", 1, ["10000x"]),
    "no run": ("decompose --run nowhere --speedup 2", 1, ["nowhere", "decomp freeze"]),
    "no run to finetune": ("finetune --run nowhere", 1, ["nowhere", "decomp freeze"]),
    "no run to evaluate": ("evaluate --run nowhere", 1, ["nowhere", "decomp freeze"]),
    "no run for status": ("status --run nowhere", 1, ["nowhere", "decomp freeze"]),
    "a folder that is no run": ("evaluate --run thesis", 1, ["thesis", "run.json"]),
    "a folder of other things": (
        "freeze --model net.py:build --data digits --run thesis",
        1,
        ["thesis", "chapter1.tex", "--run"],
    ),
    "a file as run": ("freeze --model net.py:build --data digits --run afile", 1, ["afile", "a file"]),
    "unknown format": ("export --run runs/a --format onxn", 2, ["--format", "onxn", "onnx"]),
    "no run to export": ("export --run nowhere", 1, ["nowhere", "decomp freeze"]),
    "training into another format": ("train --model zoo:vgg-digits --out vgg.pt", 2, ["vgg.pt", ".safetensors"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line(mistake, frozen, bad_things):
    command, code, names = MISTAKES[mistake]
    result = decomp_command(*command.split())
    assert result.code == code if code is not None else result.code in (1, 2)
    assert result.out == ""
    assert "Traceback" not in result.err and "error: unexpected" not in result.err
    assert len(result.errors) == 1 and result.err.splitlines()[-1] == result.errors[0]
    for name in names:
        assert name in result.errors[0]
    assert len(result.errors[0]) < 600


def test_out_of_reach_says_what_can_be_reached(frozen):
    result = decomp_command(*"decompose --run runs/d --from runs/a --speedup 10000x".split())
    most = re.search(r"(\d+(?:\.\d+)?)x", result.errors[0].replace("10000x", ""))
    assert most is not None
    reachable = decomp_command(*f"decompose --run runs/d --from runs/a --speedup {most[1]} --plan-only --redo".split())
    assert reachable.code == 0, reachable.err


def test_unreadable_images_can_be_left_out(bad_things):
    from PIL import Image

    for folder in ("train", "val"):
        for kind in "ab":
            Path(f"mixed/{folder}/{kind}").mkdir(parents=True)
            for i in range(12):
                Image.new("L", (8, 8), color=i * 20).save(f"mixed/{folder}/{kind}/{i}.png")
    Path("mixed/train/a/bad.png").write_bytes(b"not an image")
    command = "freeze --model net.py:build --data imagefolder:mixed --input-size 1x8x8 --run runs/mixed --points 2"
    refused = decomp_command(*command.split())
    assert refused.code == 1 and "bad.png" in refused.errors[0]
    result = decomp_command(*command.split(), "--skip-bad")
    assert result.code == 0, result.err


def test_a_plan_edited_out_of_range_is_refused_by_layer(frozen):
    assert decomp_command(*"decompose --run runs/e --from runs/a --speedup 2x --plan-only".split()).code == 0
    plan = Path("runs/e/plan.json")
    content = json.loads(plan.read_text())
    layer = next(layer for layer in content["layers"] if layer.get("spatial_rank") or layer.get("keep"))
    layer["spatial_rank"] = 5000
    plan.write_text(json.dumps(content))
    result = decomp_command(*"decompose --run runs/e --speedup 2x".split())
    assert result.code == 1 and "5000" in result.errors[0] and "plan.json" in result.errors[0]
    assert f"{layer['layer']}:" in result.errors[0]


def test_a_second_process_is_refused_while_the_first_works(frozen):
    with RunDirectory("runs/a").lock():
        result = decomp_command("decompose", "--run", "runs/a", "--speedup", "2x")
        status = decomp_command("status", "--run", "runs/a")
    assert result.code == 1 and f"pid {os.getpid()}" in result.errors[0]
    assert status.code == 0 and f"pid {os.getpid()}" in status.out


# -- how errors come out ---------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Make `status` end in a given error."""

    def install(error):
        def stage(*_, **__):
            raise error

        monkeypatch.setattr("decomp.pipelines.status.status", stage)
        return decomp_command("status", "--run", "x")

    return install


def test_exit_codes_and_lines_of_errors(failing):
    assert failing(DecompError("conv1", "must be x")) == Result(1, "", "error: conv1: must be x.\n")
    assert failing(UsageError("--x", "must be y", got=3)) == Result(2, "", "error: --x: must be y, got 3.\n")


def test_an_unexpected_error_is_one_line_that_names_debug(failing):
    result = failing(RuntimeError("first\nsecond"))
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "unexpected RuntimeError: first second" in result.err and "--debug" in result.err


def test_a_missing_package_is_named(failing):
    result = failing(ModuleNotFoundError("No module named 'h5py'", name="h5py"))
    assert result.code == 1 and "h5py" in result.err and "pip install h5py" in result.err


@pytest.mark.parametrize("arguments", [["--debug", "status", "--run", "x"], ["status", "--run", "x", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(arguments):
    result = decomp_command(*arguments)
    assert result.code == 1 and "Traceback" in result.err and result.errors


def test_ctrl_c_says_how_to_go_on(failing):
    result = failing(KeyboardInterrupt())
    assert result.code == 130 and "decomp status --run x" in result.err and "Traceback" not in result.err


def test_ctrl_c_in_the_middle_of_work_leaves_a_run_that_goes_on(place, tmp_path):
    run = tmp_path / "run"
    (place / "slow.py").write_text("import time\ndef build():\n    print('there', flush=True)\n    time.sleep(60)\n")
    arguments = ["freeze", "--model", str(place / "slow.py:build"), "--data", "digits", "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background hand down that interrupts are ignored; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert "python cli.py freeze" in err.splitlines()[-1]
    with RunDirectory(run).lock():
        pass


def test_output_that_nobody_reads_is_no_error(place):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "freeze", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


def test_threads_are_set_only_where_asked(failing, monkeypatch):
    import torch

    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    decomp_command("evaluate", "--run", "nowhere")
    assert asked == [] and torch.get_num_threads() == before
    decomp_command("evaluate", "--run", "nowhere", "--threads", "3")
    assert asked == [3] and os.environ["OMP_NUM_THREADS"] == "3"


# -- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_helps(command):
    result = decomp_command(command, "--help")
    assert result.code == 0 and "Usage:" in result.out and "--debug" in result.out


def test_help_lists_every_command_and_the_version_is_that_of_the_package():
    assert set(cli.main.commands) == set(cli.COMMANDS)
    shown = decomp_command("--help").out
    assert all(re.search(rf"^  {command} ", shown, re.MULTILINE) for command in cli.COMMANDS)
    assert decomp_command().out == shown
    assert decomp_command("--version").out == f"decomp {decomp.__version__}\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("decomp de", {"decompose", "demo"}),
        ("decomp decompose --sel", {"--selector"}),
        ("decomp decompose --selector l", {"lasso", "l1"}),
        ("decomp bogus --x", set()),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words, offered):
    code = "import sys; sys.argv[:] = ['decomp']; from decomp.cli import main; main()"
    asked = {"_DECOMP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, cwd=ROOT
    )
    assert result.stderr == "" and {line.split(",")[1] for line in result.stdout.splitlines() if line} == offered


def test_the_choices_offered_are_those_of_the_stages():
    from decomp import layers, plan
    from decomp.pipelines import export, training

    assert options.STEPS == plan.STEPS
    assert set(options.SELECTORS) == set(layers.SELECTORS)
    assert options.FORMATS == tuple(export.FORMATS) and options.NETWORKS == export.NETWORKS
    assert set(training.SCHEDULES) == {"cosine", "constant"}


@pytest.mark.parametrize("text, value", [("4x", 4.0), ("4", 4.0), ("2.5x", 2.5), (" 3X ", 3.0), ("1.01×", 1.01)])
def test_speedups_are_read_as_people_write_them(text, value):
    assert options.speedup(text) == value


def test_several_speedups_are_read_in_their_order():
    assert options.speedups("2x,3, 2.5x") == (2.0, 3.0, 2.5) and options.speedups("4x") == (4.0,)


def test_the_options_of_decompose_say_what_the_stage_does_by_itself():
    """Each default of the command is the stage's own."""
    from inspect import signature

    from decomp.pipelines.decompose import decompose

    parameters = signature(decompose).parameters
    for name, declared in options.DECOMPOSE.items():
        name = declared.get("dest", name.strip("-").replace("-", "_"))
        default = declared.get("type", lambda value: value)(declared["default"]) if "default" in declared else None
        if default is not None:
            assert parameters[name].default == default, name


def test_a_family_is_one_command(frozen):
    result = decomp_command("decompose", "--run", "runs/f", "--from", frozen, "--speedup", "1.5x,2x", "--keep-first")
    assert result.code == 0, result.err
    assert "runs/f-1.5x" in result.out and "runs/f-2x" in result.out
    for name in ("1.5x", "2x"):
        plan = json.loads(Path(f"runs/f-{name}/plan.json").read_text())
        assert plan["layers"][0]["limits"] == {"skip": "--keep-first"}
        assert decomp_command("status", "--run", f"runs/f-{name}").out.count("done") >= 2


def test_steps_come_in_the_order_in_which_they_are_taken():
    assert options.steps("prune, spatial,prune") == ("spatial", "prune")


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "inf", "nan", "x", ""])
def test_counts_are_whole_and_positive(text):
    with pytest.raises(UsageError, match="--n"):
        options.number("--n", int, 1)(text)
