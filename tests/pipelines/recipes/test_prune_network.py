"""Pruning of a network in memory: its class, its normalisations, its report, and mistakes."""

import copy

import pytest
import torch
from networks import Block, block
from torch import nn

import decomp
from decomp.cost.count import cost
from decomp.errors import TargetError, UsageError
from decomp.pipelines.pruning.plan_file import PruningPlan, write_plan
from decomp.pipelines.recipes import prune_network

SHAPE = (3, 8, 8)


def images(n=60):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def prune(*arguments, **options):
    return decomp.prune(*arguments, quiet=True, **{"input_size": SHAPE, **options})


def test_the_result_has_the_given_class_with_narrower_layers_and_normalisations():
    model = block().half()
    before = copy.deepcopy(model.state_dict())
    network, report = prune(model, speedup=1.3)
    assert type(network) is Block and not network.training and next(network.parameters()).dtype == torch.float16
    assert network.bn1.num_features == network.conv1.out_channels == network.conv2.in_channels < 12
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept, norms = network.conv1.weight, model.conv1.weight.float().abs().sum((1, 2, 3))
    stays = sorted(norms.argsort(descending=True)[: len(kept)].tolist())
    assert torch.equal(kept, model.conv1.weight[stays])
    assert torch.equal(network.bn1.running_var, model.bn1.running_var[stays])
    assert (report.macs_before, report.macs_after) == (cost(model, SHAPE).macs, cost(network, SHAPE).macs)
    assert report.macs_before / report.macs_after >= 1.3 and report.network == "pruned" and report.fidelity == {}
    assert "target 1.3x" in str(report) and "a sum joins 2 layers; coupled" in str(report)


def test_images_give_the_closeness_and_serve_the_criteria():
    network, report = prune(block(), images(), "mean-std", ratio=0.25, outputs="scores")
    assert report.fidelity["images"] == 6 and report.fidelity["kl"] > 0 and network.conv1.out_channels == 9
    same, report = prune(block(), images(), ratio=0, outputs="scores")
    assert report.fidelity["relative"] == 0 and torch.equal(same(images(2)), block()(images(2)))
    closer = prune(block(), images(600), ratio=0.5, bias="mean")[1].fidelity["relative"]
    assert closer < prune(block(), images(600), ratio=0.5)[1].fidelity["relative"]


def test_more_images_than_asked_for_are_not_looked_at():
    _, report = prune(block(), images(), "mean-std", ratio=0.25, outputs="scores", n_images=20)
    assert report.fidelity["images"] == 2
    one, other = (prune(block(), images(), "mean-std", ratio=0.25, outputs="scores", n_images=n)[1] for n in (60, 61))
    assert one.fidelity == other.fidelity and one.fidelity["images"] == 6  # no more than there are


def test_the_result_can_be_saved_folded_and_pruned_again(tmp_path):
    network, _ = prune(block(), ratio=0.5)
    decomp.save(network, tmp_path / "net")
    assert torch.equal(decomp.load(tmp_path / "net")(images(2)), network(images(2)))
    folded = decomp.folded(network)
    assert isinstance(folded.bn1, nn.Identity)
    torch.testing.assert_close(folded(images(2)), network(images(2)), rtol=1e-4, atol=1e-5)
    again, report = decomp.prune(network, ratio=0.5, quiet=True)  # it knows the size of its images
    assert again.conv1.out_channels == 3 and report.macs_before == cost(network, SHAPE).macs


def test_linear_layers_lose_whole_neurons():
    model = nn.Sequential(
        nn.Flatten(), *(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    )
    network, report = decomp.prune(model, ratio=0.5, input_size=(1, 28, 28), quiet=True)
    assert (report.params_before, report.params_after) == (199_210, 78_500 + 10_100 + 1_010)
    assert [part.out_features for part in network if isinstance(part, nn.Linear)] == [100, 100, 10]


def test_a_part_is_pruned_in_its_model():
    model = nn.Sequential(block(), nn.Identity()).eval()
    network, _ = prune(model, ratio=0.5, module="0")
    assert isinstance(network, nn.Sequential) and network[0].conv1.out_channels == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio: must be a share from 0 to below 1, got 1.0"),
        ({"ratio": -0.1}, "ratio: must be a share"),
        ({}, "one of speedup, ratio and keep is needed; give for example speedup 2x"),
        ({"speedup": 2, "ratio": 0.5}, "only one of these can be given, got speedup and ratio"),
        ({"speedup": 2, "input_size": None}, r"input_size: is needed: .*give for example input_size=\(3, 224, 224\)"),
        ({"speedup": 2, "criterion": "taylor"}, "images: the criterion taylor needs some, got none"),
        ({"speedup": 2, "recalibrate_bn": True}, "recalibrate_bn: needs images"),
        ({"speedup": 2, "bias": "mean"}, "images: the means of dropped channels are taken from some, got none"),
        ({"speedup": 2, "images": images(1)}, "images: there must be at least 2, as one is held out, got 1"),
        ({"speedup": 2, "copuled": True}, "copuled: is no option of prune; did you mean coupled"),
        ({"speedup": 2, "criterion": "l3"}, "criterion: must be one of l1"),
        ({"speedup": 2, "skip": "conv9"}, "skip: must be a layer's name.*got 'conv9'; did you mean conv"),
    ],
)
def test_mistakes_are_told_in_the_words_of_python(options, message):
    with pytest.raises(UsageError, match=message):
        prune(block(), **options)


def test_a_speedup_out_of_reach_names_the_greatest():
    with pytest.raises(TargetError, match="at most .*x can be reached"):
        prune(block(), speedup=50)


def test_inference_mode_of_the_caller_does_not_forbid_the_derivatives_of_taylor():
    wanted, _ = prune(block(), images(), "taylor", ratio=0.5)
    with torch.inference_mode():
        network, _ = prune(block(), images(), "taylor", ratio=0.5)
    assert torch.equal(network.conv1.weight, wanted.conv1.weight)


def test_notes_name_arguments_and_no_options():
    notes = "\n".join(prune(block(), ratio=0.5)[1].notes)
    assert "a sum joins 2 layers; coupled prunes them together" in notes and "--" not in notes


def test_no_channel_to_remove_has_a_way_out_for_each_cause(tmp_path):
    with pytest.raises(TargetError, match="skip fewer layers"):
        prune(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), ratio=0.5, skip="*")
    write_plan(tmp_path / "prune.json", PruningPlan({}, {}))
    with pytest.raises(TargetError, match="keep: the plan must list channel spaces that lose channels, got none"):
        prune(block(), keep=tmp_path / "prune.json")


def test_held_out_images_are_drawn_and_not_the_last_ones_which_may_be_of_one_class(monkeypatch):
    given, seen = images(), []

    def spy(part, fitted, n, *others):
        seen.append(part(fitted, n))
        return batched(part, fitted, n, *others)

    batched = prune_network.batched
    monkeypatch.setattr(prune_network, "batched", spy)
    prune(block(), given, "mean-std", ratio=0.25, outputs="scores")
    places = [next(i for i, image in enumerate(given) if torch.equal(image, one)) for one in seen[0]]
    assert len(places) == 6 and min(places) < 54
