"""Scores of channel spaces: groups, shortcuts, earlier choices, and the needs of each criterion."""

import pytest
import torch
from networks import block, chain, randomise
from small_graphs import GRAPHS, INPUT, make
from torch import nn
from torch.nn import functional as F

from decomp.criteria.candidates import candidates
from decomp.criteria.gradients import own_output_loss
from decomp.criteria.names import CRITERIA, FILTER_CRITERIA, NEEDS
from decomp.criteria.scores import gather, scorable, score
from decomp.errors import NumericalError, UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink, shrunk_params


def images(shape=INPUT, n=4):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def graph_of(module, shape=INPUT):
    return NetworkGraph(trace(module), shape)


def scores_of(module, criterion, shape=INPUT, coupled=True):
    graph = graph_of(module, shape)
    names = scorable(graph.module, graph.spaces, candidates(graph.spaces, coupled=coupled), criterion)
    loss = own_output_loss(torch.Generator().manual_seed(0))
    evidence = gather(graph.module, graph.spaces, names, criterion, [images(shape)], loss)
    return graph, score(graph.module, graph.spaces, names, criterion, evidence=evidence)


def l1(weight):
    return weight.detach().double().abs().flatten(1).sum(1)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_criterion_gives_one_finite_number_per_channel_of_every_graph(name, criterion):
    module = make(name)
    if NEEDS[criterion] == "batchnorm" and name in ("twice", "viewed", "oblong", "dense"):
        if name != "dense":
            with pytest.raises(UsageError, match="bn-scale compares the scale factors"):
                scores_of(module, criterion)
            return
    graph, found = scores_of(module, criterion)
    assert found
    for space, values in found.items():
        assert values.dtype == torch.float64 and values.shape == (graph.spaces[space].width,)
        assert values.isfinite().all()
        # mean-std of a linear layer is 0 for all; otherwise channels differ.
        assert values.unique().numel() > 1 or criterion == "mean-std" or space == "excite"


def test_a_residual_stream_is_scored_over_all_layers_that_write_it():
    module = make("residual")
    _, found = scores_of(module, "l1")
    wanted = l1(module.stem.weight) + l1(module.b[0].weight) + l1(module.d[0].weight)
    torch.testing.assert_close(found["stem"], wanted)
    torch.testing.assert_close(found["a.0"], l1(module.a[0].weight))
    assert "stem" not in scores_of(module, "l1", coupled=False)[1]


def test_a_depthwise_convolution_counts_with_the_channels_that_it_carries():
    module = make("depthwise separable")
    _, found = scores_of(module, "l1")
    torch.testing.assert_close(found["expand.0"], l1(module.expand[0].weight) + l1(module.depthwise[0].weight))


def test_squeeze_and_excitation_is_scored_with_the_channels_that_it_scales():
    module = make("squeeze-excite")
    _, found = scores_of(module, "l1", coupled=False)
    torch.testing.assert_close(found["a.0"], l1(module.a[0].weight) + l1(module.excite.weight))


def test_groups_and_chunks_are_scored_as_a_whole():
    module = make("grouped")
    _, found = scores_of(module, "l1")
    wanted = (l1(module.a[0].weight) + l1(module.b[0].weight)).view(4, 6).sum(1)
    torch.testing.assert_close(found["a.0"], wanted)


class Projected(nn.Module):
    """A stage whose first block has a projection shortcut and whose second has none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 12, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 12, 1)
        self.c, self.d = nn.Conv2d(12, 9, 3, padding=1), nn.Conv2d(9, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))
        x = F.relu(x + self.d(F.relu(self.c(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("criterion", ["l1", "mean-l1"])
def test_the_projection_shortcut_decides_for_the_layers_that_are_added_to_it(criterion):
    module = randomise(Projected())
    graph, found = scores_of(module, criterion)
    if criterion == "l1":
        torch.testing.assert_close(found["b"], l1(module.shortcut.weight))
    else:
        with torch.no_grad():
            out = module.shortcut(F.relu(module.stem(images()))).double()
        torch.testing.assert_close(found["b"], out.abs().sum((2, 3)).mean(0))


def test_greedy_scores_leave_out_the_weights_of_removed_inputs():
    module = make("residual")
    graph = graph_of(module)
    stay = [0, 3, 4, 9]
    free = score(graph.module, graph.spaces, ["c.0"], "l1")["c.0"]
    greedy = score(graph.module, graph.spaces, ["c.0"], "l1", removed={"stem": stay})["c.0"]
    torch.testing.assert_close(greedy, l1(module.c[0].weight[:, stay]))
    torch.testing.assert_close(free, l1(module.c[0].weight))
    assert (greedy < free).all()


@pytest.mark.parametrize("criterion", FILTER_CRITERIA)
def test_greedy_scores_are_those_of_the_shrunk_network(criterion):
    for name in ("dense", "depthwise separable", "grouped", "viewed", "u-net"):
        graph = graph_of(make(name))
        names = candidates(graph.spaces, coupled=True)
        first, last = names[0], names[-1]
        keep = {first: list(range(0, graph.spaces[first].width, 2))}
        greedy = score(graph.module, graph.spaces, [last], criterion, removed=keep)[last]
        shrink(graph.module, graph.spaces, keep)
        small = NetworkGraph(graph.module, INPUT)
        torch.testing.assert_close(greedy, score(graph.module, small.spaces, [last], criterion)[last])


def test_scale_factors_are_read_from_the_normalisations_of_a_space():
    module = make("residual")
    with torch.no_grad():
        module.a[1].weight.neg_()
    _, found = scores_of(module, "bn-scale")
    torch.testing.assert_close(found["a.0"], module.a[1].weight.detach().abs().double())
    both = torch.stack([module.b[1].weight, module.d[1].weight]).detach().abs().double().mean(0)
    torch.testing.assert_close(found["stem"], both)


def test_scale_factors_behind_a_concatenation_go_to_the_spaces_that_it_joins():
    module = make("dense")
    _, found = scores_of(module, "bn-scale")
    gamma = module.b[1:].weight if isinstance(module.b, nn.Sequential) else module.b.weight
    gamma = gamma.detach().abs().double()
    torch.testing.assert_close(found["stem"], gamma[:16])
    torch.testing.assert_close(found["a"], gamma[16:])
    assert set(found) == {"stem", "a"}


def test_a_normalisation_behind_a_flatten_gives_a_channel_the_mean_over_its_pixels():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(4 * 9), nn.ReLU(), nn.Linear(36, 3))
    with torch.no_grad():
        module[2].weight.copy_(torch.arange(36.0))
    graph = graph_of(module.eval(), (3, 5, 5))
    found = score(graph.module, graph.spaces, ["0"], "bn-scale")["0"]
    assert found.tolist() == [4, 13, 22, 31]
    n = shrunk_params(graph.module, graph.spaces, {"0": [1, 3]})
    shrink(graph.module, graph.spaces, {"0": [1, 3]})
    assert sum(p.numel() for p in graph.module.parameters()) == n == 2 * 27 + 2 + 36 + 3 * 18 + 3


def test_a_normalisation_without_scale_factors_is_no_ground_for_a_choice():
    module = chain()  # its second normalisation has none
    graph = graph_of(module, (2, 12, 12))
    names = candidates(graph.spaces)
    found = scorable(graph.module, graph.spaces, names, "bn-scale")
    assert found == ["0", "13"] and set(found) < set(names)
    with pytest.raises(UsageError, match="scale factors of batch normalisations, and 8 have none"):
        score(graph.module, graph.spaces, ["8"], "bn-scale")


def test_random_scores_depend_on_the_seed_and_the_space_alone():
    graph = graph_of(block(), (3, 8, 8))
    one = score(graph.module, graph.spaces, ["conv1", "stem"], "random", seed=1)
    two = score(graph.module, graph.spaces, ["stem"], "random", seed=1)
    three = score(graph.module, graph.spaces, ["stem"], "random", seed=2)
    assert torch.equal(one["stem"], two["stem"]) and not torch.equal(one["stem"], three["stem"])


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if NEEDS[name] in ("images", "loss")])
def test_a_criterion_without_the_images_that_it_needs_is_refused(criterion):
    graph = graph_of(block(), (3, 8, 8))
    line = f"criterion: {criterion} looks at the network's values on images, and there are none; give images, or take "
    with pytest.raises(UsageError, match=line):
        gather(graph.module, graph.spaces, ["conv1"], criterion)
    with pytest.raises(UsageError, match=line):
        score(graph.module, graph.spaces, ["conv1"], criterion)


def test_an_unknown_criterion_is_named():
    graph = graph_of(block(), (3, 8, 8))
    with pytest.raises(UsageError, match="criterion: must be one of l1, .*got 'l3'; did you mean l"):
        score(graph.module, graph.spaces, ["conv1"], "l3")


def test_weights_that_are_no_numbers_are_refused():
    graph = graph_of(block(), (3, 8, 8))
    with torch.no_grad():
        graph.module.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="conv1: the numbers of criterion l1 must be finite"):
        score(graph.module, graph.spaces, ["conv1"], "l1")
