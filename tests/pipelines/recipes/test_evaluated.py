"""Decompose and evaluate in one command: the tables, the page, one run alone."""

import json
import shutil
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from decomp.pipelines.commands.main import main
from decomp.pipelines.recipes.evaluated import EvaluatedResult
from decomp.pipelines.stages.freeze import freeze
from tests.pipelines.digit_runs import Collected


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "run"
    freeze(path, model="zoo:vgg-digits", data="digits", n_images=200, reporter=Collected())
    return path


def call(run, *arguments):
    return CliRunner().invoke(main, ["decompose", "--run", str(run), *arguments])


def test_several_speedups_end_in_their_tables_and_one_page(frozen, tmp_path):
    run = tmp_path / "vgg"
    shutil.copytree(frozen, run)
    result = call(run, "--speedup", "2x,3x", "--evaluate", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    for name, ratio in (("2x", 2.0), ("3x", 3.0)):
        rows = {row["network"]: row for row in made["evaluations"][f"{run}-{name}"]["rows"]}
        assert rows["decomposed"]["counted_speedup"] == pytest.approx(ratio, rel=0.03)
        assert (tmp_path / f"vgg-{name}" / "report.json").is_file()
    page = (tmp_path / "vgg-comparison" / "compare.html").read_text()
    assert "vgg-2x" in page and "vgg-3x" in page


def test_one_speedup_is_evaluated_without_a_comparison(frozen, tmp_path):
    run = tmp_path / "vgg"
    shutil.copytree(frozen, run)
    result = call(run, "--speedup", "2x", "--evaluate")
    assert result.exit_code == 0, result.output
    assert "decomposed" in result.stdout and not (tmp_path / "vgg-comparison").exists()


@dataclass
class Told:
    name: str

    def findings(self):
        return [f"{self.name} found", "next: in a path"]

    def next_steps(self):
        return [f"after {self.name}"]


def test_next_steps_of_the_decomposition_are_left_out_and_the_others_come_last():
    told = EvaluatedResult(Told("one"), {"r": Told("two")}, Told("three"))
    lines = ["one found", "next: in a path", "", "r:", "two found", "next: in a path", "", "three found"]
    assert list(told.lines()) == [*lines, "next: in a path", "after two", "after three"]


def test_a_plan_alone_cannot_be_evaluated(frozen, tmp_path):
    run = tmp_path / "vgg"
    shutil.copytree(frozen, run)
    result = call(run, "--speedup", "2x", "--evaluate", "--plan-only")
    assert result.exit_code == 2 and "--evaluate: needs a finished network" in result.output
    assert not (run / "plan.json").exists()
