"""Families of networks: exact at full size, planned cost at 2x, equal outputs after loading."""

import pytest
import torch
from small_graphs import GRAPHS, INPUT, make
from torchvision import models

from benchmarks import coverage
from benchmarks.coverage_networks import TIMM
from decomp.cost.count import cost
from decomp.errors import TargetError
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.plan_file import prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded

UNMARKED = ("squeezenet1_1", "resnet18", "mobilenet_v2", "regnet_x_400mf")
SLOW = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "googlenet", "inception_v3", "efficientnet_b0",
        "mnasnet0_5", "regnet_y_400mf", "resnext50_32x4d", "vgg11_bn", "resnet152", "densenet201")  # fmt: skip


@pytest.mark.parametrize("name", [*UNMARKED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_families_of_networks(name):
    row = coverage.run_one(name)
    assert "refused" not in row and "failed" not in row
    assert row["exact"] < coverage.TOLERANCE
    assert 2 <= row["speedup"] <= 2 / 0.98 and row["as_planned"] and row["loads"]


# Networks with most of their cost outside of convolution modules.
OTHERWISE = ("nfnet_l0", "vit_tiny_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name):
    pytest.importorskip("timm", reason="timm is not installed: its networks are skipped")
    row = coverage.run_one(f"timm:{name}")
    assert row["exact"] < coverage.TOLERANCE and row["as_planned"] and row["loads"]
    assert row["speedup"] >= (1.02 if name in OTHERWISE else 2)


# Graphs in which an unsupported layer has more than half of the cost: a speed-up that can be reached.
LESS = {"grouped": 1.8, "twice": 1.5}


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_are_exact_at_full_size_and_cheaper_at_2x_or_say_why_not(name, monkeypatch):
    monkeypatch.setattr(coverage, "build", lambda name: (make(name), INPUT))
    monkeypatch.setattr(coverage, "loads_elsewhere", lambda *a: True)
    row = coverage.run_one(name)
    assert row["exact"] < coverage.TOLERANCE
    if row["most"] < 2:
        assert name in LESS and "at most: what can be fitted is" in coverage.table([row], [name])
        row = coverage.run_one(name, LESS[name])
    assert row["as_planned"] and row["speedup"] >= (LESS[name] if name in LESS else 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "vit_b_32", "convnext_tiny"])
def test_transformers_say_that_their_cost_does_not_lie_in_convolutions(name):
    row = coverage.run_one(name)
    assert row["exact"] < coverage.TOLERANCE and row["as_planned"] and row["loads"]
    assert 1 <= row["speedup"] < 1.1 and "at most: what can be fitted is" in coverage.table([row], [name])


# Their convolutions write values whose axes forward exchanges or reshapes to fixed sizes, so no channel can go.
WITHOUT_CHANNELS_TO_PRUNE = ("convnext", "swin", "vit_")
OUT_OF_REACH = ("maxvit_t",)  # most of its cost lies in attention
SAMPLE = ("squeezenet1_1",)


@pytest.mark.parametrize(
    "name",
    [*SAMPLE, *(pytest.param(n, marks=pytest.mark.slow) for n in models.list_models(module=models) if n not in SAMPLE)],
)
def test_classifiers_of_torchvision_are_pruned_to_half_their_cost_or_refused_with_the_reason(name):
    network, shape = coverage.build(name)
    source = unfolded(network, name, shape)
    quiet = Reporter(quiet=True)
    if name.startswith(WITHOUT_CHANNELS_TO_PRUNE):
        with pytest.raises(TargetError, match="no channel of this network can be removed, got .*: it "):
            remove(source, prune_options(speedup=2), device=torch.device("cpu"), reporter=quiet)
        return
    if name in OUT_OF_REACH:
        with pytest.raises(TargetError, match=r"at most 1\.\d+x can be reached"):
            remove(source, prune_options(speedup=2), device=torch.device("cpu"), reporter=quiet)
        return
    made = remove(source, prune_options(criterion="l1", speedup=2), device=torch.device("cpu"), reporter=quiet)
    folded = folded_copy(made.network)
    after = cost(folded, shape)
    assert (after.macs, after.params) == (made.planned.macs, made.planned.params)
    assert 2 <= made.before.macs / after.macs <= 2.2
    edited = [*source.network.meta["exchanged"], *(path for pair in source.normalised for path in pair), *made.changed]
    assert coverage.loads_elsewhere(folded, list(dict.fromkeys(edited)), shape, torch.randn(2, *shape))
