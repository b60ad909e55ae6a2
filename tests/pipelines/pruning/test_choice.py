"""Choice of channels by the options: which spaces, how many channels, and the reasons for the others."""

import pytest
import torch
from networks import block
from small_graphs import INPUT, make

from decomp.cost.count import cost
from decomp.errors import TargetError, UsageError
from decomp.execution.output_change import Outputs
from decomp.pipelines.pruning.choice import Images, choose, counted_cost, matching, score_spaces
from decomp.pipelines.pruning.plan_file import prune_options
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded


@pytest.fixture(scope="module")
def source():
    return unfolded(block(), "block", (3, 8, 8))


def chosen(source, images=None, **options):
    folded = folded_copy(source.network)
    before = cost(folded, source.graph.input_shape)
    return choose(
        source, prune_options(**options), images, lambda keep: counted_cost(source.graph, folded, keep, before).macs,
        before.macs,
    )  # fmt: skip


def test_inner_channels_go_and_sums_stay_unless_coupled(source):
    alone = chosen(source, ratio=0.5)
    assert {name: len(places) for name, places in alone.keep.items()} == {"conv1": 6}
    assert "a sum joins 2 layers; --coupled prunes them together" in alone.left_alone["stem"]
    assert alone.left_alone["head"] == "it is the network's output"
    both = chosen(source, ratio=0.5, coupled=True)
    assert {name: len(places) for name, places in both.keep.items()} == {"stem": 4, "conv1": 6}


def test_the_filters_with_the_largest_norms_stay_in_ascending_order(source):
    norms = source.network.get_submodule("conv1").weight.detach().abs().sum((1, 2, 3))
    expected = sorted(norms.argsort(descending=True)[:9].tolist())
    assert chosen(source, ratio=0.25).keep == {"conv1": expected}


def test_greedy_scores_leave_out_kernels_of_removed_inputs():
    source = unfolded(make("dilated"), "dilated", INPUT)
    greedy, independent = (chosen(source, ratio=0.5, scoring=name).keep for name in ("greedy", "independent"))
    a = source.network.get_submodule("a.0").weight.detach()
    assert greedy["stem"] == independent["stem"]
    norms = a[:, greedy["stem"]].abs().sum((1, 2, 3))
    assert greedy["a.0"] == sorted(norms.argsort(descending=True)[:10].tolist())
    assert greedy["a.0"] != independent["a.0"] and len(greedy["a.0"]) == len(independent["a.0"])


def test_a_speedup_is_met_with_as_many_channels_as_it_allows(source):
    folded, graph = folded_copy(source.network), source.graph
    before = cost(folded, graph.input_shape)
    keep = chosen(source, speedup=1.3).keep
    more = {"conv1": sorted({*range(12)})[: len(keep["conv1"]) + 1]}
    assert before.macs / counted_cost(graph, folded, keep, before).macs >= 1.3
    assert before.macs / counted_cost(graph, folded, more, before).macs < 1.3
    with pytest.raises(TargetError, match="--speedup: at most .*x can be reached.*or less, or give --coupled"):
        chosen(source, speedup=9)
    with pytest.raises(TargetError, match=r"at most .*x can be reached.* or less\.$"):
        chosen(source, speedup=99, coupled=True)


def test_skipped_layers_keep_their_filters_and_a_name_that_is_none_names_the_nearest(source):
    left = chosen(source, ratio=0.5, coupled=True, skip=("conv1",))
    assert set(left.keep) == {"stem"} and left.left_alone["conv1"] == "conv1 is skipped"
    assert matching(source.graph, ["conv*"]) == {"conv1", "conv2"}
    with pytest.raises(UsageError, match="--skip: must be a layer's name.*did you mean conv1"):
        matching(source.graph, ["convv1"])


def test_limits_of_a_layer_are_kept_and_told(source):
    found = chosen(source, ratio=0.9, floor=0.5)
    assert len(found.keep["conv1"]) == 6 and found.limited == ("conv1",)


def test_criteria_without_what_they_need_are_refused(source):
    with pytest.raises(UsageError, match="mean-l1 looks at the network's values on images, and there are none"):
        chosen(source, ratio=0.5, criterion="mean-l1")
    with pytest.raises(UsageError, match="bn-scale compares the scale factors of batch normalisations"):
        chosen(unfolded(make("twice"), "twice", INPUT), ratio=0.5, criterion="bn-scale")


def test_spaces_without_scale_factors_keep_their_channels_under_bn_scale():
    left = chosen(unfolded(make("dilated"), "dilated", INPUT), ratio=0.5, criterion="bn-scale").left_alone
    assert left["stem"] == "it has no batch normalisation with scale factors"


def test_images_reach_the_criterion(source):
    batches = [torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]
    images = Images(lambda: iter(batches), lambda: iter(()), Outputs(()), lambda output, labels: output.sum())
    scores = score_spaces(source, prune_options(ratio=0.5, criterion="mean-mean"), images).scores["conv1"]
    with torch.no_grad():
        inner = source.network.get_submodule("conv1")(
            torch.relu(source.network.get_submodule("stem")(torch.cat(batches)))
        )
    torch.testing.assert_close(scores, inner.mean((0, 2, 3)).double(), rtol=1e-5, atol=1e-6)
