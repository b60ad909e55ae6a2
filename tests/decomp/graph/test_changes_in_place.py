import pytest
import torch
from torch import nn
from torch.nn import functional as F

from decomp.errors import TraceError
from decomp.graph.changes_in_place import without_change
from decomp.graph.serialise import build_graph, describe_graph
from decomp.graph.tracing import trace

SHAPE = (3, 6, 5)


class Block(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.a, self.b = body, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.register_buffer("mean", torch.zeros(4, 1, 1))

    def forward(self, x):
        return self.body(self, x)


class Outer(nn.Module):
    """The same within a submodule."""

    def __init__(self, body):
        super().__init__()
        self.inner, self.last = Block(body), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.inner(x))


def chain(net, x):
    y = net.a(x)
    y.mul_(2).add_(1)
    return net.b(y)


def alias(net, x):
    y = net.a(x)
    z = y
    y += 1
    return net.b(z) + y


def alias_in_a_list(net, x):
    kept = [net.a(x)]
    y = kept[0]
    y *= 3
    y -= x.mean()
    return net.b(kept[-1])


def loop(net, x):
    total = y = net.a(x)
    for _ in range(3):
        total += net.b(y)
    return y


def functions(net, x):
    y = net.a(x)
    F.leaky_relu(y, 0.1, True)
    z = F.hardtanh(y, -0.5, 0.5, inplace=True)
    torch.add(z, 1, out=z)
    return net.b(y) + torch.sigmoid_(z)


def module_of_torch(net, x):
    y = net.a(x)
    z = y
    net.act(y)
    return net.b(z) - y


def parts(net, x):
    y = net.a(x)
    y[:, :2].mul_(2)
    y[:, 2:][:, 1].fill_(0.5)
    v = y[:, 1]
    v += 1
    v.clamp_(max=0.7)
    return net.b(y) + v[:, None]


def disjoint_parts(net, x):
    low, high = net.a(x).chunk(2, 1)
    low *= torch.sigmoid(high)
    return net.b(torch.cat([low, high], 1))


def copied(net, x):
    y = torch.empty_like(net.a(x))
    y.copy_(net.a(x)).masked_fill_(y < 0, 0.2)
    y[0].zero_()
    return net.b(y)


def without_counterpart(net, x):
    y = net.a(x)
    y.index_put_((torch.tensor([0]), torch.tensor([1])), x.new_zeros(()))
    y[0, 0].fill_diagonal_(1.5)
    return net.b(y)


def sizes_stay_numbers(net, x):
    n = m = x.shape[2]
    n += 4
    n //= 2
    return net.a(x)[:, :, : n - 1] * m


def the_images(net, x):
    x -= 0.5
    x.div_(2)
    return net.b(net.a(x)) + x.mean()


BODIES = [
    chain, alias, alias_in_a_list, loop, functions, module_of_torch, parts, disjoint_parts, copied, without_counterpart,
    sizes_stay_numbers, the_images,
]  # fmt: skip


@pytest.mark.parametrize("kind", [Block, Outer])
@pytest.mark.parametrize("body", BODIES)
def test_what_is_changed_in_place_is_read_as_it_is_then(body, kind):
    torch.manual_seed(0)
    module, images = kind(body).eval(), torch.randn(3, *SHAPE)
    traced = trace(module, shape=SHAPE)
    again = build_graph(describe_graph(traced), traced.state_dict())
    with torch.no_grad():
        wanted, kept = module(images.clone()), images.clone()
        assert torch.equal(traced(images), wanted) and torch.equal(again(images), wanted)
    assert torch.equal(images, kept)  # the graph changes nothing


def through_a_view(net, x):
    y = net.a(x)
    y.view(-1).mul_(2)
    return net.b(y)


def a_view_of_before(net, x):
    y = net.a(x)
    z = y.permute(0, 1, 3, 2)
    y += 1
    return net.b(z)


def overlapping_parts(net, x):
    y = net.a(x)
    low, most = y[:, :2], y[:, 1:]
    low.mul_(2)
    return low.sum() + torch.cat([most, most[:, :1]], 1)


def an_attribute(net, x):
    y = net.a(x)
    y.T.mul_(2)
    return y


@pytest.mark.parametrize("body", [through_a_view, a_view_of_before, overlapping_parts, an_attribute])
def test_what_cannot_be_followed_is_refused_and_leaving_the_module_alone_helps(body):
    module = Outer(body).eval()
    said = r"at test_changes_in_place\.py:\d+: '.*' changes .* in place.*; let forward make a new tensor .* leave inner"
    with pytest.raises(TraceError, match=said):
        trace(module, shape=SHAPE)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(trace(module, leaves=["inner"], shape=SHAPE)(x), module(x))


def keeps_a_mean(net, x):
    net.mean.mul_(0.9).add_(0.1 * x.mean())
    return net.a(x) - net.mean


def changes_a_weight(net, x):
    net.a.weight.mul_(0.5)
    return net.a(x)


def fills_a_constant(net, x):
    y = torch.zeros(4)
    y.add_(x.mean())
    return net.a(x) * y[:, None, None]


@pytest.mark.parametrize(("body", "words"), [
    (keeps_a_mean, "'add_' changes inner.mean, which the network keeps"),
    (changes_a_weight, "'mul_' changes inner.a.weight, which the network keeps"),
    (fills_a_constant, "'add_' writes values of the images into a tensor that is not made from them; make that tensor"),
])  # fmt: skip
def test_changes_of_what_does_not_come_from_the_images_are_refused(body, words):
    with pytest.raises(TraceError, match=words):
        trace(Outer(body).eval(), shape=SHAPE)


def test_calls_that_change_nothing_stay_as_they_are():
    calls = [("call_method", "mul"), ("call_method", "__add__"), ("call_function", torch.add), ("call_module", "a_")]
    assert all(without_change(kind, target, (1, 2), {}) is None for kind, target in calls)
    assert without_change("call_function", F.relu, (1,), {"inplace": False}) is None
    found = without_change("call_function", F.relu, (1, True), {})
    assert found is not None and (found.target, found.args, found.kwargs, found.may_stay) == (F.relu, (1,), {}, True)
