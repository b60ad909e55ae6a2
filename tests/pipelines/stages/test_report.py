"""The page of a run: its numbers are those of the run's files, it stands alone, and it can be read."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import decomp
from decomp.data.formats.json_files import SEAL, write_json
from decomp.errors import FileError, UsageError
from decomp.pipelines.measure.intervals import share_words
from decomp.pipelines.reporting.collect import networks
from decomp.pipelines.reporting.html_page import TITLES
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.report import compare, report
from decomp.pipelines.stages.train import train
from tests.pipelines.digit_runs import Collected
from tests.pipelines.small_runs import quiet

ALL = ["accuracy", "latency", "classes", "layers", "errors", "curves", "channels", "finetuning"]
#: Elements that need no end.
VOID = {"meta", "br", "img", "hr", "input", "link", "wbr"}


class Page(HTMLParser):
    """Nesting, ids, references and sort keys of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.unbalanced, self.ids, self.outside, self.sort_keys, self.titles = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.open += [] if tag in VOID else [tag]
        self.ids += [given["id"]] if "id" in given else []
        self.sort_keys += [given["data-sort"]] if "data-sort" in given else []
        self.outside += [
            value for key, value in attributes if key in ("src", "href") and not re.match("#|data:", value)
        ]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        self.unbalanced += [] if self.open and self.open.pop() == tag else [tag]

    def handle_data(self, data):
        self.titles += [data] if self.open[-1:] == ["title"] else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two whole runs on the same frozen points."""
    folder = tmp_path_factory.mktemp("report")
    decomp.freeze(folder / "one", model="zoo:vgg-digits", data="digits", n_images=150, n_points=4)
    decomp.decompose(folder / "one", speedup=3)
    decomp.decompose(folder / "two", speedup=2, steps=("prune",), source_run=folder / "one")
    decomp.finetune(folder / "one", epochs=6, labels="none")
    for name in ("one", "two"):
        decomp.evaluate(folder / name, batch_size=4, repeats=2)
    return [RunDirectory(folder / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def made(runs):
    return report(runs[0], reporter=quiet())


def numbers(result, name):
    with open(Path(result.folder, f"{name}.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_one_whole_file_with_its_pictures_inside(made):
    text = Path(made.html).read_text(encoding="utf-8")
    assert made.figures == ALL and made.missing == []
    page = Page(text)
    assert page.unbalanced == [] and page.open == [] and len(set(page.ids)) == len(page.ids) > 100
    # Nothing is loaded; only the numbers lie beside the page.
    assert sorted(page.outside) == sorted(f"report/{name}.csv" for name in ALL)
    assert not re.search(r"https?:|@import|<link", text)
    references = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#([^)]*)\)", text)
    assert set(references) <= set(page.ids)
    assert all(Path(made.folder, f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ALL)
    assert [name for name in ALL if f'aria-label="{TITLES[name]}: ' not in text] == []


def test_values_on_the_page_are_those_of_the_table_of_evaluate(runs, made):
    page = Page(Path(made.html).read_text(encoding="utf-8"))
    keys = set(map(float, page.sort_keys))  # every one is a number
    rows = json.loads(runs[0].report_json.read_text())["rows"]
    columns = ("top1", "top5", "agreement", "latency_ms", "macs", "params", "counted_speedup", "measured_speedup")
    assert {row[key] for row in rows for key in columns} <= keys
    for row in rows:
        said = f"{row['network']}: top-1 {share_words(row['top1'], 450)}; {row['latency_ms']:,.3g} ms"
        assert any(title.startswith(said) for title in page.titles)
    layers = {f"{row['layer']}: {int(row['macs_before']) / 1e6:,.3g} M → " for row in numbers(made, "layers")}
    assert all(any(title.startswith(words) for title in page.titles) for words in layers)


def test_the_verdict_is_the_first_line_and_its_loss_that_of_the_tuned_network(runs, made):
    report = json.loads(runs[0].report_json.read_text())
    first, *_, last = report["rows"]
    headline = re.search(r"<h1>(.*?)</h1>", Path(made.html).read_text(encoding="utf-8"))[1]
    assert headline.startswith(f"{last['counted_speedup']:.1f}x fewer multiply-accumulates, ")
    assert f"({100 * first['top1']:.1f} → {100 * last['top1']:.1f} %, ±" in headline and "at batch 4 " in headline
    correct = [
        sum(int(row[f"correct_{name}"]) for row in numbers(made, "classes")) for name in ("original", "fine-tuned")
    ]
    assert correct == [round(row["top1"] * 450) for row in (first, last)]


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
    assert len(numbers(made, "finetuning")) == 7


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


def test_runs_on_the_same_images_are_compared_on_one_page(runs, tmp_path):
    result = compare(runs, out=tmp_path / "both", reporter=quiet())
    text = Path(result.html).read_text()
    assert result.figures == ["accuracy", "latency"] and 'href="figures/latency.csv"' in text
    rows = numbers(result, "accuracy")
    assert [row["network"] for row in rows] == ["original", "decomposed", "fine-tuned", "original", "decomposed"]
    assert "cannot be compared" not in text and Page(text).unbalanced == []
    differences = text.split("<h2>Options in which the runs differ")[1]
    assert "decompose: speedup" in differences and "decompose: steps" in differences and "prune</td>" in differences
    assert "allocation" not in differences


def test_the_page_lies_beside_the_first_run_and_the_table_is_told(runs, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    copies = [RunDirectory(shutil.copytree(run.path, tmp_path / "runs" / run.path.name)) for run in runs]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = compare(copies, reporter=quiet())
    assert result.html == str(tmp_path / "runs" / "comparison" / "compare.html") and Path(result.html).is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    first, *rows = list(result.lines())
    assert first.split() == ["run", "network", "top-1", "measured", "counted"]
    assert [row.split()[:2] for row in rows[:5]] == [
        [str(copies[0]), "original"], [str(copies[0]), "decomposed"], [str(copies[0]), "fine-tuned"],
        [str(copies[1]), "original"], [str(copies[1]), "decomposed"],
    ]  # fmt: skip
    assert rows[5].startswith("Most accurate") and result.html in rows[6]


def test_a_run_without_its_original_is_no_unfinished_one(runs, tmp_path):
    copy = RunDirectory(shutil.copytree(runs[0].path, tmp_path / "copy"))
    page = copy.report_html.read_bytes() if copy.report_html.exists() else None
    (copy.original_dir / "structure.json").unlink()
    with pytest.raises(FileError, match="original/structure.json: is missing; put a copy of it back, or run freeze"):
        report(copy, reporter=quiet())
    assert page == (copy.report_html.read_bytes() if copy.report_html.exists() else None)


def test_a_report_elsewhere_replaces_reports_alone(tmp_path):
    run, out = RunDirectory.create(tmp_path / "run"), tmp_path / "out"
    first = Path(report(run, out=out, reporter=quiet()).html).read_text()
    assert Path(report(run, out=out, reporter=quiet()).html).read_text() == first
    (out / "report.html").unlink()
    (out / "report" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="report: is there and was not written by report; give another folder"):
        report(run, out=out, reporter=quiet())
    assert (out / "report" / "mine.txt").read_text() == "mine"
    (out / "report.html").write_text("<title>mine</title>")
    with pytest.raises(UsageError, match="report.html: is there and was not written"):
        report(run, out=out, reporter=quiet())


def test_an_earlier_comparison_of_other_runs_is_named_and_files_of_others_are_left(runs, tmp_path):
    other = RunDirectory(shutil.copytree(runs[1].path, tmp_path / "other"))
    told, out = Collected(), tmp_path / "out"
    compare(runs, out=out, reporter=told)
    compare(runs, out=out, reporter=told)
    assert not any("takes the place" in line for line in told.messages)
    compare([runs[0], other], out=out, reporter=told)
    names = ", ".join(run.path.name for run in runs)
    assert [line for line in told.messages if "takes the place" in line] == [
        f"{out / 'compare.html'}: takes the place of an earlier comparison of 2 runs: {names}"
    ]
    (tmp_path / "mine" / "figures").mkdir(parents=True)
    (tmp_path / "mine" / "figures" / "a.png").write_text("a")
    with pytest.raises(UsageError, match="figures: is there and was not written by compare; give another folder"):
        compare(runs, out=tmp_path / "mine", reporter=told)
    assert (tmp_path / "mine" / "figures" / "a.png").read_text() == "a"


def test_runs_on_different_images_are_drawn_apart(runs, tmp_path):
    other = RunDirectory(shutil.copytree(runs[1].path, tmp_path / "other"))
    report = json.loads(other.report_json.read_text())
    del report[SEAL]
    report["conditions"]["n_images"] = 449
    write_json(other.report_json, report, seal=True)
    result = compare([runs[0], other], out=tmp_path / "both", reporter=quiet())
    assert result.figures == ["accuracy", "latency", "accuracy-2", "latency-2"]
    assert {row["run"] for row in numbers(result, "accuracy-2")} == {str(other)}
    text = Path(result.html).read_text(encoding="utf-8")
    assert "cannot be compared" in text and "449 test images of digits" in text
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids) and page.unbalanced == []


def evaluated_on(run, folder, **conditions):
    """A copy of a run whose report names other test images."""
    shutil.copytree(run.path, folder)
    copy = RunDirectory(folder)
    content = json.loads(copy.report_json.read_text())
    del content[SEAL]
    content["conditions"] |= conditions
    write_json(copy.report_json, content, seal=True)
    return copy


@pytest.mark.parametrize(
    "conditions, groups",
    [
        ({}, 1), ({"test_digest": None}, 1), ({"test_digest": "0" * 64}, 2), ({"data": "npz:b", "n_images": 6}, 2),
    ],
)  # fmt: skip
def test_runs_of_different_test_images_do_not_share_an_axis(runs, tmp_path, conditions, groups):
    other, said = evaluated_on(runs[1], tmp_path / "other", **conditions), Collected()
    result = compare([*runs, other], out=tmp_path / "page", reporter=said)
    assert len(result.figures) == 2 * groups
    warned = [line for line in said.messages if line.startswith("not the same test images")]
    assert len(warned) == (groups > 1)
    if "test_digest" in conditions and groups == 2:
        assert "450 test images of digits (digest 00000000)" in warned[0]


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    with pytest.raises(UsageError, match="two or more different runs"):
        compare([runs[0], runs[0]], out=tmp_path)
    new = [RunDirectory.create(tmp_path / name) for name in "ab"]
    with pytest.raises(FileError, match="none of these runs was evaluated; run `decomp evaluate"):
        compare(new, out=tmp_path)
    partly = compare([runs[0], new[0]], out=tmp_path / "partly", reporter=quiet())
    assert len(partly.missing) == 1 and str(new[0]) in partly.missing[0][0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trainings that took the same steps, one of them with the scheme repr."""
    folder, options = tmp_path_factory.mktemp("trained"), {"data": "digits", "epochs": 4, "batch_size": 256}
    train("zoo:c3-32", run=folder / "repr", scheme="repr", s1=1, s2=1, reporter=quiet(), **options)
    train("zoo:c3-32", run=folder / "standard", reporter=quiet(), **options)
    return [RunDirectory(folder / name) for name in ("repr", "standard")]


def test_the_page_of_a_training_has_its_curves_events_and_dropped_filters(trained):
    result = report(trained[0], reporter=quiet())
    text = Path(result.html).read_text()
    assert result.figures == ["training", "filters"] and Page(text).unbalanced == []
    assert "zoo:c3-32, trained (repr)" in text and "Events of the scheme" in text
    assert [row["event"] for row in numbers(result, "training")] == ["", "", "drop", "restore", ""]
    assert sum(row["epoch 1"] == "0" for row in numbers(result, "filters")) == 19
    (missing,) = result.missing
    assert missing[1].endswith(f"freeze --run {trained[0]}")
    assert report(trained[1], reporter=quiet()).figures == ["training"]


def test_trainings_are_compared_where_nothing_is_evaluated(trained, tmp_path):
    result = compare(trained, out=tmp_path / "both", reporter=quiet())
    text = Path(result.html).read_text()
    assert result.figures == ["training"] and result.missing == [] and Page(text).unbalanced == []
    assert {row["run"] for row in numbers(result, "training")} == set(map(str, trained))
    assert "train: scheme" in text.replace("<wbr>", "") and text.count(">standard<") >= 1
    with pytest.raises(FileError, match="none of these runs was evaluated"):
        compare([trained[0], RunDirectory.create(tmp_path / "new")], out=tmp_path / "one", reporter=quiet())
