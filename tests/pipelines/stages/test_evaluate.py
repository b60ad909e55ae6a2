"""The table: accuracies against naive counts, costs, interleaved timing, and what it says when something is missing."""

import json
import shutil

import pytest
import torch
from torch import nn

from decomp.cost import count as cost
from decomp.data.formats import network_file
from decomp.data.formats.digests import digest_file
from decomp.data.sources import open_source
from decomp.errors import DecompError, FileError, UsageError
from decomp.pipelines.measure import latency, tested
from decomp.pipelines.measure.devices import full_name
from decomp.pipelines.measure.intervals import short_share
from decomp.pipelines.run import images as run_images
from decomp.pipelines.stages.evaluate import evaluate
from decomp.runtimes.compiled import Compiled
from tests.pipelines.digit_runs import Collected
from tests.pipelines.small_runs import SHAPE, Watched, disturbed, make_run, quiet


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("evaluate") / "run")
    tuned = {"finetune": {"epoch": 1, "network": digest_file(run.model_dir / "structure.json")}}
    network_file.save(
        disturbed(network_file.load(run.model_dir)), run.finetune_dir / "best", input_shape=SHAPE, meta=tuned
    )
    return run


@pytest.fixture
def run(prepared, tmp_path):
    shutil.copytree(prepared.path, tmp_path / "run")
    return type(prepared)(tmp_path / "run")


def measure(run, **options):
    return evaluate(run, **{"batch_size": 2, "repeats": 2, "device": "cpu", "reporter": quiet(), **options})


def with_source(monkeypatch, change):
    def changed(*args, **options):
        source = open_source(*args, **options)
        change(source)
        return source

    monkeypatch.setattr(run_images, "open_source", changed)


def test_the_rows_are_the_networks_with_their_measured_shares_and_costs(run):
    result = measure(run)
    assert [row.network for row in result.rows] == ["original", "decomposed", "fine-tuned"]
    test = open_source("digits").test
    everything = torch.arange(len(test))
    images, labels = test.images(everything), test.labels(everything)
    with torch.no_grad():
        reference = network_file.load(run.original_dir)(images)
        for row, path in zip(result.rows, (run.original_dir, run.model_dir, run.finetune_dir / "best")):
            network = network_file.load(path)
            logits = network(images)
            ranks = logits.argsort(1, descending=True)
            assert row.top1 == pytest.approx((ranks[:, 0] == labels).double().mean().item())
            assert row.top5 == pytest.approx((ranks[:, :5] == labels[:, None]).any(1).double().mean().item())
            assert row.agreement == pytest.approx((ranks[:, 0] == reference.argmax(1)).double().mean().item())
            p, q = reference.double().softmax(1), logits.double().softmax(1)
            assert row.divergence == pytest.approx((p * (p / q).log()).sum(1).mean().item(), abs=1e-6)
            counted = cost.cost(network, SHAPE)
            assert (row.macs, row.params) == (counted.macs, counted.params)
    first = result.rows[0]
    assert first.agreement == 1 and first.divergence == 0
    assert first.counted_speedup == first.measured_speedup == 1
    for row in result.rows:
        assert row.counted_speedup == pytest.approx(first.macs / row.macs)
        assert row.measured_speedup == pytest.approx(first.latency_ms / row.latency_ms)
    assert result.rows[0].top1 > result.rows[1].top1


def test_correct_images_are_counted_by_class_and_against_the_original(run):
    result = measure(run)
    test = open_source("digits").test
    images, labels = test.images(torch.arange(len(test))), test.labels(torch.arange(len(test)))
    hits = {}
    with torch.no_grad():
        for name, path in (("original", run.original_dir), ("decomposed", run.model_dir)):
            hits[name] = (network_file.load(path)(images).argmax(1) == labels).tolist()
    of_class = [[hit for hit, label in zip(hits["decomposed"], labels) if label == c] for c in range(10)]
    assert result.classes["names"] == [str(c) for c in range(10)]
    assert result.classes["images"] == [len(hits) for hits in of_class]
    assert result.classes["correct"]["decomposed"] == [sum(hits) for hits in of_class]
    pairs = list(zip(hits["original"], hits["decomposed"]))
    assert result.classes["changed"]["decomposed"] == {
        "lost": pairs.count((True, False)), "won": pairs.count((False, True)),
    }  # fmt: skip
    assert sum(result.classes["correct"]["original"]) == round(result.rows[0].top1 * len(test))
    assert measure(run).done_before and measure(run).classes == result.classes


def test_a_cheaper_network_shows_its_counted_speedup(run):
    small = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(18, 10)).eval())
    shutil.rmtree(run.finetune_dir)
    network_file.save(small, run.model_dir, input_shape=SHAPE, meta={})
    original, decomposed = measure(run).rows
    assert decomposed.macs == 9 * 2 * 9 + 180
    assert decomposed.counted_speedup == pytest.approx(original.macs / 342)


def test_the_report_holds_the_same_as_the_table(run):
    result = measure(run)
    report = json.loads(run.report_json.read_text(encoding="utf-8"))
    assert {key: report[key] for key in ("rows", "conditions", "notes", "classes", "latencies")} == json.loads(
        json.dumps(result.to_json())
    )
    assert result.conditions["batch_size"] == 2 and result.conditions["threads"] == torch.get_num_threads()
    assert result.conditions["rounds"] == 2 and result.conditions["n_images"] == len(open_source("digits").test)
    lines = list(result.lines())
    assert lines[0].split() == ["network", "top-1", "top-5", "MACs", "parameters", "latency", "counted", "measured"]
    assert short_share(result.rows[1].top1, 450) in lines[2]
    assert lines[-2:] == [f"next: decomp report --run {run}", f"  or: decomp export --run {run}"]
    assert result.conditions["test_digest"] == open_source("digits").test.digest()
    close = result.rows[1].outputs["output"]
    assert lines[4].startswith("decomposed: on 450 test images: outputs differ by") and f"{close['kl']:.3g}" in lines[4]
    assert lines[5].startswith("fine-tuned: on 450 test images")
    said = lines[6]
    assert "batch of 2" in said and "2 interleaved rounds" in said and "450 test images" in said
    assert f"{torch.get_num_threads()} thread" in said and "contiguous" in said


def _is_wide(module):
    """A convolution whose weights lie otherwise with the channels last."""
    return isinstance(module, nn.Conv2d) and module.in_channels > 1


def test_the_layout_is_that_of_weights_and_images_and_another_one_is_measured_anew(run, monkeypatch):
    seen = []

    def timed(networks, shape, device, rounds, *, layout, warm_below):
        weights = [module.weight for network in networks.values() for module in network.modules() if _is_wide(module)]
        seen.append((layout, {weight.is_contiguous() for weight in weights}))
        return {name: [1.0] * rounds for name in networks}

    monkeypatch.setattr(latency, "latencies", timed)
    measure(run)
    assert measure(run).done_before
    result = measure(run, layout="channels-last")
    assert not result.done_before and any("channels-last" in line for line in result.lines())
    assert seen == [("contiguous", {True}), ("channels-last", {False})]
    with pytest.raises(UsageError, match="--layout: must be one of contiguous, channels-last, got 'sideways'"):
        measure(run, layout="sideways")


# --- stages that are not there yet ---


def test_what_is_not_there_is_left_out_and_named(run):
    shutil.rmtree(run.finetune_dir)
    result = measure(run)
    assert [row.network for row in result.rows] == ["original", "decomposed"]
    assert any("run finetune" in note for note in result.notes)
    shutil.rmtree(run.model_dir)
    result = measure(run)
    assert [row.network for row in result.rows] == ["original"]
    assert any("run decompose" in note for note in result.notes)
    shutil.rmtree(run.original_dir)
    with pytest.raises(FileError, match="run freeze first"):
        measure(run)


def test_a_tuning_that_was_stopped_is_said_to_be(run):
    assert any("not finished" in note for note in measure(run).notes)
    run.update_config("finetune", {"asked": {}, "facts": {}})
    assert not any("not finished" in note for note in measure(run).notes)


def test_without_labels_the_accuracies_are_dashes_with_the_reason(run, monkeypatch):
    with_source(monkeypatch, lambda source: setattr(source, "test", Watched(source.test, labels=False)))
    result = measure(run)
    assert {(row.top1, row.top5) for row in result.rows} == {(None, None)}
    assert result.rows[1].agreement < 1 and result.rows[1].divergence > 0
    lines = list(result.lines())
    assert lines[1].split()[1:3] == ["-", "-"]
    assert any("have no labels" in line for line in lines)


def test_without_test_images_there_is_still_a_table(run, monkeypatch):
    with_source(monkeypatch, lambda source: setattr(source, "test", None))
    result = measure(run)
    assert {row.top1 for row in result.rows} == {None}
    assert result.rows[0].latency_ms > 0 and result.conditions["test_digest"] is None
    assert any("no test images" in line for line in result.lines())
    # Compared on the last tenth of the 300 calibration images instead.
    assert result.conditions["n_images"] == 30
    images = open_source("digits").train.images(torch.arange(270, 300))
    with torch.no_grad():
        wanted, got = (network_file.load(path)(images) for path in (run.original_dir, run.model_dir))
    assert result.rows[1].agreement == pytest.approx((wanted.argmax(1) == got.argmax(1)).double().mean().item())
    lost = (got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert result.rows[1].lost == pytest.approx(lost.item(), rel=1e-5)
    run.frozen.unlink()
    assert {(row.top1, row.lost) for row in measure(run, redo=True).rows} == {(None, None)}


def described(run, outputs):
    run.update_config("freeze", {**run.config("freeze"), "outputs": outputs})


def test_values_have_costs_latency_and_closeness_without_accuracy(run):
    described(run, [{"name": "output", "kind": "values", "shape": [10], "reason": "as asked"}])
    result = measure(run)
    test = open_source("digits").test
    images = test.images(torch.arange(len(test)))
    with torch.no_grad():
        wanted, got = (network_file.load(path)(images) for path in (run.original_dir, run.model_dir))
    lost = (got - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert result.rows[1].lost == pytest.approx(lost.item(), rel=1e-5) and result.rows[0].lost == 0
    assert {(row.top1, row.top5, row.agreement, row.divergence) for row in result.rows} == {(None,) * 4}
    lines = list(result.lines())
    assert lines[0].split() == ["network", "lost", "MACs", "parameters", "latency", "counted", "measured"]
    assert any("no accuracy: it needs class scores as the only output, here output: 10 values" in one for one in lines)
    assert not any("KL" in line or "same first class" in line for line in lines)


def test_only_test_images_are_read(run, monkeypatch):
    watched = []

    def change(source):
        source.train, source.test = Watched(source.train, forbidden=True), Watched(source.test)
        watched.append(source.test)

    with_source(monkeypatch, change)
    measure(run)
    assert watched[0].seen == {(False, index) for index in range(len(watched[0]))}


# --- measured before ---


def test_a_second_time_does_no_work_and_says_so(run, monkeypatch):
    first = measure(run)
    monkeypatch.setattr(latency, "latencies", None)
    again = measure(run)
    assert again.done_before and again.rows == first.rows
    assert any("measured earlier" in line for line in again.lines())
    monkeypatch.undo()
    assert not measure(run, redo=True).done_before
    assert not measure(run, batch_size=3).done_before


def test_another_network_is_measured_anew(run):
    before = measure(run)
    shutil.rmtree(run.finetune_dir)
    network_file.save(disturbed(network_file.load(run.model_dir)), run.model_dir, input_shape=SHAPE, meta={})
    after = measure(run)
    assert not after.done_before
    assert after.rows[1].divergence != before.rows[1].divergence


def test_a_broken_report_is_made_anew(run):
    measure(run)
    run.report_json.write_text('{"format": "decomp report", "format_version": 1, "rows": 3}')
    assert not measure(run).done_before
    assert measure(run).done_before
    assert '"rows": 3' in run.report_json.with_name("report.previous.json").read_text()


@pytest.mark.parametrize("redo", [False, True])
def test_a_damaged_report_is_not_replaced(run, redo):
    run.report_json.write_text('{"format": "decomp report", "rows": [')
    with pytest.raises(FileError, match="report.json: the file is cut short.*delete it and run evaluate again"):
        measure(run, redo=redo)
    assert run.report_json.read_text() == '{"format": "decomp report", "rows": ['


def test_a_network_tuned_from_another_decomposition_is_not_shown(run):
    network_file.save(disturbed(network_file.load(run.model_dir)), run.model_dir, input_shape=SHAPE, meta={})
    with pytest.raises(FileError, match="another decomposed network.*finetune --redo"):
        measure(run)


# --- timing ---


@pytest.mark.parametrize("spread, told", [(0.1, False), (2.0, True)])
def test_a_machine_too_busy_to_be_timed_is_told(run, monkeypatch, spread, told):
    fake = [10.0 - 5 * spread, 10.0, 10.0, 10.0 + 5 * spread] * 5
    monkeypatch.setattr(latency, "latencies", lambda networks, *rest, **_: {name: list(fake) for name in networks})
    result = measure(run)
    assert result.rows[0].latency_ms == 10.0
    assert any("unreliable latencies" in line for line in result.lines()) == told


def test_each_runtime_adds_its_rows_to_those_that_were_measured_before(run, monkeypatch):
    made = []

    def timed(networks, *rest, layout, **_):
        made.append(layout)
        return {name: [4.0 / len(made) - place] * 2 for place, name in enumerate(networks)}

    monkeypatch.setattr(latency, "latencies", timed)
    shutil.rmtree(run.finetune_dir)
    first = measure(run)
    assert [(one.conditions["runtime"], len(one.times)) for one in first.latencies] == [("eager", 2)]
    monkeypatch.setattr(tested, "measure_shares", None)  # the networks are not run on the images again
    second = measure(run, layout="channels-last")
    assert not second.done_before and made == ["contiguous", "channels-last"]
    assert [row.top1 for row in second.rows] == [row.top1 for row in first.rows]
    assert [one.conditions["layout"] for one in second.latencies] == ["contiguous", "channels-last"]
    assert [(time.latency_ms, time.speedup) for one in second.latencies for time in one.times] == [
        (4.0, 1.0), (3.0, 4 / 3), (2.0, 1.0), (1.0, 2.0),
    ]  # fmt: skip
    assert second.rows[1].latency_ms == 1.0 and second.rows[1].measured_speedup == 2.0
    said = list(second.lines())
    assert "fastest of these: original in eager, channels-last, 2 ms; decomposed in eager, channels-last, 1 ms" in said
    again = measure(run)
    assert len(made) == 2 and again.rows[1].latency_ms == 3.0
    assert json.loads(run.report_json.read_text())["latencies"][1]["conditions"]["layout"] == "contiguous"
    monkeypatch.undo()
    assert len(measure(run, redo=True).latencies) == 2


def test_a_runtime_that_takes_no_network_is_refused_unless_another_does(run, monkeypatch):
    def refused(self, module, example):
        raise DecompError("compile", "the network cannot be compiled (bad)", fix="choose another")

    monkeypatch.setattr(Compiled, "prepare", refused)
    with pytest.raises(DecompError, match=r"^compile: the network cannot be compiled \(bad\); name a runtime that"):
        measure(run, runtime="compile")
    assert not run.report_json.exists()
    result = measure(run, runtime="compile,eager")
    assert result.conditions["runtime"] == "eager" and result.rows[0].latency_ms > 0
    assert "no time of the original network in compile: the network cannot be compiled (bad)" in result.notes
    assert [time.latency_ms for one in result.latencies for time in one.times][:3] == [None] * 3


def test_a_network_that_was_planned_for_its_time_is_measured_as_in_the_plan_and_beside_its_promise(run):
    planned = {
        "runtime": "eager", "batch_size": 3, "layout": "channels-last", "device": full_name(torch.device("cpu")),
        "threads": torch.get_num_threads(), "measured_speedup": 1.304,
    }  # fmt: skip
    run.update_config("decompose", {"asked": {}, "macs_after": 1, "latency": planned})
    reporter = Collected()
    result = evaluate(run, repeats=2, device="cpu", reporter=reporter)
    (line,) = (text for text in reporter.messages if "of the plan" in text)
    assert line.endswith("conditions of the plan, runtime eager, batch size 3, layout channels-last")
    assert (result.conditions["batch_size"], result.conditions["layout"]) == (3, "channels-last")
    assert sum(" with channels last (when it was planned: 1.30x)" in text for text in result.findings()) == 1
    other = measure(run)  # with two images at a time
    assert other.conditions["batch_size"] == 2 and other.conditions["layout"] == "channels-last"
    promise = " (when it was planned: 1.30x in eager PyTorch with channels last at batch 3, not measured here)."
    assert sum(text.endswith(promise) for text in other.findings()) == 1


# --- mistakes ---


def test_mistakes_are_told_in_one_line(run):
    with pytest.raises(UsageError, match="--batch-size: must be a whole number from 1, got 0"):
        measure(run, batch_size=0)
    with pytest.raises(UsageError, match="--runtime: must be one or more of .*, all, separated .*got 'tensorrt'"):
        measure(run, runtime="tensorrt")
    with pytest.raises(UsageError, match="device"):
        measure(run, device="toaster")
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    shutil.rmtree(run.model_dir)
    network_file.save(torch.fx.symbolic_trace(narrow), run.original_dir, input_shape=SHAPE, meta={})
    with pytest.raises(UsageError, match="^the outputs: must be output of 10, got output of 4; give the network that"):
        measure(run)
    described(run, [{"name": "output", "kind": "scores", "shape": [4]}])
    with pytest.raises(UsageError, match="labels must be below 4, .* got 9"):
        measure(run)
