"""Masked and shrunk networks agree, on the small graphs and on random ones."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import randomise
from small_graphs import GRAPHS, INPUT, make
from torch import nn
from torch.nn import functional as F

from decomp.cost.count import cost
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.narrow_module import narrow_carrier
from decomp.surgery.narrow_network import mask, shrink, shrunk_macs, shrunk_params


def images(shape=INPUT, n=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def draw_keep(spaces, generator, share=None):
    """For every space that may be narrowed, some of its channels."""
    keep = {}
    for space in spaces.all:
        if space.frozen is None:
            count = int(torch.randint(1, space.width + 1, (), generator=generator))
            count = count if share is None else max(1, int(space.width * share))
            keep[space.name] = torch.randperm(space.width, generator=generator)[:count].sort().values.tolist()
    return keep


def check_agreement(module, shape, keep_of):
    """Mask, shrink and the formula of the cost against each other; gives the two costs."""
    network = trace(module)
    spaces = NetworkGraph(network, shape).spaces
    keep, x = keep_of(spaces), images(shape)
    masked, small = copy.deepcopy(network), copy.deepcopy(network)
    assert set(mask(masked, spaces, keep)) == set(shrink(small, spaces, keep))
    with torch.no_grad():
        wanted, got = masked(x), small(x)
    assert torch.isfinite(got).all() and got.shape == network(x).shape
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1.0)
    before, after = cost(network, shape), cost(small, shape)
    assert after.macs == shrunk_macs(spaces, keep, before.per_layer)
    return before.macs, after.macs


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("seed", range(3))
def test_small_graphs_masked_and_shrunk_agree(name, seed):
    generator = torch.Generator().manual_seed(seed)
    check_agreement(make(name, seed), INPUT, lambda spaces: draw_keep(spaces, generator))


@pytest.mark.parametrize("name", GRAPHS)
def test_small_graphs_get_cheaper_by_half_of_their_channels(name):
    before, after = check_agreement(make(name), INPUT, lambda s: draw_keep(s, torch.Generator(), 0.5))
    # Channels that are shuffled keep their number; all others halve what reads and what writes them.
    assert after < (0.95 if name == "shuffle" else 0.6) * before


@pytest.mark.parametrize("name", GRAPHS)
def test_keeping_everything_changes_nothing(name):
    network = trace(make(name))
    before = copy.deepcopy(network.state_dict())
    spaces = NetworkGraph(network, INPUT).spaces
    assert shrink(network, spaces, {s.name: range(s.width) for s in spaces.all if s.frozen is None}) == []
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Random(nn.Module):
    """A network drawn step by step: each step takes one or two earlier values and gives another."""

    def __init__(self, steps, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.steps, widths, self.layers = [], [3], nn.ModuleList()

        def draw(limit):
            return int(torch.randint(limit, (), generator=generator))

        for kind in ["conv", *steps]:
            a = draw(len(widths)) if self.steps else 0
            b, c = draw(len(widths)), widths[a]
            layer, width = nn.Identity(), c
            if kind == "conv":
                width = 4 * (1 + draw(3))
                layer = nn.Conv2d(c, width, 3, padding=1, bias=bool(draw(2)))
            elif kind == "grouped" and c % 4 == 0:
                layer, width = nn.Conv2d(c, 2 * c, 1, groups=4), 2 * c
            elif kind == "depthwise":
                layer = nn.Conv2d(c, c, 3, padding=1, groups=c)
            elif kind == "transposed":
                layer, width = nn.ConvTranspose2d(c, 8, 3, padding=1), 8
            elif kind == "norm":
                layer = nn.BatchNorm2d(c, affine=bool(draw(2)))
            elif kind == "prelu":
                layer = nn.PReLU(c)
            elif kind in ("add", "mul"):
                same = [i for i, w in enumerate(widths) if w == c and i > 0]
                b = same[draw(len(same))] if same else a
            elif kind == "cat":
                width = c + widths[b]
            elif kind == "chunk" and c % 2:
                kind = "sigmoid"
            self.steps.append((kind, a, b))
            self.layers.append(layer)
            widths.append(width)
        self.head = nn.Linear(sum(widths[1:]), 3)

    def forward(self, x):
        values = [x]
        for (kind, a, b), layer in zip(self.steps, self.layers):
            value, other = values[a], values[b]
            if kind == "add":
                value = value + other
            elif kind == "mul":
                value = value * torch.sigmoid(other.mean((2, 3), keepdim=True))
            elif kind == "cat":
                value = torch.cat([value, other], 1)
            elif kind == "sigmoid":
                value = F.softplus(value)
            elif kind == "chunk":
                left, right = value.chunk(2, 1)
                value = torch.cat([right, left], 1)
            else:
                value = layer(value)
            values.append(value)
        return self.head(torch.cat([F.adaptive_avg_pool2d(v, 1).flatten(1) for v in values[1:]], 1))


KINDS = ("conv", "grouped", "depthwise", "transposed", "norm", "prelu", "add", "mul", "cat", "sigmoid", "chunk")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.sampled_from(KINDS), max_size=12), seed=st.integers(0, 10**6))
def test_random_graphs_masked_and_shrunk_agree(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    module = randomise(Random(steps, seed), seed)
    check_agreement(module, (3, 6, 6), lambda spaces: draw_keep(spaces, generator))


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("folded", [False, True])
def test_the_formula_of_parameters_counts_those_of_the_shrunk_network(name, folded):
    network = trace(make(name))
    if folded:
        fold_bn(network)
    spaces = NetworkGraph(network, INPUT).spaces
    keep = draw_keep(spaces, torch.Generator().manual_seed(3))
    wanted = shrunk_params(network, spaces, keep)
    shrink(network, spaces, keep)
    assert sum(p.numel() for p in network.parameters()) == wanted


@pytest.mark.parametrize("also", [(), ("2",)])
def test_a_parameter_of_several_layers_counts_for_each_that_gets_a_part_of_it(also):
    network = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 6, 6, 3) for i in range(4)))
    network[2].weight = network[1].weight
    graph = NetworkGraph(trace(network), (3, 12, 12))
    keep = {"0": [0, 1, 4], **{name: [2, 3] for name in also}}
    wanted = shrunk_params(graph.module, graph.spaces, keep)
    shrink(graph.module, graph.spaces, keep)
    assert sum(p.numel() for p in graph.module.parameters()) == wanted


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("folded", [False, True])
def test_a_masked_layer_has_no_bias_and_a_masked_normalisation_neither_scale_nor_shift(name, folded):
    """A bias that stays would make the masked network another one than the smaller network."""
    network = trace(make(name))
    if folded:
        fold_bn(network)
    spaces = NetworkGraph(network, INPUT).spaces
    keep = draw_keep(spaces, torch.Generator().manual_seed(7))
    alive = spaces.alive(keep)
    mask(network, spaces, keep)
    seen = 0
    for use in spaces.uses:
        module, gone = network.get_submodule(use.path), torch.from_numpy(~alive[use.writes])
        if isinstance(module, nn.PReLU) or not gone.any():
            continue
        numbers = [module.bias] if module.bias is not None else []
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            numbers.append(module.weight)
        assert all((tensor[gone] == 0).all() for tensor in numbers)
        seen += len(numbers)
    assert seen or name == "shuffle"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Softplus, nn.GELU, nn.Hardswish])
def test_masked_and_shrunk_agree_behind_activations_that_shift_zero(activation, bias):
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 6, 3, padding=1, bias=bias),
        activation(), nn.Flatten(), nn.Linear(6 * 16, 5, bias=bias), nn.BatchNorm1d(5), activation(), nn.Linear(5, 3),
    )  # fmt: skip
    check_agreement(randomise(module), (3, 6, 6), lambda s: draw_keep(s, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine, tracked", [(True, True), (False, True), (True, False)])
def test_a_narrowed_normalisation_keeps_its_statistics_and_their_type(dtype, affine, tracked):
    norm = nn.BatchNorm2d(6, momentum=None, affine=affine, track_running_stats=tracked, dtype=dtype)
    norm.train()(torch.randn(4, 6, 3, 3, dtype=dtype))
    small = narrow_carrier(norm.eval(), torch.tensor([1, 4]), 6)
    assert set(small.state_dict()) == set(norm.state_dict())
    for name, value in small.state_dict().items():
        wanted = norm.state_dict()[name]
        assert value.dtype == wanted.dtype and torch.equal(value, wanted[[1, 4]] if wanted.dim() else wanted)
    assert small.momentum is None and not small.training
    assert not tracked or int(small.num_batches_tracked) == 1


class OutOfOrder(nn.Module):
    """Layers declared in another order than they are called, under names that say nothing, one of them held twice."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.conv3, self.conv1 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(3, 8, 3)
        self.again, self.conv2 = self.conv3, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.fc(torch.relu(self.again(torch.relu(self.conv2(torch.relu(self.conv1(x)))))).mean((2, 3)))


class Doubled(nn.Module):
    """The same tensor concatenated twice, a map of one channel that scales all, and convolutions of one channel."""

    def __init__(self):
        super().__init__()
        self.a, self.one, self.own = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 1, 3, padding=1)
        self.b, self.c = nn.Conv2d(12, 5, 1), nn.Conv2d(5, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = x * torch.sigmoid(self.own(self.one(x)))
        return self.c(torch.relu(self.b(torch.cat([x, x], 1)))).mean((2, 3))


@pytest.mark.parametrize("network", [OutOfOrder, Doubled])
def test_the_graph_decides_what_goes_not_places_and_names_of_modules(network):
    module = randomise(network())
    before = copy.deepcopy(module.state_dict())
    for seed in range(3):
        check_agreement(module, INPUT, lambda s: draw_keep(s, torch.Generator().manual_seed(seed)))  # noqa: B023
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    spaces = NetworkGraph(trace(module), INPUT).spaces
    widths = {space.name: space.width for space in spaces.all if space.frozen is None}
    wanted = {"conv1": 8, "conv2": 8, "conv3": 6} if network is OutOfOrder else {"a": 6, "one": 1, "own": 1, "b": 5}
    assert widths == wanted
