"""Stage ``prune``: what it writes, what is refused, and how other stages treat the result."""

import json
import re
import shutil

import pytest
import torch
from torch import nn

import decomp
from decomp.cost.count import Cost, cost
from decomp.data.formats import network_file
from decomp.data.models import load_model
from decomp.data.preprocessing import Preprocessing
from decomp.errors import DecompError, FileError, TargetError, UsageError
from decomp.pipelines.pruning import removal
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages import prune as stage
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.evaluate import evaluate
from decomp.pipelines.stages.export import export
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.prune import prune
from decomp.pipelines.stages.status import status
from tests.pipelines.digit_runs import SHAPE, Collected, make_run

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks")


def pruned(run, **options):
    target = {} if {"ratio", "keep"} & options.keys() else {"speedup": 1.5}
    return prune(run, **{**target, "reporter": Collected(), **options})


def files_of(folder, pattern="**/*"):
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


@pytest.mark.parametrize("run", ["plain", "inverted", "upward"], indirect=True)
def test_the_target_is_met_and_the_result_loads_alone(run):
    result = pruned(run)
    before, after = cost(network_file.load(run.original_dir), SHAPE), cost(decomp.load(run.path), SHAPE)
    facts = result.facts
    assert (before.macs, after.macs) == (facts["macs_before"], facts["macs_after"])
    assert (before.params, after.params) == (facts["params_before"], facts["params_after"])
    assert before.macs / after.macs >= 1.5 and facts["into"]["verified"]
    assert torch.isfinite(decomp.load(run.path)(torch.randn(2, *SHAPE))).all()
    assert sum(item.macs_after for item in summarise(run).layers) == after.macs


def test_the_weights_that_stay_are_those_of_the_original(run):
    pruned(run)
    keep = {space["space"]: space["keep"] for space in json.loads(run.prune_json.read_text())["spaces"]}
    original, network = network_file.load(run.original_dir), network_file.load(run.pruned_dir)
    expected = original.get_submodule("3").weight[keep["3"]][:, keep["0"]]
    torch.testing.assert_close(network.get_submodule("3").weight, expected, rtol=0, atol=0)


def test_the_same_call_again_does_nothing_and_other_options_are_refused(run):
    first = pruned(run)
    written = (run.pruned_dir / "structure.json").stat().st_mtime_ns
    again = pruned(run)
    assert again.done_before and again.facts == first.facts
    assert (run.pruned_dir / "structure.json").stat().st_mtime_ns == written
    assert again.lines()[0].endswith("already pruned by l1 at 1.5x, nothing to do")
    with pytest.raises(UsageError, match="was pruned with --speedup 1.5, got --speedup 2; use --redo"):
        pruned(run, speedup=2)


def test_a_plan_is_taken_by_another_run_and_gives_the_same_network(run, tmp_path):
    pruned(run, criterion="random")
    other = make_run(tmp_path / "other")
    result = prune(other, keep=run.prune_json, reporter=Collected())
    assert result.facts["asked"]["keep"] and result.lines()[0].endswith("pruned by a given plan")
    one, two = (network_file.load(place.pruned_dir).state_dict() for place in (run, other))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_edited_plan_is_noticed_and_survives_redo(run):
    pruned(run)
    run.prune_json.write_text(run.prune_json.read_text() + "\n")
    assert any("prune.json was edited since; another run takes it" in line for line in pruned(run).lines())
    finetune(run, epochs=1, reporter=Collected())
    result = pruned(run, ratio=0.25, redo=True)
    assert result.facts["macs_after"] > 0 and (run.path / "prune.previous.json").is_file()
    assert not run.finetune_dir.exists() and run.config("finetune") is None


def test_a_run_is_pruned_or_decomposed_and_names_the_way_to_both(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "two")
    decomposed = RunDirectory.open(tmp_path / "two")
    pruned(run)
    with pytest.raises(
        UsageError, match=f"is pruned already.*freeze --model {run.pruned_dir} --data digits .*--run OTHER"
    ):
        decompose(run, speedup=1.5, reporter=Collected())
    decompose(decomposed, speedup=1.2, reporter=Collected())
    with pytest.raises(UsageError, match="is decomposed already.*prune --model plain --data digits .*--run OTHER"):
        pruned(decomposed)


def test_what_pruning_left_can_be_decomposed(run, tmp_path):
    facts = pruned(run).facts
    inner = make_run(tmp_path / "inner", str(run.pruned_dir), n_images=100)
    assert inner.config("freeze")["facts"]["n_folded"] == 1
    result = decompose(inner, speedup=1.3, reporter=Collected())
    assert result.facts["macs_before"] == facts["macs_after"] and result.facts["into"]["verified"]


def test_the_preprocessing_of_image_files_goes_with_the_network(run):
    record = run.config("freeze")
    prepared = Preprocessing((8, 8), None, (0.5,), (0.25,)).to_json()
    run.update_config("freeze", {**record, "source": {**record["source"], "prepared": prepared}})
    pruned(run)
    assert load_model(str(run.pruned_dir)).preprocessing.std == (0.25,)


def test_a_target_out_of_reach_leaves_the_run_as_it_was(run):
    with pytest.raises(TargetError, match="can be reached"):
        pruned(run, speedup=1000)
    assert run.config("prune") is None and not run.prune_json.exists() and not run.pruned_dir.exists()


def test_an_error_while_the_network_is_written_leaves_no_pruned_network(run, monkeypatch):
    monkeypatch.setattr(removal, "counted_cost", lambda *_: Cost(1, 1, {}))
    with pytest.raises(DecompError, match="must have the planned 1 multiply-accumulates"):
        pruned(run, ratio=0.5)
    assert not run.pruned_dir.exists() and run.config("prune") is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, DecompError("pruned", "could not be written")])
def test_an_earlier_result_stays_where_the_new_one_cannot_be_written(run, monkeypatch, error):
    result = pruned(run, ratio=0.5)

    def failing(*arguments, **options):
        write(*arguments, **options)
        raise error

    kept, write = files_of(run.pruned_dir) | files_of(run.prune_json.parent, "prune.json"), stage.emit
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DecompError)):
        patch.setattr(stage, "emit", failing)
        pruned(run, ratio=0.25, redo=True)
    assert files_of(run.pruned_dir) | files_of(run.prune_json.parent, "prune.json") == kept
    again = pruned(run, ratio=0.5)
    assert again.done_before and again.facts == result.facts
    assert pruned(run, ratio=0.25, redo=True).facts["macs_after"] > result.facts["macs_after"]
    assert not run.pruned_dir.with_name("pruned.new").exists()


def test_the_plan_of_a_pruning_that_was_killed_is_not_kept_as_an_edited_one(run, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_compare", killed)
        with pytest.raises(KeyboardInterrupt):
            pruned(run)
    assert run.prune_json.is_file()
    pruned(run)
    assert not (run.path / "prune.previous.json").exists()


def test_a_pruning_that_was_killed_is_known_and_goes_on(run, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "emit", killed)
        told = Collected()
        told.command = f"prune --run {run} --ratio 0.5"
        told.log_path = run.log
        pruned(run, ratio=0.5, reporter=told)
    shown = status(run)
    assert (shown.stages[1].name, shown.stages[1].state) == ("prune", "partly")
    assert shown.next == f"decomp prune --run {run} --ratio 0.5"
    with pytest.raises(UsageError, match="is pruned already"):
        decompose(run, speedup=1.5, reporter=Collected())
    assert not pruned(run, ratio=0.25).done_before and status(run).stages[1].state == "done"


def test_statistics_are_estimated_again_only_where_that_helps(run):
    result = pruned(run, recalibrate_bn=True)
    line = next(line for line in result.facts["notes"] if "statistics" in line)
    before, after = (float(x) for x in re.search(r"held-out images (\S+) before, (\S+) after", line).groups())
    assert line.startswith("statistics of the batch normalisations estimated again" if after < before else "statistics")
    assert float(f"{result.facts['fidelity']['kl']:.3g}") == pytest.approx(min(before, after), rel=0.02)


def test_fine_tuning_trains_the_normalisations_of_the_original_and_writes_both_forms(run):
    pruned(run)
    told = Collected()
    finetune(run, epochs=2, reporter=told)
    assert any("trained with the original's 1 batch normalisations" in line for line in told.messages)
    best = run.finetune_dir / "best"
    folded, inside = network_file.load(best), network_file.load(best / network_file.WITH_BATCHNORM)
    before = network_file.load(run.pruned_dir / network_file.WITH_BATCHNORM)
    images = torch.randn(2, *SHAPE)
    torch.testing.assert_close(folded(images), inside(images), rtol=1e-4, atol=1e-4)
    assert isinstance(inside.get_submodule("1"), nn.BatchNorm2d)
    assert not torch.equal(inside.get_submodule("1").weight, before.get_submodule("1").weight)


def test_interrupted_fine_tuning_of_a_pruned_network_ends_with_the_same_bytes(run, tmp_path, monkeypatch):
    pruned(run)
    shutil.copytree(run.path, tmp_path / "two")
    finetune(run, epochs=2, reporter=Collected())
    other = RunDirectory.open(tmp_path / "two")
    stopping = Collected()

    def stop(message, **fields):
        if message.startswith("epoch 1"):
            raise KeyboardInterrupt

    stopping.step = stop
    with pytest.raises(KeyboardInterrupt):
        finetune(other, epochs=2, reporter=stopping)
    finetune(other, epochs=2, reporter=Collected())
    name = "finetune/last/with_batchnorm/weights.safetensors"
    assert (run.path / name).read_bytes() == (other.path / name).read_bytes()


def test_evaluate_export_and_status_know_the_pruned_network(run):
    pruned(run)
    result = evaluate(run, repeats=1, reporter=Collected())
    assert [row.network for row in result.rows] == ["original", "pruned"]
    assert "no fine-tuned network yet: run finetune to add it to the table" in result.notes
    assert export(run, formats=("state-dict",), reporter=Collected()).network == "pruned"
    shown = status(run)
    assert [(stage.name, stage.state) for stage in shown.stages[:2]] == [("freeze", "done"), ("prune", "done")]
    assert shown.next == f"decomp finetune --run {run.path}"
    with pytest.raises(FileError, match="holds no decomposed network yet"):
        export(run, which="decomposed", reporter=Collected())


def test_held_out_images_are_not_those_of_the_criterion(run, monkeypatch):
    seen, real = [], stage.batched

    def watched(images, fitted, n, *rest):
        seen.append((fitted, n))
        return real(images, fitted, n, *rest)

    monkeypatch.setattr(stage, "batched", watched)
    result = pruned(run, criterion="mean-l1", ratio=0.25)
    assert seen == [(360, 400)] and result.facts["fidelity"]["images"] == 40
