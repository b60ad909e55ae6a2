"""Changed weights, images or options of a run, and NaN or infinite numbers: refused by the stage that meets them."""

import re
import shutil

import numpy as np
import pytest

BUILD = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    module = nn.Sequential(*layers, nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        {change}
    return module
"""


class Case:
    """A network and images of its own in the folder of the stages, and a run made from them."""

    def __init__(self, stages, name):
        self.stages, self.name, self.run = stages, name, stages.folder / name
        shutil.rmtree(self.run, ignore_errors=True)

    def network(self, change="pass"):
        (self.stages.folder / f"{self.name}.py").write_text(BUILD.format(change=change))

    def images(self, change=lambda x: None, seed=0):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(60, 1, 8, 8)).astype(np.float32)
        change(x)
        np.savez(self.stages.folder / f"{self.name}.npz", x_train=x, y_train=generator.integers(0, 4, 60))

    def freeze(self, *options):
        where = ["--model", f"{self.name}.py:build", "--data", f"npz:{self.name}.npz", "--run", self.name]
        return self.stages.start(["freeze", *where, "--images", "40", "--points", "4", *options], self.run)

    def run_command(self, command, *options):
        return self.stages.start([command, "--run", self.name, *options], self.run)


@pytest.fixture
def case(stages, request):
    case = Case(stages, "".join(letter if letter.isalnum() else "_" for letter in request.node.name))
    case.network()
    case.images()
    return case


def refused(ended, *words):
    *_, line = ended.text.strip().splitlines()
    assert ended.code in (1, 2) and line.startswith("error: ") and "Traceback" not in ended.text, ended.text
    assert all(word in line for word in words), line
    return line


@pytest.mark.fault("changed circumstances", "another network or other images under the same name, another seed")
def test_what_a_run_was_frozen_from_may_not_change(case, record_property):
    assert case.freeze().code == 0
    refused(case.freeze("--seed", "1"), "was frozen with --seed 0", "got --seed 1")
    case.network("module[0].bias[0] += 1e-3")
    refused(case.freeze(), "was frozen with other weights, of digest", "give another --run")
    case.network()
    assert "nothing to do" in case.freeze().text
    case.images(seed=1)
    refused(case.freeze(), "was frozen with other training images, of digest")
    case.images(lambda x: x.__setitem__((59, 0, 7, 7), 0.5))
    refused(case.freeze(), "was frozen with other training images, of digest")
    record_property("times", 4)


@pytest.mark.fault("bad numbers", "NaN or Inf in weights, images or activations")
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_and_infinite_numbers_are_named_where_they_appear(case, value, record_property):
    case.network(f"module[2].weight[3, 1] = float('{value}')")
    refused(case.freeze(), f"{case.name}.py:build", "2.weight", "9 of 576")
    case.network()
    case.images(lambda x: x.__setitem__((slice(20, None), 0, 0, 0), float(value)))
    refused(case.freeze(), "x_train holds NaN or Inf, got image 20")
    case.images()
    case.network("module[0].weight.mul_(1e30); module[2].weight.mul_(1e30)")
    line = refused(case.freeze(), f"{case.name}.py:build, 2: the responses must be finite")
    assert re.search(r"got [1-9]\d* of 4096 values NaN or infinite on the first 8 images", line), line

    assert not (case.run / "frozen.h5").exists()
    case.network()
    assert case.freeze().code == 0  # nothing is left of the attempts
    record_property("times", 3)


@pytest.mark.fault("singular layer", "inputs that do not vary, channels that are dead or equal, weights of zero")
@pytest.mark.parametrize(
    "change",
    [
        "module[0].weight.zero_(); module[0].bias.fill_(1)",
        "module[0].weight.zero_(); module[0].bias.fill_(-1)",
        "module[0].weight[1:] = module[0].weight[:1]; module[0].bias.zero_()",
        "module[2].weight.zero_()",
    ],
)
def test_a_layer_with_a_singular_problem_is_solved_and_reported(case, change):
    case.network(change)
    assert case.freeze().code == 0
    ended = case.run_command("decompose", "--speedup", "2x")
    assert ended.code == 0, ended.text
    assert "error" in ended.text and "nan" not in ended.text.lower()


@pytest.mark.fault("singular layer", "calibration images that are all the same")
def test_equal_images_are_decomposed_into_finite_numbers(case):
    case.images(lambda x: x.__setitem__(slice(None), 0.25))
    assert case.freeze().code == 0
    ended = case.run_command("decompose", "--speedup", "2x")
    assert ended.code == 0 and "nan" not in ended.text.lower(), ended.text
