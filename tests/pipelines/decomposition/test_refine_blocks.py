"""Block refinement behind the layer loop."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from decomp.data.formats import network_file
from decomp.data.formats.digests import digest_file
from decomp.data.formats.frozen_file import FrozenFile
from decomp.errors import FileError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.decomposition import refine_blocks as module
from decomp.pipelines.reporting.summary import summarise
from decomp.pipelines.run import calibration
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.held_out import HeldOut
from decomp.pipelines.stages.decompose import decompose
from tests.pipelines.digit_runs import NETWORKS, SHAPE, Collected, bytes_of, make_run

pytestmark = pytest.mark.usefixtures("one_thread", "known_networks", "few_steps")


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 30)
    monkeypatch.setattr(calibration, "WITH_MIXTURES", 180)
    monkeypatch.setattr(module, "LEAST_LAYERS", 2)
    monkeypatch.setattr(module, "LEAST_TOGETHER", 100)


def divergence(run, network, places=slice(90, 100)):
    """Mean Kullback-Leibler divergence of a network's class scores from the original's, on the held-out images."""
    original = network_file.load(run.original_dir)
    with FrozenFile(run.frozen) as frozen, torch.no_grad():
        x = frozen.images(places.start, places.stop)
        wanted, got = original(x).double().log_softmax(1), network(x).double().log_softmax(1)
    return float((wanted.exp() * (wanted - got)).sum(1).mean())


@pytest.fixture
def trained(tmp_path):
    return make_run(tmp_path / "trained", "zoo:vgg-digits", n_images=100)


def test_the_result_is_closer_on_held_out_images_and_the_layers_are_the_same(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 60)
    monkeypatch.setattr(calibration, "WITH_MIXTURES", 450)
    shutil.copytree(trained.path, tmp_path / "other")
    other = RunDirectory.open(tmp_path / "other")
    plain = decompose(trained, speedup=8, refine_blocks=False, reporter=Collected())
    reporter = Collected()
    result = decompose(other, speedup=8, reporter=reporter)
    assert "block_refinement" not in plain.facts and not trained.blocks_dir.exists()
    layers = [{path.name: path.read_bytes() for path in r.layers_dir.iterdir()} for r in (trained, other)]
    assert layers[0] == layers[1]
    before, after = (divergence(r, network_file.load(r.model_dir)) for r in (trained, other))
    found = result.facts["block_refinement"]
    assert after < 0.95 * before and found["kept"] and found["images"] == 10
    assert (found["divergence_before"], found["divergence_after"]) == pytest.approx((before, after), rel=1e-4)
    named = [name for report in found["blocks"] for name in report["layers"]]
    assert named == [report["layer"] for report in result.facts["layers"]]
    assert result.facts["macs_after"] == plain.facts["macs_after"]
    words = f"; change of the outputs on 10 held-out images: {before:.3g} before, {after:.3g} after"
    assert sum(line.endswith(words) for line in [*reporter.messages, *result.lines()]) == 2  # in the log, and as result
    assert summarise(other).notes == [found["words"]] and found["words"].endswith(words)
    assert summarise(trained).notes == []


@pytest.mark.parametrize(
    "run, options", [("residual", {"speedup": 2}), ("residual", {"speedup": 3, "coupled": 0.6})], indirect=["run"],
    ids=["whole streams", "narrowed streams"],
)  # fmt: skip
def test_blocks_around_shortcuts_come_closer_to_the_maps_of_the_original(run, options, monkeypatch):
    monkeypatch.setattr(module, "LEAST_LAYERS", 1)
    monkeypatch.setattr(module, "STEPS", 100)
    found = decompose(run, **options, refine_blocks=True, reporter=Collected()).facts["block_refinement"]
    reports = found["blocks"]
    assert [report["layers"] for report in reports] == [["stem"], ["conv1", "conv2"], ["head"]]
    assert all(report["error_before"] < 0.5 for report in reports)
    assert all(
        report["error_after"] <= report["error_before"] for report in reports[:-1]
    )  # the last one by the outputs
    assert reports[1]["error_after"] < 0.9 * reports[1]["error_before"]


def test_a_network_that_does_not_gain_stays_as_it_was(run, monkeypatch):
    plain = decompose(run, speedup=2, refine_blocks=False, reporter=Collected())
    weights = (run.model_dir / "weights.safetensors").read_bytes()
    monkeypatch.setattr(module.Judge, "changes", lambda self, network: torch.tensor([0.25, 0.75]))
    reporter = Collected()
    result = decompose(run, speedup=2, refine_blocks=True, redo=True, reporter=reporter)
    found = result.facts["block_refinement"]
    assert not found["kept"] and any(report["step"] for report in found["blocks"])
    assert (run.model_dir / "weights.safetensors").read_bytes() == weights
    assert plain.facts["fidelity"] == result.facts["fidelity"]
    words = (
        "refinement of the blocks: given up, as it brought the whole network no closer (change of the outputs on "
        f"{found['images']} held-out images: 0.5 before, 0.5 with it); all weights stay as they were fitted"
    )
    assert found["words"] == words and words in reporter.messages and result.lines().count(words) == 1
    again = decompose(run, speedup=2, refine_blocks=True, reporter=Collected())
    assert again.done_before and again.lines().count(words) == 1


def test_steps_of_all_blocks_together_are_taken_back_with_the_others(run, monkeypatch):
    decompose(run, speedup=2, refine_blocks=False, reporter=Collected())
    weights = (run.model_dir / "weights.safetensors").read_bytes()
    # Before all; twelve times in the last block and in all together, each time better; and behind all worse again.
    numbers = iter([0.5, *(0.4 - 0.01 * n for n in range(12)), 0.6])
    monkeypatch.setattr(module._Trainer, "divergence", lambda self: next(numbers))
    found = decompose(run, speedup=2, redo=True, reporter=Collected()).facts["block_refinement"]
    assert found["together"]["step"] == 30 and found["blocks"][-1]["step"] == 30 and not found["kept"]
    assert (run.model_dir / "weights.safetensors").read_bytes() == weights and not list(numbers)


def test_blocks_of_which_no_state_is_better_are_said_to_stay():
    reports = [{"layers": ["a"], "error_before": 0.1, "error_after": 0.1, "step": 0}]
    found = {"blocks": reports, "images": 10, "divergence_before": 0.2, "divergence_after": 0.2, "kept": False}
    assert module.summary(found) == (
        "refinement of the blocks: it brought 1 block no closer to the original on 10 held-out images; "
        "all weights stay as they were fitted"
    )
    found |= {"together": reports[0] | {"step": 60}, "divergence_after": 0.1, "kept": True}
    assert module.summary(found) == (
        "0 of 1 block refined, then all together; change of the outputs on 10 held-out images: 0.2 before, 0.1 after"
    )


@pytest.mark.parametrize("run", ["inverted"], indirect=True)
@pytest.mark.parametrize("stopped_at", ["write", "put"])
def test_a_run_that_stopped_between_two_blocks_ends_with_the_same_bytes(run, monkeypatch, stopped_at):
    decompose(run, speedup=2, refine_blocks=True, reporter=Collected())
    whole = bytes_of(run)
    assert sum("blocks" in path.parts for path in whole) > 1
    with safe_open(run.block_file(1), "pt") as file:
        assert json.loads(file.metadata()["decomp"])["parent"] == digest_file(run.block_file(0))
    write, read = module.write_block, module.read_block

    def stop(path, *arguments):
        if stopped_at == "put" or path.stem == "001":
            raise KeyboardInterrupt
        write(path, *arguments)

    def stop_behind(path, *arguments):
        raise KeyboardInterrupt

    target, replacement = ("write_block", stop) if stopped_at == "write" else ("read_block", stop_behind)
    monkeypatch.setattr(module, target, replacement)
    with pytest.raises(KeyboardInterrupt):
        decompose(run, speedup=2, refine_blocks=True, redo=True, reporter=Collected())
    assert [path.name for path in run.blocks_dir.iterdir()] == ["000.safetensors"]
    monkeypatch.setattr(module, "write_block", write)
    monkeypatch.setattr(module, "read_block", read)
    decompose(run, speedup=2, refine_blocks=True, reporter=Collected())
    assert bytes_of(run) == whole


def test_a_block_that_was_made_from_other_layers_is_refused(run):
    decompose(run, speedup=2, refine_blocks=True, reporter=Collected())
    shutil.copytree(run.blocks_dir, run.path / "kept")
    decompose(run, speedup=3, refine_blocks=True, redo=True, reporter=Collected())
    shutil.rmtree(run.blocks_dir)
    shutil.rmtree(run.model_dir)
    (run.path / "kept").rename(run.blocks_dir)
    with pytest.raises(FileError, match=r"000.safetensors: was made from .*; run decompose again with --redo"):
        decompose(run, speedup=3, refine_blocks=True, reporter=Collected())


def test_another_choice_of_refinement_is_refused_with_the_option_that_leaves_the_run_as_it_is(run):
    decompose(run, speedup=2, refine_blocks=False, reporter=Collected())
    record = run.config("decompose")
    was = "with --{0}refine-blocks, got --{1}refine-blocks; give --{0}refine-blocks to leave it so, use --redo to"
    for known in (True, False):  # not to the versions that could not refine blocks
        if not known:
            del record["asked"]["refine_blocks"]
            run.update_config("decompose", record)
        with pytest.raises(UsageError, match=was.format("no-", "")):
            decompose(run, speedup=2, reporter=Collected())
        assert decompose(run, speedup=2, refine_blocks=False, reporter=Collected()).done_before
    with pytest.raises(UsageError) as caught:
        decompose(run, speedup=3, reporter=Collected())
    assert "to leave it so" not in str(caught.value)
    decompose(run, speedup=2, redo=True, reporter=Collected())
    with pytest.raises(UsageError, match=was.format("", "no-")):
        decompose(run, speedup=2, refine_blocks=False, reporter=Collected())


def test_no_steps_are_no_refinement(run, monkeypatch):
    decompose(run, speedup=2, refine_blocks=False, reporter=Collected())
    before = bytes_of(run)
    monkeypatch.setattr(module, "STEPS", 0)
    result = decompose(run, speedup=2, redo=True, reporter=Collected())
    assert bytes_of(run) == before and not run.blocks_dir.exists() and "block_refinement" not in result.facts


def test_a_network_without_a_place_that_one_value_crosses_has_no_blocks(run, monkeypatch):
    monkeypatch.setattr(module, "find_blocks", lambda graph, least: [])
    result = decompose(run, speedup=2, reporter=Collected())
    assert result.facts["block_refinement"]["blocks"] == [] and not run.blocks_dir.exists()
    assert sum(line.startswith("refinement of the blocks: none, as no value") for line in result.lines()) == 1


def test_little_memory_is_divided_between_fitted_and_held_out_images(run, monkeypatch):
    """Large maps: five hundred held-out images alone would take more than there is."""
    real, seen = module._images, []

    def few(opened, held_out, blocks, original):
        frozen = opened.frozen
        each = module._bytes_of_values(blocks, original, frozen.images(0, 1))
        limits = replace(opened.memory.limits, store_in_memory=100 * each)
        memory = SimpleNamespace(limits=limits)
        found = real(replace(opened, memory=memory), held_out, blocks, original)
        assert torch.equal(found[0], frozen.images(0, 80)) and torch.equal(found[1], frozen.images(360, 380))
        seen.append(found)
        return found

    monkeypatch.setattr(module, "_images", few)
    found = decompose(run, speedup=2, reporter=Collected()).facts["block_refinement"]
    assert seen and found["images"] == 40 and all("error_before" in report for report in found["blocks"])


class TwoHeads(nn.Module):
    """Class scores, and a map of values: each head reads what the layers in front of it give."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.conv2, self.map, self.scores = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 2, 1), nn.Linear(12, 10)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(torch.relu(self.stem(x))))))
        return {"map": self.map(x), "scores": self.scores(x.mean((2, 3)))}


def test_all_blocks_together_come_closer_to_the_scores_behind_their_own_refinement(trained, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 150)
    monkeypatch.setattr(calibration, "WITH_MIXTURES", 450)
    real, seen, reporter = module.refine_block, [], Collected()

    def told(block, fitted, unseen, **settings):
        before = settings["judge"]() if settings.get("loss") else None
        report = real(block, fitted, unseen, **settings)
        if before is not None:
            seen.append((len(fitted), before, settings["judge"]()))
        return report

    monkeypatch.setattr(module, "refine_block", told)
    found = decompose(trained, speedup=8, reporter=reporter).facts["block_refinement"]
    ((n_fitted, before, after),) = seen
    assert n_fitted == 450 and after < 0.97 * before and after == found["divergence_after"]
    assert found["together"]["step"] > 0
    assert found["together"]["layers"] == [name for report in found["blocks"] for name in report["layers"]]
    assert " refined, then all together; " in found["words"]
    assert sum(line.startswith("all blocks together: error of their output") for line in reporter.messages) == 1
    # A run that was stopped in front of these steps makes them again, and one that was stopped behind them reads them.
    whole, files = bytes_of(trained), sorted(trained.blocks_dir.iterdir())
    assert len(files) == len(found["blocks"]) + 1
    for gone in (files[-1:], []):
        for path in gone:
            path.unlink()
        shutil.rmtree(trained.model_dir)
        decompose(trained, speedup=8, reporter=Collected())
        assert bytes_of(trained) == whole and len(seen) == 2


def test_layers_in_front_of_several_heads_are_refined(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "heads", TwoHeads)
    run = make_run(tmp_path / "heads", "heads", n_images=200)
    found = decompose(run, speedup=2, reporter=Collected()).facts["block_refinement"]
    assert [name for report in found["blocks"] for name in report["layers"]] == ["stem", "conv1", "conv2"]
    assert found["kept"] and found["divergence_after"] < 0.98 * found["divergence_before"]
    assert "together" not in found and "together" not in found["words"]  # that is for class scores alone


@pytest.mark.parametrize("run", ["upward"], indirect=True)
def test_layers_in_front_of_all_changed_ones_are_not_trained(run):
    """Nothing differs from the original there, so there is nothing to come closer to."""
    names = [layer.name for layer in NetworkGraph(trace(network_file.load(run.original_dir)), SHAPE).layers]
    result = decompose(run, speedup=1.1, skip=names[:3], reporter=Collected())
    first = result.facts["block_refinement"]["blocks"][0]
    assert set(first["layers"]) <= set(names[:3]) and first["error_before"] <= 1e-10 and first["step"] == 0


def test_without_memory_for_enough_images_the_blocks_stay(run, monkeypatch):
    monkeypatch.setattr(module, "LEAST_IMAGES", 10**6)
    reporter = Collected()
    result = decompose(run, speedup=2, refine_blocks=True, reporter=reporter)
    found = result.facts["block_refinement"]
    assert not found["kept"] and not any("error_before" in report for report in found["blocks"])
    assert any(line.endswith("left as it is") for line in reporter.messages)
    assert any(line.endswith("images are at hand or fit into memory") for line in result.lines())


@pytest.mark.parametrize(
    "options, recorded, enough, most, n",
    [
        ({}, 0, 91, 2, 180),
        ({}, 0, 90, 2, 90),
        ({}, 130, 91, 2, 180),
        ({}, 130, 91, 0.1, 133),
        ({"mix": False}, 130, 91, 2, 90),
    ],
)
def test_few_images_are_trained_on_with_recorded_mixtures_and_others(
    tmp_path, monkeypatch, options, recorded, enough, most, n
):  # fmt: skip
    """90 fitted images and 30 recorded mixtures; with a tenth of these 130 recorded images as the limit, 13 more."""
    monkeypatch.setattr(calibration, "TRAINED_WORK", 1e7)
    monkeypatch.setattr(calibration, "JUDGED_WORK", 0.0)
    monkeypatch.setattr(calibration, "MOST_MIXTURES", most)
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", recorded)
    monkeypatch.setattr(calibration, "ENOUGH_IMAGES", enough)
    run, seen = make_run(tmp_path / "run", "zoo:vgg-digits", n_images=100, **options), []

    def told(block, fitted, unseen, **settings):
        if not seen:
            with FrozenFile(run.frozen) as frozen:
                images = frozen.images(0, 90)
            assert torch.equal(fitted.inputs[:90], images)
            same = (fitted.inputs[90:, None] == images).flatten(2).all(2).any(1)
            assert not len(same) or same.float().mean() < 0.3  # where a rectangle is as empty as what it covers
        seen.append((len(fitted), len(unseen)))
        return {}

    monkeypatch.setattr(module, "refine_block", told)
    decompose(run, speedup=3, refine_blocks=True, reporter=Collected())
    assert set(seen) == {(n, 10)}


def test_of_few_images_blocks_are_judged_on_mixtures_of_held_out_images_too(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 110)
    monkeypatch.setattr(calibration, "JUDGED_IMAGES", 50)
    run, seen, real = make_run(tmp_path / "run", "zoo:vgg-digits", n_images=100), [], module.refine_block

    def told(block, fitted, unseen, **settings):
        seen.append(unseen.inputs)
        return real(block, fitted, unseen, **settings)

    monkeypatch.setattr(module, "refine_block", told)
    result = decompose(run, speedup=4, reporter=Collected())
    with FrozenFile(run.frozen) as frozen:
        held_out = HeldOut(frozen, 1e5, mix=True, most=500)
        judged = held_out.images(0, 50)
    assert torch.equal(seen[0], judged) and {len(values) for values in seen} == {50}
    original, network = network_file.load(run.original_dir), network_file.load(run.model_dir)
    with torch.no_grad():
        wanted, got = original(judged).double().log_softmax(1), network(judged).double().log_softmax(1)
    found = result.facts["block_refinement"]
    assert found["divergence_after"] == pytest.approx(float((wanted.exp() * (wanted - got)).sum(1).mean()), rel=1e-4)
    assert " on 10 held-out images and 40 mixtures of them: " in found["words"]


def test_steps_are_as_many_as_the_work_allows():
    few, many = 10**6, 4 * 10**9  # multiply-accumulates of a small network and of a large one
    assert module.steps_within(few, few // 4, 1000, 32) == (30, 30, 96 / 4000)
    cases = ((1000, 4, 30, 30), (150, 4, 25, 0), (250, 4, 30, 11), (100, 4, 16, 0), (100, 2, 8, 0), (20, 1, 2, 0))
    for n_images, speedup, steps, together in cases:
        found = module.steps_within(many, many // speedup, n_images, 32)
        assert found == (steps, together, pytest.approx(96 / speedup / n_images))
        # 4 passes at most, or 10**12 multiply-accumulates.
        assert (steps + together) * found[2] <= max(4, 250 / n_images)
    assert module.steps_within(many, many // 4, 100, 8)[0] == 30


@pytest.mark.parametrize("least, n, words", [(400, 60, " and 30 for all together"), (401, 30, "")])
def test_the_steps_and_their_work_are_said_before_they_are_taken(run, monkeypatch, least, n, words):
    """Of 400 images; where there are fewer than are needed for it, all blocks together are left out."""
    monkeypatch.setattr(module, "LEAST_TOGETHER", least)
    reporter = Collected()
    result = decompose(run, speedup=2, refine_blocks=True, reporter=reporter)
    (line,) = (line for line in reporter.messages if "for each block" in line)
    with FrozenFile(run.frozen) as frozen:
        passes = n * 96 * result.facts["macs_after"] / result.facts["macs_before"] / frozen.n_recorded
    assert line == (
        f"refinement of the blocks: 30 steps of 32 images for each block{words}, "
        f"the work of {passes:.1f} passes over the calibration images"
    )
    assert ("together" in result.facts["block_refinement"]) == bool(words)
    # The result gives the same number, beside that of the work in front of the refinement.
    assert result.facts["block_refinement"]["passes"] == pytest.approx(passes, abs=0.006)
    forward = result.facts["passes"]
    total = f"{forward:.1f} passes over the calibration images, and the work of {passes:.1f} more to refine the blocks"
    assert total in result.findings()
    reporter = Collected()
    decompose(run, speedup=2, refine_blocks=False, redo=True, reporter=reporter)
    assert "passes" not in run.config("decompose").get("block_refinement", {})
