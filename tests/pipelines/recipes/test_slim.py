"""Network slimming in passes: each trains the network of the one before, and nothing is done twice."""

import pytest

from decomp.errors import DecompError, UsageError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.recipes.slim import slim
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages import train as training_stage
from decomp.pipelines.stages.finetune import finetune
from decomp.pipelines.stages.train import train
from decomp.pipelines.training import loop
from tests.pipelines.small_runs import quiet

OPTIONS = {"data": "digits", "passes": 2, "sparsity": 0.05, "epochs": 1, "tune_epochs": 1, "n_images": 20}


def slimmed(path, **options):
    return slim(
        path, options.pop("model", "zoo:vgg-digits"), **{**OPTIONS, "device": "cpu", "reporter": quiet(), **options}
    )


def test_every_pass_trains_and_prunes_the_network_of_the_pass_before(tmp_path, monkeypatch):
    result = slimmed(tmp_path / "slim")
    first, second = result.passes
    assert second.run.config("train")["asked"]["model"] == str(first.run.finetune_dir / "best")
    assert second.run.config("train")["asked"]["batch_size"] == 64  # of the recipe of the first
    assert second.trained.record["scale_factors"]["channels"] == 96
    for entry, before in ((first, 192), (second, 96)):
        spaces = entry.pruned.facts["spaces"]
        assert sum(width - kept for kept, width in spaces.values()) == before // 2
        assert all(2 * kept >= width for kept, width in spaces.values())  # at most half of a layer
    assert second.pruned.facts["macs_before"] == first.pruned.facts["macs_after"]
    table = "\n".join(result.lines())
    assert f"{first.pruned.facts['macs_before'] / second.pruned.facts['macs_after']:.2f}x" in table
    assert f"compare {first.run} {second.run}" in table
    monkeypatch.setattr(training_stage, "fit", None)
    again = slimmed(tmp_path / "slim")
    assert all(entry.trained.already_done and entry.pruned.done_before and entry.tuned.done_before
               for entry in again.passes)  # fmt: skip
    assert list(again.lines()) == list(result.lines())


def test_networks_of_linear_layers_alone_are_slimmed_in_several_passes(tmp_path):
    first, second = slimmed(tmp_path / "slim", model="zoo:mlp-bn", sparsity=0.002, epochs=3, tune_epochs=3).passes
    assert sum(kept for kept, _ in first.pruned.facts["spaces"].values()) == 400  # of 500 + 300
    assert second.pruned.facts["macs_before"] == first.pruned.facts["macs_after"]
    # Half of them once more, but at most half of a layer of odd width.
    assert 200 <= sum(kept for kept, _ in second.pruned.facts["spaces"].values()) <= 202


def test_a_stopped_call_goes_on_in_the_pass_where_it_was(tmp_path, monkeypatch):
    original, trainings = loop._train_epoch, []

    def stop(state, *rest):
        trainings.append(state)
        if len(trainings) == 3:  # train and finetune of the first pass, then train of the second
            raise KeyboardInterrupt
        return original(state, *rest)

    monkeypatch.setattr(loop, "_train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        slimmed(tmp_path / "slim")
    assert RunDirectory.open(tmp_path / "slim-pass1").config("finetune") is not None
    slimmed(tmp_path / "slim")
    assert len(trainings) == 5
    with pytest.raises(DecompError, match="remove .*slim-pass1 and the directories of later passes to") as refused:
        slimmed(tmp_path / "slim", epochs=2)
    assert "--redo" not in str(refused.value)


def test_a_later_pass_of_another_network_is_refused(tmp_path):
    first, second = slimmed(tmp_path / "slim").passes
    finetune(first.run, epochs=1, learning_rate=0.2, device="cpu", redo=True, reporter=quiet())
    before = second.run.trained_weights.read_bytes()
    rule = "was trained from the network in .*best, which is another one now; "
    with pytest.raises(UsageError, match=rule + "give --redo"):
        train(**{**second.run.config("train")["asked"], "run": second.run, "device": "cpu", "reporter": quiet()})
    with pytest.raises(DecompError, match="pass1"):
        slimmed(tmp_path / "slim")  # with the first options; the tuning is another one
    with pytest.raises(UsageError, match=rule + "remove .*slim-pass2 and the directories of later passes"):
        slimmed(tmp_path / "slim", tune_learning_rate=0.2)
    assert second.run.trained_weights.read_bytes() == before


def test_mistakes_cost_no_training(tmp_path):
    for options, line in (
        ({"passes": 0}, "--passes: must be a whole number from 1"),
        ({"ratio": 1.0}, "--ratio: must be a share from 0 to below 1"),
        ({"tune_epochs": 0}, "--epochs: must be a whole number from 1"),
        ({"ratio": 0.7, "cap": 0.5}, "--ratio: .* more than --cap 0.5 nowhere, got 0.7; .* or loosen --cap"),
        ({"ratio": 0.95, "cap": 1.0}, "--ratio: .* less than --floor 0.1 nowhere, got 0.95; .* or loosen --floor"),
    ):
        with pytest.raises(UsageError, match=line):
            slimmed(tmp_path / "slim", **options)
    with pytest.raises(UsageError, match="^--sparsity: needs batch normalisations .* such as l1"):
        slim(tmp_path / "slim", "zoo:mlp-fashion", data="digits", reporter=Reporter(quiet=True))
    assert not list(tmp_path.iterdir())
