"""Stages run from outside, as a person does, in processes that a test may end anywhere; and what is compared after."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from decomp.data.formats.frozen_file import FrozenFile

NETWORK = """
from torch import nn

def build():
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4)]
    return nn.Sequential(*layers)
"""
STAGES = ("freeze", "plan", "decompose", "finetune")


class Stages:
    """The stages of one tiny experiment on made-up images; `start` runs one of them.

    Parameters
    ----------
    folder : Path
        For the network's code, the images and the runs.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "nets.py").write_text(NETWORK)
        generator = np.random.default_rng(0)
        x = generator.normal(size=(60, 1, 8, 8)).astype(np.float32)
        np.savez(self.folder / "images.npz", x_train=x, y_train=generator.integers(0, 4, 60))
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("stage_server.py"))], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=self.folder,
        )  # fmt: skip
        assert self._server.stdout.readline() == "ready\n"

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def command(self, stage, run):
        where = ["--run", str(run)]
        images = ["--model", "nets.py:build", "--data", "npz:images.npz", "--images", "40", "--points", "4"]
        decompose = ["decompose", *where, "--speedup", "3x", "--allocation", "uniform"]
        return {
            "freeze": ["freeze", *images, *where],
            "plan": [*decompose, "--plan-only"],
            "decompose": decompose,
            "finetune": ["finetune", *where, "--epochs", "2", "--batch-size", "20"],
        }[stage]

    def start(self, stage, run, **ends):
        """Run one stage to its end or to the end that is asked for; see stage_server.py."""
        args = stage if isinstance(stage, list) else self.command(stage, run)
        order = {"args": args, "output": str(self.folder / "output.txt"), **ends}
        began = time.monotonic()
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        text = (self.folder / "output.txt").read_text()
        return Ended(answer["code"], answer["steps"], text, time.monotonic() - began)

    def resume(self, stage, run):
        """Run or resume one stage, which must end well and leave nothing lying about."""
        ended = self.start(stage, run)
        assert ended.code == 0, ended.text
        assert litter(run) == []
        return ended

    def finish(self, stage, run):
        """Resume a stage and run all that come after it; {stage: how it ended}."""
        return {later: self.resume(later, run) for later in STAGES[STAGES.index(stage) :]}

    def whole(self, run):
        """All stages, none disturbed; the steps and seconds of each."""
        return self.finish(STAGES[0], run)


class Ended:
    """How a stage ended: ``code`` (negative: a signal), disk ``steps`` taken, what was printed, ``seconds``."""

    def __init__(self, code, steps, text, seconds):
        self.code, self.steps, self.text, self.seconds = code, steps, text, seconds


def results(run):
    """What a run came to: the bytes of every network and layer, and what the frozen file holds."""
    return {**networks(run), **frozen_values(run)}


def networks(run):
    """The bytes of every network and layer."""
    run = Path(run)
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.safetensors"))}
    for name in ("plan.json", "model/structure.json", "finetune/best/structure.json"):
        found[name] = (run / name).read_bytes()
    return found


def frozen_values(run):
    """What the frozen file holds; an error if any of it is damaged."""
    with FrozenFile(Path(run) / "frozen.h5") as frozen:
        found = {"images": frozen.images().numpy().tobytes()}
        found.update({f"responses {name}": frozen.responses(name).numpy().tobytes() for name in frozen.layers})
    return found


def litter(run):
    """Names that no finished stage leaves in a run."""
    return [str(p) for p in Path(run).rglob("*") if ".part" in p.name or ".old-" in p.name]
