"""Stage ``sensitivity``: one layer at a time, on held-out images, as table and picture."""

import csv

import pytest
import torch

from decomp.data.formats import network_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.errors import UsageError
from decomp.pipelines.pruning.unfolded import unfolded_of_run
from decomp.pipelines.reporting import collect
from decomp.pipelines.stages.prune import prune
from decomp.pipelines.stages.report import report
from decomp.pipelines.stages.sensitivity import COLUMNS, sensitivity
from decomp.surgery.narrow_network import shrink
from tests.pipelines.digit_runs import Collected

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def measured(run, **options):
    return sensitivity(run, **{"ratios": (0.25, 0.75), "reporter": Collected(), **options})


def test_each_layer_is_pruned_alone_at_each_ratio_by_its_largest_filters(run):
    result = measured(run)
    rows = [dict(zip(COLUMNS, row)) for row in result.facts["rows"]]
    assert [(row["layer"], row["ratio"], row["kept"], row["channels"]) for row in rows] == [
        ("0", 0.25, 9, 12), ("0", 0.75, 3, 12), ("3", 0.25, 12, 16), ("3", 0.75, 4, 16),
        ("5", 0.25, 12, 16), ("5", 0.75, 4, 16),
    ]  # fmt: skip
    source = unfolded_of_run(run)
    norms = source.network.get_submodule("3").weight.abs().sum((1, 2, 3))
    shrink(source.network, source.graph.spaces, {"3": sorted(norms.argsort(descending=True)[:4].tolist())})
    original = network_file.load(run.original_dir)
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        images = frozen.images(360, 400)
        same = (original(images).argmax(1) == source.network(images).argmax(1)).double().mean()
    assert rows[3]["agreement"] == pytest.approx(float(same)) and result.facts["images"] == 40


def test_the_table_and_the_picture_are_written_and_in_the_report(run):
    result = measured(run)
    with open(run.path / "sensitivity.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS and len(rows) == 6 and float(rows[3][4]) == result.facts["rows"][3][4]
    assert (run.path / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    assert collect.sensitivity(run).header == COLUMNS
    made = report(run, reporter=Collected())
    assert "sensitivity" in made.figures and "Sensitivity of each layer to pruning" in run.report_html.read_text()


def test_it_is_measured_once_and_anew_for_other_options(run):
    first = measured(run)
    again = measured(run)
    assert again.done_before and again.facts == first.facts and "measured earlier" in "\n".join(again.lines())
    other = measured(run, criterion="l2")
    assert not other.done_before and run.config("sensitivity")["asked"]["criterion"] == "l2"


def test_the_next_command_leaves_out_the_most_sensitive_layer(run):
    result = measured(run)
    changes = {}
    for row in result.facts["rows"]:
        changes[row[0]] = changes.get(row[0], 0) + row[-1]
    worst = max(changes, key=changes.get)
    assert list(result.lines())[-1] == f"next: decomp prune --run {run.path} --speedup 2x --skip {worst}"
    prune(run, ratio=0.25, reporter=Collected())
    assert list(measured(run).lines())[-1].endswith(f"--skip {worst} --redo")
    run.update_config("decompose", {"asked": {}})  # where prune would be refused
    (line,) = [line for line in measured(run).lines() if line.startswith("next: ")]
    assert line.endswith(f"--run OTHER --speedup 2x --skip {worst}") and "prune --model " in line


def test_a_run_without_it_misses_nothing(run):
    assert collect.sensitivity(run) is None


@pytest.mark.parametrize("ratios", ["", "0", "1", "0.5,1.2", (), "a"])
def test_ratios_that_cannot_be_meant_are_refused(run, ratios):
    with pytest.raises(UsageError, match="--ratios: must be"):
        measured(run, ratios=ratios)
