"""The sheet of a run: its numbers are those of the run's files, it stands alone, and it can be read."""

import base64
import csv
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import decomp
from decomp.errors import FileError, UsageError
from decomp.pipelines.reporting import collect as evidence
from decomp.pipelines.reporting import figures
from decomp.pipelines.reporting import html_page as page
from decomp.pipelines.reporting.collect import NETWORK_COLUMNS, Table
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
    assert [alt for alt, _ in pictures] == [page.TITLES[name] for name in ALL]
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
    import shutil

    copy = RunDirectory(shutil.copytree(runs[0].path, tmp_path / "copy"))
    structure = copy.model_dir / "structure.json"
    structure.write_text(structure.read_text() + "\n")
    assert any("not measured as it is now: decomposed;" in note for note in evidence.networks(copy).notes)
    assert not any("not measured" in note for note in evidence.networks(runs[0]).notes)


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


# -- figures -------------------------------------------------------------------------------------------------

NAMES = [f"features.stage{i // 15}.block{i // 3}.residual_branch.conv{i % 3}" for i in range(60)]


def test_labels_are_short_and_one_for_each_layer():
    for names in (NAMES, [f"a_very_long_name_{'x' * 40}_{i}_{'y' * 40}" for i in range(30)], ["0", "3", "16"]):
        shown = figures.labels(names)
        assert len(set(shown)) == len(names) and max(map(len, shown)) <= 30
    assert figures.labels(["0", "features.3"]) == ["0", "features.3"]


@pytest.mark.parametrize("name", ["layers", "errors", "channels"])
def test_sixty_layers_have_labels_that_do_not_overlap(name):
    tables = {
        "layers": (("layer", "macs_before", "macs_after"), [(n, 10**6 * (i + 1), 10**6) for i, n in enumerate(NAMES)]),
        "errors": (("layer", "step", "fitted", "held_out"), [(n, "prune", 0.01, 0.01) for n in NAMES]),
        "channels": (("layer", "channel", "kept"), [(n, c, c % 2) for n in NAMES for c in range(8)]),
    }
    header, rows = tables[name]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.DRAWINGS[name](Table(name, header, rows))
        FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == 60
    boxes.sort(key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in zip(boxes, boxes[1:]))
    assert min(box.x0 for box in boxes) > 0


def network_rows(n, top1):
    rows = []
    for i in range(n):
        speedup = 1.5 + 0.5 * i
        for network, factor in (("original", 1.0), ("decomposed", speedup)):
            share = None if top1 is None else top1 - 0.004 * i * (network != "original")
            rows.append(
                (f"runs/family-{i}", network, int(1e8 / factor), 10, share, share, None, None, 10 / factor,
                 9 / factor, 11 / factor, factor, factor)
            )  # fmt: skip
    return Table("accuracy", NETWORK_COLUMNS, rows)


def test_the_names_of_twelve_runs_cover_neither_each_other_nor_a_point():
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.accuracy(network_rows(12, 0.93))
        figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 13  # twelve runs and the original
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_no_tick_stands_for_more_than_all_images_and_without_labels_nothing_is_drawn():
    figure = figures.accuracy(network_rows(2, 1.0))
    assert max(figure.axes[0].get_yticks()) <= 1 + 1e-9
    assert figures.accuracy(network_rows(2, None)) is None


def test_names_are_escaped_on_the_page():
    text = page.sheet("<b>run</b>", ["a & b"], None, [], [("<i>", "cmd <x>")], None, "report")
    assert "<b>" not in text and "<i>" not in text and "a &amp; b" in text and "cmd &lt;x&gt;" in text
