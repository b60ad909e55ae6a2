"""A branch that is removed gives what its last layer masked to zero gives; its constant goes into the shortcut."""

from collections import OrderedDict

import pytest
import torch
from networks import randomise
from preactivation import SHAPE, Bottleneck, Plain, images, preactivation
from torch import nn

import decomp
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.graph.branches import residual_branches
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.pipelines.console.reporter import Reporter
from decomp.pipelines.pruning.emission import emit
from decomp.pipelines.pruning.plan_file import PruningPlan, prune_options
from decomp.pipelines.pruning.removal import remove
from decomp.pipelines.pruning.unfolded import folded_copy, unfolded
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.residual_branches import cut_branches, move_constant, removable, remove_branches


class Basic(nn.Module):
    """conv-BN-ReLU-conv-BN, added in place to the input or its projection, and a ReLU in place."""

    def __init__(self, n_in, n_out, stride=1, bias=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=bias), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=bias), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=bias), nn.BatchNorm2d(n_out))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def basic(bias=False):
    parts = [("stem", nn.Conv2d(3, 8, 3, padding=1)), ("relu", nn.ReLU(inplace=True)), ("a", Basic(8, 8, bias=bias)),
             ("b", Basic(8, 12, 2, bias)), ("c", Basic(12, 12, bias=bias)), ("pool", nn.AdaptiveAvgPool2d(1)),
             ("flatten", nn.Flatten()), ("fc", nn.Linear(12, 5))]  # fmt: skip
    return randomise(nn.Sequential(OrderedDict(parts))).eval()


def pruned(network, given=None, **options):
    source = unfolded(network, "net", SHAPE)
    chosen = prune_options(given, **options)
    return source, remove(source, chosen, given, device=torch.device("cpu"), reporter=Reporter(quiet=True))


def masked(network, *paths):
    """The network with the last layers of branches, biases and normalisations set to zero."""
    copy = unfolded(network, "net", SHAPE).network
    with torch.no_grad():
        for path in paths:
            for parameter in copy.get_submodule(path).parameters():
                parameter.zero_()
    return copy


CASES = {
    "identity": (basic, "a.conv1", ["a.bn2"]),
    "projection": (basic, "b.conv1", ["b.bn2"]),
    "with biases": (lambda: basic(True), "a.conv1", ["a.conv2", "a.bn2"]),
    "pre-activation": (lambda: preactivation(Bottleneck(), Plain(64)), "block1.conv1", ["block1.conv2"]),
    "pre-activation, projection": (lambda: preactivation(Bottleneck(), Plain(64)), "block0.conv2", ["block0.conv3"]),
}


@pytest.mark.parametrize("name", CASES)
def test_removed_is_the_last_layer_masked_to_zero_and_costs_what_is_planned(name, tmp_path):
    make, space, last = CASES[name]
    network = make().eval()
    width = network.get_submodule(space).out_channels
    source, made = pruned(network, PruningPlan({space: []}, {space: width}), bias="none")
    torch.testing.assert_close(made.network(images()), masked(network, *last)(images()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made.network(images()), network(images()), atol=1e-2)
    after = cost(folded_copy(made.network), SHAPE)
    assert (made.planned.macs, made.planned.params) == (after.macs, after.params)
    branch = last[-1].rpartition(".")[0]
    gone = sum(n for path, n in made.before.per_layer.items() if path.startswith(f"{branch}.conv"))
    assert after.macs == made.before.macs - gone and gone > 0
    _, verified = emit(source, made.network, tmp_path / "net", changed=made.changed, planned=made.planned, meta={})
    assert verified.into is True
    alone = decomp.load(tmp_path / "net")
    torch.testing.assert_close(alone(images()), masked(network, *last)(images()), rtol=1e-5, atol=1e-5)
    into = network_file.load(tmp_path / "net" / "with_batchnorm", into=make()) if source.normalised else alone
    torch.testing.assert_close(into(images()), alone(images()), rtol=1e-4, atol=1e-5)


def test_the_constant_of_a_branch_goes_into_its_projection_exactly():
    network = basic(True)
    with torch.no_grad():
        network.b.bn1.weight.zero_()
        network.b.bn1.bias.fill_(-1.0)  # behind the ReLU nothing is left but the bias and shift of the last layer
    _, made = pruned(network, PruningPlan({"b.conv1": []}, {"b.conv1": 12}))
    torch.testing.assert_close(made.network(images()), network(images()), rtol=1e-5, atol=1e-5)
    assert "constants of removed branches moved into b.downsample.1" in made.notes
    with torch.no_grad():
        network.b.bn1.bias.fill_(1.0)
    _, bordered = pruned(network, PruningPlan({"b.conv1": []}, {"b.conv1": 12}))
    assert "not exact for b.bn2: zero padding at the borders makes other values" in bordered.notes


def test_a_constant_without_a_layer_that_could_take_it_is_told():
    network = basic()
    _, made = pruned(network, PruningPlan({"a.conv1": []}, {"a.conv1": 8}))
    bn = network.a.bn2
    lost = (bn.bias - bn.weight * bn.running_mean / (bn.running_var + bn.eps).sqrt()).abs().max().item()
    assert f"a.bn2 also gave a constant of at most {lost:.2g}, which is lost: no layer ends its shortcut" in (
        made.notes
    )


def test_branches_go_by_scale_factors_only_when_they_may():
    network = preactivation(Bottleneck(), Plain(64))
    with torch.no_grad():
        network.block1.bn2.weight.mul_(1e-4)
    options = {"criterion": "bn-scale", "ratio": 0.3, "bias": "none"}
    _, floored = pruned(network, **options)
    assert len(floored.keep["block1.conv1"]) == 7 and all(floored.keep.values())  # a tenth of 64
    assert any("block1.conv1 (with --remove-branches the branches of block1.conv1 could" in n for n in floored.notes)
    _, made = pruned(network, remove_branches=True, **options)
    assert made.keep["block1.conv1"] == [] and "block1.bn1.select" not in made.keep
    assert type(made.network.get_submodule("block1.bn1")).__name__ == "Zeros"
    assert any(
        note.startswith("branches removed as a whole, by their last layers: block1.conv2;") for note in made.notes
    )
    with torch.no_grad():
        network.block1.conv2.weight.zero_()
    kept = PruningPlan(
        {k: v for k, v in made.keep.items() if v}, {k: made.widths[k] for k, v in made.keep.items() if v}
    )
    _, other = pruned(network, kept, bias="none")
    torch.testing.assert_close(made.network(images()), other.network(images()), rtol=1e-5, atol=1e-5)


def test_a_speedup_counts_removed_branches():
    network = basic()
    _, made = pruned(network, speedup=9, remove_branches=True, ranking="global")
    after = cost(folded_copy(made.network), SHAPE)
    assert made.planned.macs == after.macs and made.before.macs / after.macs >= 9
    assert [] in made.keep.values()
    with pytest.raises(decomp.errors.TargetError, match="at most 4.42x.* or give --remove-branches"):
        pruned(network, speedup=9, ranking="global")


def test_a_network_without_a_branch_is_pruned_again_in_its_stream():
    _, made = pruned(basic(), PruningPlan({"c.conv1": []}, {"c.conv1": 12}), bias="none")
    again = unfolded(made.network, "net", SHAPE)
    assert not any(space.frozen for space in again.graph.spaces.all if "c." in "".join(space.carriers))
    half = remove(
        again, prune_options(ratio=0.5, coupled=True), device=torch.device("cpu"), reporter=Reporter(quiet=True)
    )
    assert half.network.get_submodule("c.bn2").out_channels == 6 and half.network(images()).shape == (3, 5)


class Two(nn.Module):
    """Two branches added to each other; and one that ends in a sigmoid, which is not zero at zero."""

    def __init__(self, sigmoid):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.sigmoid, self.fc = sigmoid, nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.b(torch.relu(self.a(x)))
        x = x + torch.sigmoid(y) if self.sigmoid else y + self.d(torch.relu(self.c(x)))
        return self.fc(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("sigmoid", [True, False])
def test_only_a_branch_beside_a_shortcut_that_is_zero_at_zero_can_go(sigmoid):
    graph = NetworkGraph(trace(randomise(Two(sigmoid)).eval()), SHAPE)
    assert removable(graph, residual_branches(graph)) == []
    plan = PruningPlan({"a": []}, {"a": 8})
    with pytest.raises(decomp.errors.TargetError, match="a must keep a channel: it is not inside a residual branch"):
        pruned(randomise(Two(sigmoid)).eval(), plan)


def cut(network, *names):
    traced = trace(network.eval(), "net", (), SHAPE)
    graph = NetworkGraph(traced, SHAPE)
    branches = [branch for branch in removable(graph, residual_branches(graph)) if branch.name in names]
    assert [branch.name for branch in branches] == list(names)
    return traced, branches, cut_branches(traced, branches)


CUT = {
    "identity": (basic, ["a.bn2"]),
    "projection": (basic, ["b.bn2"]),
    "neighbours": (basic, ["a.bn2", "b.bn2", "c.bn2"]),
    "pre-activation": (lambda: preactivation(Plain(16), Plain(16), Plain(16)), ["block0.conv2", "block1.conv2"]),
}


@pytest.mark.parametrize("name", CUT)
def test_a_branch_that_is_cut_gives_what_zeros_in_its_place_give_and_nothing_of_it_is_left(name):
    make, names = CUT[name]
    network = make()
    traced, branches, made = cut(network, *names)
    zeros = trace(network, "net", (), SHAPE)
    remove_branches(zeros, dict.fromkeys(path for branch in branches for path in branch.layers))
    with torch.no_grad():
        assert torch.equal(made(images()), zeros(images()))
        assert torch.equal(traced(images()), network(images()))  # the network itself is not changed
    gone = {path for branch in branches for path in branch.layers}
    assert gone.isdisjoint(dict(made.named_modules())) and gone == set(made.meta["left_out"])
    assert len(made.graph.nodes) < len(traced.graph.nodes) and made.training is False
    before, after = cost(traced, SHAPE), cost(made, SHAPE)
    assert after.macs == before.macs - sum(n for path, n in before.per_layer.items() if path in gone)
    assert sum(p.numel() for p in made.parameters()) == sum(
        p.numel() for path, p in traced.named_parameters() if path.rpartition(".")[0] not in gone
    )


def test_a_relu_behind_the_sum_goes_where_the_shortcut_ends_in_one_and_stays_behind_a_projection():
    def relus(network):
        return sum(node.op == "call_module" and "relu" in str(node.target) for node in network.graph.nodes)

    traced, _, made = cut(basic(), "a.bn2")
    assert relus(traced) - relus(made) == 2  # inside the branch, and behind the sum
    traced, _, made = cut(basic(), "b.bn2")
    assert relus(traced) - relus(made) == 1


def test_a_network_without_a_branch_goes_to_files_and_back_and_into_its_class(tmp_path):
    network = basic()
    traced, _, made = cut(network, "a.bn2")
    folder = network_file.save(made, tmp_path / "net", edited=list(made.meta["left_out"]), input_shape=SHAPE)
    alone, into = decomp.load(folder), decomp.load(folder, into=basic())
    assert torch.equal(alone(images()), made(images())) and "a.conv1" not in dict(alone.named_modules())
    torch.testing.assert_close(into(images()), made(images()), rtol=1e-6, atol=1e-6)
    assert type(into.a.conv1).__name__ == "Zeros"
    again = network_file.save(alone, tmp_path / "again", edited=list(made.meta["left_out"]), input_shape=SHAPE)
    assert network_file.read_structure(again)["edits"] == network_file.read_structure(folder)["edits"]
    saved = decomp.save(into, tmp_path / "from_class")
    assert torch.equal(decomp.load(saved)(images()), made(images()))


def test_what_was_cut_before_and_normalisations_that_were_folded_are_told_too():
    traced = trace(basic().eval(), "net", (), SHAPE)
    fold_bn(traced)
    blocks = {branch.name: branch for branch in residual_branches(NetworkGraph(traced, SHAPE))}
    one = cut_branches(traced, [blocks["a.conv2"]])
    assert set(one.meta["left_out"]) == {f"a.{part}" for part in ("conv1", "bn1", "conv2", "bn2")}
    later = {branch.name: branch for branch in residual_branches(NetworkGraph(one, SHAPE))}
    both = cut_branches(one, [later["c.conv2"]])
    assert both.meta["left_out"] == cut_branches(traced, [blocks["a.conv2"], blocks["c.conv2"]]).meta["left_out"]
    assert set(both.meta["left_out"]) == {f"{block}.{p}" for block in "ac" for p in ("conv1", "bn1", "conv2", "bn2")}


class Projected(nn.Module):
    """Two blocks of 1×1 convolutions, with a projection each or one that both share."""

    def __init__(self, shared):
        super().__init__()
        self.stem, self.p, self.q = (nn.Conv2d(c, 4, 1) for c in (3, 4, 4))
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.fc, self.shared = nn.Linear(4, 5), shared

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.p(x) + self.b(torch.relu(self.a(x))))
        y = self.p(x) if self.shared else self.q(x)
        return self.fc((y + self.d(torch.relu(self.c(x)))).mean((2, 3)))


@pytest.mark.parametrize("shared", [False, True])
def test_only_a_projection_of_one_addition_takes_over_a_constant_and_means_count_where_asked_for(shared):
    for means in (False, True):
        network = trace(randomise(Projected(shared)).eval(), "net", (), SHAPE)
        graph, batch = NetworkGraph(network, SHAPE), images()
        branch = next(branch for branch in residual_branches(graph) if branch.name == "b")
        with torch.no_grad():
            inner = torch.relu(network.a(torch.relu(network.stem(batch)))).mean((0, 2, 3)) * means
            wanted, before = network.b.weight[:, :, 0, 0] @ inner + network.b.bias, network.p.bias.clone()
        found = move_constant(network, graph, branch, "a", batch, means=means)
        assert found.layer == (None if shared else "p") and found.exact
        torch.testing.assert_close(network.p.bias - before, torch.zeros(4) if shared else wanted, rtol=1e-4, atol=1e-5)
        assert found.largest == pytest.approx(float(wanted.abs().max()), rel=1e-4)
