import pytest
import torch
from networks import CHAIN_INPUT, block, chain
from torch import nn

from decomp.execution import output_metric as metric
from decomp.execution.output_change import Outputs, kl_divergence
from decomp.execution.output_kinds import Output
from decomp.execution.output_spread import Spread
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 5))


def outputs_of(view, images, kind="scores"):
    with torch.no_grad():
        shape = view.module(images[:1]).shape[1:]
    return Outputs((Output("output", kind if len(shape) == 1 else "values", tuple(shape)),))


def metrics_of(view, batches, **options):
    return metric.output_metrics(view, batches, outputs_of(view, batches[0]), **options)


def view_of(module, shape):
    return NetworkGraph(trace(module), shape)


@pytest.mark.parametrize(("make", "shape"), [(chain, CHAIN_INPUT), (block, (3, 8, 8))])
def test_metrics_are_symmetric_positive_and_of_one_scale(make, shape):
    view = view_of(make(), shape)
    found = metrics_of(view, [torch.randn(6, *shape)] * 3)
    assert set(found) == {layer.name for layer in view.layers if layer.fitted}
    for layer in (layer for layer in view.layers if layer.fitted):
        F = found[layer.name]
        assert F.shape == (layer.out_channels,) * 2 and torch.equal(F, F.T)
        assert F.diagonal().mean() == pytest.approx(1)
        assert torch.linalg.eigvalsh(F).min() > 0.5 * metric.DAMPING / (1 + metric.DAMPING)


def test_nothing_is_left_on_the_network():
    view = view_of(classifier(), (1, 6, 6))
    images = torch.randn(4, 1, 6, 6)
    metrics_of(view, [images])
    assert not images.requires_grad
    assert all(p.grad is None for p in view.module.parameters())
    assert not any(m._forward_hooks for m in view.module.modules())


def test_the_draw_depends_on_the_seed_alone():
    view, images = view_of(classifier(), (1, 6, 6)), torch.randn(8, 1, 6, 6)
    one = metrics_of(view, [images], seed=3)
    torch.manual_seed(9)
    two = metrics_of(view, [images], seed=3)
    other = metrics_of(view, [images], seed=4)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_small_errors_change_the_output_as_the_metric_says():
    """The quadratic form against the divergence itself, at the layer that gives the class scores."""
    module = classifier().double()
    view = view_of(module, (1, 6, 6))
    images = torch.randn(400, 1, 6, 6, dtype=torch.float64) * 3
    batches = [images] * 60
    F = metrics_of(view, batches)["4"]
    undamped = F * (1 + metric.DAMPING) - metric.DAMPING * torch.eye(5)
    with torch.no_grad():
        scores = module(images)
    # The Fisher information of the scores is the mean of diag(p) − p pᵀ; sampled labels must come to the same.
    p = scores.softmax(1)
    fisher = torch.diag(p.mean(0)) - p.T @ p / len(p)
    assert torch.allclose(undamped, fisher / fisher.diagonal().mean(), atol=0.03)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        e = 1e-3 * torch.randn(5, generator=generator, dtype=torch.float64)
        divergence = kl_divergence(scores, scores + e).mean()
        assert divergence == pytest.approx(float(e @ fisher @ e) / 2, rel=0.02)


def test_a_channel_that_nothing_reads_weighs_least():
    module = classifier()
    module[2].weight.data[:, 1] = 0
    F = metrics_of(view_of(module, (1, 6, 6)), [torch.randn(50, 1, 6, 6)])["0"]
    assert F.diagonal().argmin() == 1
    assert F[1, 1] == pytest.approx(metric.DAMPING / (1 + metric.DAMPING))


class Heads(nn.Module):
    """Class scores and boxes from a stem of two channels: the first is read by the scores, the second by the boxes."""

    def __init__(self, size):
        super().__init__()
        self.size, self.stem = size, nn.Conv2d(1, 2, 3)
        self.scores, self.boxes = nn.Linear(16, 3), nn.Linear(16, 7)

    def forward(self, x):
        a, b = self.stem(x).flatten(2).unbind(1)
        return {"scores": self.scores(a), "boxes": [self.boxes(b) * self.size]}


def named_heads(size):
    module = Heads(size).double()
    images = torch.randn(300, 1, 6, 6, dtype=torch.float64)
    outputs = Outputs((Output("scores", "scores", (3,)), Output("boxes.0", "values", (7,))))
    spread = Spread(outputs)
    with torch.no_grad():
        tensors = outputs.named(module(images))
    spread.add(tensors)
    return module, images, spread.measured()


def test_the_metric_does_not_depend_on_the_size_of_an_output():
    found = []
    for size in (1.0, 640.0):
        torch.manual_seed(0)
        module, images, outputs = named_heads(size)
        found.append(metric.output_metrics(view_of(module, (1, 6, 6)), [images], outputs)["stem"])
    torch.testing.assert_close(found[0], found[1])
    assert found[0].diagonal().min() > 0.3  # neither is given up


def test_the_metric_of_several_outputs_is_that_of_their_change():
    """The quadratic form against the change itself, for errors of one channel and of both."""
    module, images, outputs = named_heads(30.0)
    view = view_of(module, (1, 6, 6))
    F = metric.output_metrics(view, [images] * 60, outputs)["stem"]
    F = F * (1 + metric.DAMPING) - metric.DAMPING * torch.eye(2)
    with torch.no_grad():
        wanted = outputs.named(module(images))
        ratios = []
        for e in torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, -0.8]]).double():
            errors = 1e-3 * torch.randn(300, 1, 4, 4, dtype=torch.float64) * e[:, None, None]
            hook = module.stem.register_forward_hook(lambda m, i, y, errors=errors: y + errors)
            got = outputs.named(module(images))
            hook.remove()
            ratios.append(outputs.change(wanted, got).mean().item() / float(e @ F.double() @ e))
    assert max(ratios) / min(ratios) < 1.2


@pytest.mark.parametrize("kind", ["scores", "values"])
def test_holders_of_some_batches_have_together_the_metric_and_the_draws_of_all(kind):
    view = view_of(classifier(), (1, 6, 6))
    batches = list(torch.randn(12, 1, 6, 6, generator=torch.Generator().manual_seed(3)).split(5))
    outputs = outputs_of(view, batches[0], kind)
    wanted = metric.output_metrics(view, batches, outputs, 7)
    found = []  # sums of the first holder
    metric.output_metrics(
        view, [batches[0], 5, batches[2]], outputs, 7, summed=lambda own: found.append(own) or own.rounded()
    )  # fmt: skip

    def with_first(own):
        own.merge(found.pop(0))
        return own.rounded()

    got = metric.output_metrics(view, [5, batches[1], 2], outputs, 7, summed=with_first)
    assert got.keys() == wanted.keys() and len(got) > 1
    for name, F in wanted.items():
        assert torch.equal(got[name], F)


class Compared(nn.Module):
    """A comparison between the layers, on one of two ways."""

    def __init__(self, both):
        super().__init__()
        self.first, self.second, self.both = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), both
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        cut = (self.first(x) > 0).float()
        return self.last((cut + (0 if self.both else self.second(x))).mean((2, 3)))


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_before_a_comparison_have_no_metric(frozen):
    torch.manual_seed(0)
    images = torch.randn(6, 1, 6, 6)
    view = view_of(Compared(both=True).requires_grad_(not frozen), (1, 6, 6))
    assert metrics_of(view, [images]) == {}
    view = view_of(Compared(both=False).requires_grad_(not frozen), (1, 6, 6))
    assert set(metrics_of(view, [images])) == {"second", "last"}
