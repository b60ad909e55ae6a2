"""Tables of the report, from files of a run written by hand, or the command that produces what is missing."""

import pytest

from decomp.data.formats.digests import digest_file
from decomp.data.formats.json_files import write_json
from decomp.errors import FileError
from decomp.pipelines.reporting import collect
from decomp.pipelines.reporting.collect import COLLECTORS
from decomp.pipelines.reporting.tables import Missing
from decomp.pipelines.run.directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def test_an_empty_run_has_no_table_and_a_command_for_each(run):
    found = [collector(run) for collector in COLLECTORS]
    missing = [item for item in found if item is not None]  # classes and outputs are no table of every run
    assert all(isinstance(item, Missing) and f"--run {run}" in item.command for item in missing)
    assert [item.command.split()[1] for item in missing] == ["evaluate", *["decompose"] * 4, "finetune"]


def evaluated(run, digest, **more):
    row = {
        "network": "original", "macs": 100, "params": 10, "top1": 0.9, "top5": 1.0, "agreement": 1.0,
        "divergence": 0.0, "latency_ms": 2.0, "latency_quartiles_ms": [1.5, 2.5], "counted_speedup": 1.0,
        "measured_speedup": 1.0,
    }  # fmt: skip
    conditions = {
        "n_images": 1000, "data": "digits", "rounds": 30, "batch_size": 64, "layout": "contiguous", "device": "CPU",
        "threads": 1,
    }  # fmt: skip
    report = {
        "rows": [row],
        "conditions": conditions,
        "notes": ["note"],
        "identity": {"networks": {"original": digest}},
    }
    write_json(run.report_json, {**report, **more}, kind="decomp report")


def test_networks_are_the_rows_of_evaluate_and_a_change_since_is_noted(run):
    run.original_dir.mkdir()
    (run.original_dir / "structure.json").write_text("{}")
    evaluated(run, digest_file(run.original_dir / "structure.json"))
    table = collect.networks(run)
    (row,) = table.dicts()
    assert table.tested == "1,000 test images of digits" and row["n_images"] == 1000
    assert collect.read_report(run)["rows"][0]["macs"] == row["macs"]
    assert row["latency_low_ms"] == 1.5 and row["latency_high_ms"] == 2.5 and row["run"] == str(run)
    assert table.notes == [
        "1,000 test images of digits; latency: median and quartiles of 30 interleaved rounds in eager, batch of 64, "
        "float32, contiguous, CPU, 1 thread", "note",
    ]  # fmt: skip
    (run.original_dir / "structure.json").write_text("{ }")
    assert (
        "changed since these measurements: original; measure again with: decomp evaluate"
        in collect.networks(run).notes[-1]
    )


def test_a_report_of_another_shape_is_missing(run):
    write_json(run.report_json, {"rows": [{"network": "original"}]}, kind="decomp report")
    assert isinstance(collect.networks(run), Missing) and collect.read_report(run) is None


def test_classes_are_the_counts_of_evaluate_by_network(run):
    assert collect.classes(run) is None
    evaluated(run, "d")
    assert "--redo" in collect.classes(run).command  # a report of an earlier version has none
    counts = {"names": ["cat", "owl"], "images": [3, 4], "correct": {"original": [3, 2], "decomposed": [1, 4]}}
    evaluated(run, "d", classes=counts)
    table = collect.classes(run)
    assert table.header == ("class", "images", "correct_original", "correct_decomposed")
    assert table.rows == [("cat", 3, 3, 1), ("owl", 4, 2, 4)]
    evaluated(run, "d", classes={**counts, "names": None})
    assert collect.classes(run).column("class") == ["0", "1"]


def timed(runtime, batch_size, networks, time, reason=""):
    times = [{"network": "original", "latency_ms": time, "quartiles_ms": time and [time - 1, time + 1],
              "speedup": time and 1.0, "reason": reason}]  # fmt: skip
    conditions = {"runtime": runtime, "version": "2", "layout": "contiguous", "device": "CPU", "threads": 2,
                  "precision": "float32", "batch_size": batch_size, "rounds": 30, "asked": 30}  # fmt: skip
    return {"conditions": conditions, "networks": networks, "times": times}


def test_all_times_that_were_ever_measured_are_listed_and_those_marked_that_compare_with_the_last(run):
    assert collect.runtimes(run) is None
    measured = [
        timed("eager", 1, {"original": "a"}, 4.0), timed("eager", 64, {"original": "a"}, 9.0),
        timed("eager", 1, {"original": "b"}, 5.0), timed("openvino", 1, {"original": "a"}, None, "openvino: no"),
        timed("onnxruntime", 1, {"original": "a"}, 2.0),
    ]  # fmt: skip
    evaluated(run, "a", latencies=measured)
    table = collect.runtimes(run)
    assert [(row["runtime"], row["batch_size"], row["digest"], row["latency_ms"]) for row in table.dicts()] == [
        ("eager", 1, "a", 4.0), ("eager", 64, "a", 9.0), ("eager", 1, "b", 5.0), ("openvino", 1, "a", None),
        ("onnxruntime", 1, "a", 2.0),
    ]  # fmt: skip
    assert table.column("shown") == [1, 0, 0, 1, 1] and table.column("latency_low_ms") == [3.0, 8.0, 4.0, None, 1.0]
    assert table.column("reason")[3] == "openvino: no" and set(table.column("threads")) == {2}


def test_several_outputs_are_listed_one_by_one_from_evaluate_or_else_from_decompose(run):
    one = {"kind": "values", "relative": 0.5}
    each = {"boxes": one, "scores": {"kind": "scores", "relative": 0.25, "kl": 0.1, "agreement": 0.9}}
    run.update_config("decompose", {"asked": {}, "fidelity": {"images": 50, "outputs": each}})
    table = collect.outputs(run)
    assert table.rows == [
        ("decomposed", "boxes", "values", 0.5, None, None), ("decomposed", "scores", "scores", 0.25, 0.1, 0.9),
    ]  # fmt: skip
    assert table.notes == ["On 50 held-out calibration images."]
    run.update_config("decompose", {"asked": {}, "fidelity": {"images": 50, "outputs": {"output": one}}})
    assert collect.outputs(run) is None  # a single one is said with the layers


def test_epochs_are_numbers_and_empty_cells_missing_values(run):
    run.finetune_dir.mkdir()
    (run.finetune_dir / "metrics.csv").write_text("epoch,loss\n0,\n1,0.25\n")
    assert collect.finetuning(run).rows == [(0.0, None), (1.0, 0.25)]


@pytest.mark.parametrize("collector", [collect.networks, collect.runtimes, collect.classes, collect.outputs])
def test_a_damaged_report_is_no_missing_one(run, collector):
    evaluated(run, "d")
    run.report_json.write_text(run.report_json.read_text()[:-20])
    with pytest.raises(FileError, match="report.json: .*; put a copy of it back, or delete it"):
        collector(run)
    run.report_json.unlink()  # as it advises
    assert isinstance(collector(run), Missing | None)


@pytest.mark.parametrize(
    "text",
    ["", "\n", '{"nope', "epoch,loss\n0,1\n\n", "epoch,loss\n0,x\n", "epoch,loss\n,1\n", "epoch,loss\n1\n", "a\n1\n"],
)
def test_a_damaged_table_of_epochs_is_one_line_with_a_way_out(run, text):
    run.finetune_dir.mkdir()
    path = run.finetune_dir / "metrics.csv"
    path.write_text(text)
    with pytest.raises(
        FileError, match="metrics.csv: must be a table of the epochs.*put a copy of it back, or delete it"
    ):
        collect.finetuning(run)
    path.unlink()
    assert isinstance(collect.finetuning(run), Missing)


def test_a_network_whose_epochs_are_gone_is_fine_tuned(run):
    assert collect.finetuning(run).why == "the network is not fine-tuned"
    (run.finetune_dir / "best").mkdir(parents=True)
    missing = collect.finetuning(run)
    assert "is fine-tuned, but" in missing.why and missing.command.endswith("--redo")
