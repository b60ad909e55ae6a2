"""First-order changes of the loss against the weights' own derivatives and against removal."""

import copy

import pytest
import torch
from networks import block
from small_graphs import GRAPHS, INPUT, make
from torch.nn import functional as F

from decomp.criteria.candidates import candidates
from decomp.criteria.gradients import own_output_loss, taylor
from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import mask


def label_loss(output, labels):
    """Cross-entropy of class scores, summed over the images."""
    return F.cross_entropy(output, labels, reduction="sum")


def images(shape=INPUT, n=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def graph_of(name):
    graph = NetworkGraph(trace(make(name)), INPUT)
    return graph, candidates(graph.spaces, coupled=True)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_change_is_that_of_fading_out_the_weights_that_read_a_channel(name):
    """Σ weight · derivative over the columns that read a channel is the same number, from the other side."""
    graph, names = graph_of(name)
    labels = torch.tensor([2])
    found = taylor(graph.module, graph.spaces, names, [(images(), labels)], label_loss)
    label_loss(graph.module(images()), labels).backward()
    for space in (graph.spaces[name] for name in names):
        change = torch.zeros(space.width, dtype=torch.float64)
        for path in space.consumers:
            use, module = graph.spaces.use(path), graph.module.get_submodule(path)
            if use.grouped:
                return  # a grouped layer's weight has no column for each channel
            products = (module.weight.detach() * module.weight.grad).double()
            axis = 0 if type(module).__name__ == "ConvTranspose2d" else 1
            sums = products.transpose(0, axis).flatten(1).sum(1)
            for column, root in enumerate(graph.spaces.roots_of(use.reads).tolist()):
                if root in space.roots.tolist():
                    change[space.roots.tolist().index(root)] += sums[column]
        torch.testing.assert_close(found[space.name], change.square(), rtol=1e-3, atol=1e-9)


def test_images_count_each_by_itself():
    graph, names = graph_of("residual")
    x, labels = images(n=6), torch.tensor([0, 1, 2, 3, 4, 0])
    together = taylor(graph.module, graph.spaces, names, [(x, labels)], label_loss)
    single = taylor(graph.module, graph.spaces, names, zip(x.split(1), labels.split(1)), label_loss)
    for name in names:
        torch.testing.assert_close(together[name], single[name], rtol=1e-4, atol=1e-12)


def test_a_channel_with_a_small_score_changes_the_loss_less_when_it_is_removed():
    graph, _ = graph_of("residual")
    space, x = graph.spaces["a.0"], images(n=32)
    labels = torch.randint(5, (32,), generator=torch.Generator().manual_seed(1))
    found = taylor(graph.module, graph.spaces, ["a.0"], [(x, labels)], label_loss)["a.0"]
    changes = []
    with torch.no_grad():
        before = F.cross_entropy(graph.module(x), labels, reduction="none")
        for channel in range(space.width):
            masked = copy.deepcopy(graph.module)
            mask(masked, graph.spaces, {"a.0": [i for i in range(space.width) if i != channel]})
            changes.append((F.cross_entropy(masked(x), labels, reduction="none") - before).square().mean())
    order = torch.corrcoef(torch.stack([found.argsort().argsort(), torch.stack(changes).argsort().argsort()]))
    assert order[0, 1] > 0.8


def test_a_network_leaves_no_gradients_and_needs_none_on_its_weights():
    graph, names = graph_of("residual")
    found = taylor(graph.module, graph.spaces, names, [(images(), torch.tensor([1]))], label_loss)
    assert all(p.grad is None for p in graph.module.parameters())
    graph.module.requires_grad_(False)
    again = taylor(graph.module, graph.spaces, names, [(images(), torch.tensor([1]))], label_loss)
    assert all(torch.equal(found[name], again[name]) for name in names)
    assert not any(m._forward_pre_hooks for m in graph.module.modules())


def test_own_outputs_take_the_place_of_labels_by_the_mean_square_over_drawn_classes():
    """The mean over many draws is the exact mean over the classes with the network's own probabilities."""
    graph = NetworkGraph(trace(block()), (3, 8, 8))
    x = images((3, 8, 8))
    many = [x] * 4000
    loss = own_output_loss(torch.Generator().manual_seed(0))
    drawn = taylor(graph.module, graph.spaces, ["conv1"], [torch.cat(many)], loss)["conv1"]
    chances = graph.module(x).detach().softmax(1)[0].double()
    exact = sum(
        chances[k] * taylor(graph.module, graph.spaces, ["conv1"], [(x, torch.tensor([k]))], label_loss)["conv1"]
        for k in range(4)
    )
    torch.testing.assert_close(drawn, exact, rtol=0.2, atol=float(exact.max()) * 0.02)
    assert exact.max() > 1e-6


def test_own_values_are_judged_by_their_squared_distance():
    """For outputs y, the mean over signs of (s·J a)² is |J a|², summed over the outputs."""
    graph = NetworkGraph(trace(block()), (3, 8, 8))
    x = images((3, 8, 8))
    loss = own_output_loss(torch.Generator().manual_seed(0), scores=False)
    drawn = taylor(graph.module, graph.spaces, ["conv1"], [torch.cat([x] * 4000)], loss)["conv1"]

    def one(place):
        return lambda output, labels: output[:, place].sum()

    exact = sum(taylor(graph.module, graph.spaces, ["conv1"], [x], one(k))["conv1"] for k in range(4))
    torch.testing.assert_close(drawn, exact, rtol=0.2, atol=float(exact.max()) * 0.02)


def test_maps_of_class_scores_draw_a_class_for_each_pixel():
    maps = torch.zeros(2, 3, 4, 5)
    maps[:, 1] = 100.0
    loss = own_output_loss(torch.Generator().manual_seed(0))
    assert float(loss(maps, None)) == pytest.approx(0.0, abs=1e-6)


def test_no_images_are_refused():
    graph, names = graph_of("residual")
    with pytest.raises(UsageError, match="images: at least one image is needed for the gradients of the loss, got"):
        taylor(graph.module, graph.spaces, names, [], label_loss)
