"""Demo: its stages in order, and the lines of its result."""

from pathlib import Path

import pytest
import torch

from decomp.pipelines.console.options import TrainOptions
from decomp.pipelines.recipes import demo as recipe
from decomp.pipelines.recipes.demo import demo
from decomp.pipelines.stages import train as train_stage
from tests.pipelines.digit_runs import Collected


class Result:
    def __init__(self, name):
        self.name = name

    def findings(self):
        return [f"{self.name} done"]

    def lines(self):
        return [*self.findings(), "next: another command"]

    @property
    def html(self):
        return f"{self.name}.html"


def test_the_stages_run_in_order_on_one_run_and_their_lines_are_reported(tmp_path, monkeypatch):
    calls = []

    def stage(name):
        def call(run, *, reporter, **options):
            calls.append((name, run.path, options))
            return Result(name)

        return call

    for name in ("freeze", "decompose", "finetune", "evaluate", "report"):
        monkeypatch.setattr(recipe, name, stage(name))
    monkeypatch.setattr(recipe, "lacking", lambda name: ("onnxruntime",))
    reporter = Collected()
    lines = list(demo(tmp_path / "run", reporter=reporter).lines())
    assert calls == [
        ("freeze", tmp_path / "run", {"model": "zoo:vgg-digits-large", "data": "digits"}),
        ("decompose", tmp_path / "run", {"speedup": 4.0}),
        ("finetune", tmp_path / "run", {"epochs": 3}),
        ("evaluate", tmp_path / "run", {"runtime": ["eager"]}),
        ("report", tmp_path / "run", {}),
    ]
    assert [line for line in reporter.messages if line.startswith("  ")] == [
        "  freeze done", "  decompose done", "  finetune done",
    ]  # fmt: skip
    done, network, files, following = lines
    assert done == "evaluate done" and files.startswith(f"all of its files: {tmp_path / 'run'}; `decomp status --run ")
    assert f"decomp.load({str(tmp_path / 'run' / 'finetune' / 'best')!r})" in network
    assert following == f"next: open {Path('report.html').absolute()} in a browser"


def test_time_is_measured_in_onnx_runtime_too_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(recipe, "lacking", lambda name: ())
    assert recipe.runtimes_shown() == ["eager", "onnxruntime"]


@pytest.mark.parametrize("name, size", [("vgg-digits", 8), ("vgg-digits-large", 32), ("convnet-fashion", 8)])
def test_train_gives_a_network_images_of_their_own_size_unless_it_is_made_for_them_in_another(name, size):
    opened = train_stage._open(TrainOptions(model=f"zoo:{name}", data="digits", epochs=1))
    assert opened.source.input_shape == (1, size, size)
    assert opened.module(opened.source.train.images(torch.arange(2))).shape == (2, 10)
