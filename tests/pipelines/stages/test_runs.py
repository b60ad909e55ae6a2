"""Run directories below a folder, one line each."""

import pytest

from decomp.data.formats.json_files import write_json
from decomp.errors import FileError, MissingError
from decomp.pipelines.reporting.summary import Summary
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import DecomposeResult
from decomp.pipelines.stages.export import ExportResult
from decomp.pipelines.stages.finetune import FinetuneResult
from decomp.pipelines.stages.freeze import FreezeResult
from decomp.pipelines.stages.report import ReportResult
from decomp.pipelines.stages.runs import runs
from decomp.pipelines.stages.sensitivity import SensitivityResult
from decomp.pipelines.stages.status import StatusResult


def make(path, *folders, **stages):
    run = RunDirectory.create(path)
    for stage, record in stages.items():
        run.update_config(stage, record)
    for folder in folders:
        write_json(run.path / folder / "structure.json", {})
    return run


FROZEN = {"asked": {"model": "zoo:vgg", "data": "digits"}}
HALVED = {"asked": {"speedup": 2.0}, "macs_before": 300, "macs_after": 150}


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "b" / "frozen", "original", freeze=FROZEN)
    make(tmp_path / "b" / "decomposed", "original", "model", freeze=FROZEN, decompose=HALVED)
    tuned = make(tmp_path / "a", "original", "model", "finetune/best", freeze=FROZEN, decompose=HALVED, finetune={})
    rows = [
        {"network": "original", "counted_speedup": 1.0, "top1": 0.99},
        {"network": "fine-tuned", "counted_speedup": 2.02, "top1": 0.97},
    ]
    write_json(tuned.report_json, {"rows": rows, "conditions": {"n_images": 1000}}, kind="decomp report")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{")
    (tmp_path / "notes").mkdir()
    make(tmp_path / "a" / "inner")  # what lies in a run directory is not a run of its own
    return tmp_path


def test_each_run_has_its_state_its_speed_up_and_its_measured_accuracy(folder):
    result = runs(folder)
    found = {line.run.removeprefix(f"{folder}/"): (line.state, line.speedup, line.top1) for line in result.runs}
    assert found == {
        "a": ("fine-tuned", 2.02, 0.97), "b/decomposed": ("decomposed", 2.0, None), "b/frozen": ("frozen", None, None),
        "c": ("", None, None),
    }  # fmt: skip
    head, first, *_ = lines = list(result.lines())
    assert head.split() == ["run", "network", "state", "speed-up", "top-1"]
    assert first.split()[1:] == ["zoo:vgg", "fine-tuned", "2.02x", "97.0", "%", "(95.7–97.9)"]
    assert any(line.startswith(f"{folder / 'c'}: ") and "run.json" in line for line in lines)
    assert lines[-1].startswith("next: ") and "status --run" in lines[-1]
    assert [line["run"] for line in result.to_json()["runs"]] == [line.run for line in result.runs]


@pytest.mark.parametrize("stage", ["decompose", "prune"])
def test_a_run_whose_compression_is_not_finished_is_not_only_frozen(tmp_path, stage):
    make(tmp_path / "a", "original", freeze=FROZEN, **{stage: {"asked": {"speedup": 2.0}}})
    assert [line.state for line in runs(tmp_path).runs] == [f"{stage} begun"]


def test_a_run_is_listed_alone_when_it_is_the_folder_itself(folder):
    assert [line.state for line in runs(folder / "a").runs] == ["fine-tuned"]


def test_a_folder_without_runs_says_so_and_one_that_is_not_there_is_refused(folder):
    first, following = runs(folder / "notes").lines()
    assert first.endswith("notes: 0 run directories") and "freeze --model" in following
    with pytest.raises(MissingError, match="there is no such folder"):
        runs(folder / "nowhere")
    with pytest.raises(FileError, match="there is no such folder"):
        runs(folder / "a" / "run.json")


@pytest.mark.parametrize("kind", [DecomposeResult, FinetuneResult, FreezeResult])
def test_results_show_themselves_in_one_short_line(kind, tmp_path):
    many = {f"layer {number}": number for number in range(1000)}
    result = kind(run=RunDirectory(tmp_path / "run"), done_before=False, facts=many)
    assert "layer 1" not in repr(result) and "done_before=False" in repr(result)


def test_results_of_many_files_or_layers_show_themselves_in_one_short_line():
    many = [f"layer {number}" for number in range(1000)]
    results = [
        ReportResult("report.html", "report", many, [("a", line) for line in many]),
        ExportResult("run", "pruned", many),
        StatusResult("run", many, "decomp evaluate --run run", [("a", line) for line in many], {}),
        Summary("zoo:vgg", 2.0, 4, 2, 4, 2, {"words": many}, many, many), SensitivityResult("run", False, {"a": many}),
    ]  # fmt: skip
    for result in results:
        assert "layer 1" not in repr(result) and repr(result).startswith(f"{type(result).__name__}(")
    assert "next='decomp evaluate --run run'" in repr(results[2]) and "macs_after=2" in repr(results[3])


def test_a_run_of_tasks_is_listed_with_the_number_of_its_tasks(tmp_path):
    run = make(tmp_path / "t", tasks={"asked": {"model": "zoo:vgg-tasks"}})
    run.tasks_dir.mkdir()
    for name in ("001_a", "002_b"):
        (run.tasks_dir / f"{name}.safetensors").touch()
    (line,) = runs(tmp_path).runs
    assert (line.model, line.state, line.problem) == ("zoo:vgg-tasks", "2 tasks", "")
