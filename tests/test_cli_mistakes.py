"""Mistakes on the command line: one line with the thing, the rule, the value given and the remedy."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT, decomp_command

import decomp
from decomp.errors import UsageError
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture(scope="module")
def bad_things(place):
    """Files and folders with one defect each."""
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
    "a plan that is not there": ("decompose --run runs/a --plan none.json", 2, ["none.json"]),
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
    "weights that are missing": (f"{FREEZE} --model net.py:build --weights none.pt", 2, ["none.pt"]),
    "wrong input size": (f"{FREEZE} --model net.py:build --input-size 12x12", 2, ["net.py:build", "12x12"]),
    "wrong channels": (f"{FREEZE} --model net.py:build --input-size 3x8x8", 2, ["net.py:build", "3x8x8"]),
    "input size in words": (f"{FREEZE} --model net.py:build --input-size big", 2, ["--input-size", "big"]),
    "an empty folder": ("freeze --model net.py:build --data imagefolder:empty --run runs/none", 1, ["empty"]),
    "no folder": ("freeze --model net.py:build --data imagefolder:nowhere --run runs/none", 2, ["nowhere"]),
    "unreadable images": (
        "freeze --model net.py:build --data imagefolder:photos --input-size 1x8x8 --run runs/none",
        1,
        ["photos/train/a/", ".png", "--skip-bad"],
    ),
    "an archive of other things": (
        "freeze --model net.py:build --data npz:wrong.npz --run runs/none",
        1,
        ["wrong.npz"],
    ),
    "a forward that cannot be traced": (f"{FREEZE} --model net.py:untraceable", 1, ["net.py:untraceable"]),
    "a run of another model": (
        "freeze --model net.py:other --data digits --run runs/a --images 150 --points 5",
        2,
        ["runs/a", "net.py:build", "net.py:other"],
    ),
    "a run with other options": (
        "freeze --model net.py:build --data digits --run runs/a --images 151 --points 5",
        2,
        ["runs/a", "150", "151"],
    ),
    "a speed-up out of reach": ("decompose --run runs/c --from runs/a --speedup 10000x", 1, ["10000x"]),
    "no run": ("decompose --run nowhere --speedup 2", 2, ["nowhere", "decomp freeze"]),
    "no run to finetune": ("finetune --run nowhere", 2, ["nowhere", "decomp freeze"]),
    "no run to evaluate": ("evaluate --run nowhere", 2, ["nowhere", "decomp freeze"]),
    "no run for status": ("status --run nowhere", 2, ["nowhere", "decomp freeze"]),
    "a folder that is no run": ("evaluate --run thesis", 1, ["thesis", "run.json"]),
    "a folder of other things": (
        "freeze --model net.py:build --data digits --run thesis",
        1,
        ["thesis", "chapter1.tex", "--run"],
    ),
    "a file as run": ("freeze --model net.py:build --data digits --run afile", 1, ["afile", "a file"]),
    "unknown format": ("export --run runs/a --format onxn", 2, ["--format", "onxn", "onnx"]),
    "no run to export": ("export --run nowhere", 2, ["nowhere", "decomp freeze"]),
    "training into another format": ("train --model zoo:vgg-digits --out vgg.pt", 2, ["vgg.pt", ".safetensors"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line(mistake, frozen, bad_things):
    command, code, names = MISTAKES[mistake]
    result = decomp_command(*command.split())
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err and "error: unexpected" not in result.err
    assert len(result.errors) == 1 and result.err.splitlines()[-1] == result.errors[0]
    for name in names:
        assert name in result.errors[0]
    assert len(result.errors[0]) < 600


@pytest.mark.parametrize(
    ("stage", "option", "name", "value"),
    [
        ("finetune", "--schedule", "schedule", "cosin"),
        ("finetune", "--labels", "labels", "non"),
        ("evaluate", "--layout", "layout", "contigous"),
        ("export", "--format", "formats", "onxn"),
    ],
)
def test_python_and_the_command_line_refuse_a_word_alike_each_by_its_own_name(frozen, stage, option, name, value):
    with pytest.raises(UsageError) as caught:
        getattr(decomp, stage)(frozen, **{name: value})
    assert "did you mean" in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")
    said = str(caught.value).replace(name, option, 1)
    assert decomp_command(stage, "--run", frozen, option, value).errors == [f"error: {said}"]


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
    assert re.search(r"begin again: python \S*cli\.py freeze ", err.splitlines()[-1])
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
