"""The sheet of a run: its numbers are those of the run's files, it stands alone, and it can be read."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import pytest

import decomp
from decomp.errors import FileError, UsageError
from decomp.pipelines.reporting.collect import networks
from decomp.pipelines.reporting.html_page import TITLES
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.report import compare, report
from tests.pipelines.small_runs import quiet

ALL = ["accuracy", "latency", "layers", "errors", "curves", "channels", "finetuning"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two whole runs on the same frozen points."""
    folder = tmp_path_factory.mktemp("report")
    decomp.freeze(folder / "one", model="zoo:vgg-digits", data="digits", n_images=150, n_points=4)
    decomp.decompose(folder / "one", speedup=3)
    decomp.decompose(folder / "two", speedup=2, steps=("prune",), source_run=folder / "one")
    decomp.finetune(folder / "one", epochs=1)
    for name in ("one", "two"):
        decomp.evaluate(folder / name, batch_size=4, repeats=2)
    return [RunDirectory(folder / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def made(runs):
    return report(runs[0], reporter=quiet())


def numbers(result, name):
    with open(Path(result.folder, f"{name}.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_the_sheet_is_one_file_with_its_pictures_inside(made):
    text = Path(made.html).read_text()
    assert made.figures == ALL and made.missing == []
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', text)
    assert [alt for alt, _ in pictures] == [TITLES[name] for name in ALL]
    for name, (_, data) in zip(ALL, pictures):
        assert base64.b64decode(data) == Path(made.folder, f"{name}.png").read_bytes()
        assert f'href="report/{name}.csv"' in text
    assert not re.search(r"<script|<link|src=\"(?!data:)|https?:", text)


def test_the_numbers_are_those_of_the_runs_files(runs, made):
    run = runs[0]
    rows = json.loads(run.report_json.read_text())["rows"]
    assert [float(row["latency_ms"]) for row in numbers(made, "latency")] == [row["latency_ms"] for row in rows]
    assert [float(row["top1"]) for row in numbers(made, "accuracy")] == [row["top1"] for row in rows]
    assert [sum(int(row[key]) for row in numbers(made, "layers")) for key in ("macs_before", "macs_after")] == [
        row["macs"] for row in rows[:2]
    ]
    reports = run.config("decompose")["layers"]
    wanted = {(r["layer"], step): e["held_out"] for r in reports for step, e in r["errors"].items()}
    assert {(row["layer"], row["step"]): float(row["held_out"]) for row in numbers(made, "errors")} == wanted
    plan = {item["layer"]: item for item in json.loads(run.plan_json.read_text())["layers"]}
    chosen = {(row["layer"], row["step"]): int(row["size"]) for row in numbers(made, "curves") if row["chosen"] == "1"}
    sizes = {"keep": "prune", "spatial_rank": "spatial", "channel_rank": "channel"}
    assert chosen == {(n, step): item[key] for n, item in plan.items() for key, step in sizes.items() if item[key]}
    kept = {}
    for row in numbers(made, "channels"):
        kept[row["layer"]] = kept.get(row["layer"], 0) + int(row["kept"])
    assert kept == {name: item["keep"] for name, item in plan.items() if item["keep"]}
    assert len(numbers(made, "finetuning")) == 2


def test_curves_reach_every_size_and_never_rise(made):
    curves = {}
    for row in numbers(made, "curves"):
        curves.setdefault((row["layer"], row["step"]), []).append(row)
    assert len(curves) > 5
    for rows in curves.values():
        assert [int(row["size"]) for row in rows] == list(range(1, int(rows[0]["full_size"]) + 1))
        errors = [float(row["error"]) for row in rows]
        assert errors == sorted(errors, reverse=True)


def test_what_is_not_there_is_said_with_the_command_that_makes_it(tmp_path):
    run = RunDirectory.create(tmp_path / "new")
    run.update_config("freeze", {"asked": {"model": "zoo:x", "data": "digits"}, "facts": {}})
    result = report(run, reporter=quiet())
    assert result.figures == []
    commands = {command.split(" --run")[0] for _, command in result.missing}
    assert commands == {"decomp evaluate", "decomp decompose", "decomp finetune"}
    text = Path(result.html).read_text()
    assert "zoo:x, not decomposed yet" in text and "decomp finetune --run" in text


def test_a_table_that_is_older_than_its_networks_is_said_to_be(runs, made, tmp_path):
    copy = RunDirectory(shutil.copytree(runs[0].path, tmp_path / "copy"))
    structure = copy.model_dir / "structure.json"
    structure.write_text(structure.read_text() + "\n")
    assert any("changed since these measurements: decomposed;" in note for note in networks(copy).notes)
    assert not any("changed since" in note for note in networks(runs[0]).notes)


def test_a_second_report_replaces_the_first_and_may_lie_elsewhere(runs, made, tmp_path):
    before = sorted(path.name for path in Path(made.folder).iterdir())
    again = report(runs[0], reporter=quiet())
    assert sorted(path.name for path in Path(again.folder).iterdir()) == before
    other = report(runs[0], out=tmp_path / "elsewhere", reporter=quiet())
    assert Path(other.html) == tmp_path / "elsewhere" / "report.html" and Path(other.folder, "layers.png").is_file()


def test_runs_are_compared_on_one_sheet(runs, tmp_path):
    result = compare(runs, out=tmp_path / "both", reporter=quiet())
    text = Path(result.html).read_text()
    assert result.figures == ["accuracy", "latency"] and 'href="figures/latency.csv"' in text
    rows = numbers(result, "accuracy")
    assert [row["network"] for row in rows] == ["original", "decomposed", "fine-tuned", "original", "decomposed"]
    assert "decompose speedup 3" in text and "decompose speedup 2" in text and "steps prune" in text
    assert "allocation" not in text.split("<h2>")[0]


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    with pytest.raises(UsageError, match="two or more different runs"):
        compare([runs[0], runs[0]], out=tmp_path)
    new = [RunDirectory.create(tmp_path / name) for name in "ab"]
    with pytest.raises(FileError, match="none of these runs was evaluated; run `decomp evaluate"):
        compare(new, out=tmp_path)
    partly = compare([runs[0], new[0]], out=tmp_path / "partly", reporter=quiet())
    assert len(partly.missing) == 1 and str(new[0]) in partly.missing[0][0]
