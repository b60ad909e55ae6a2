import operator

import pytest
import torch
from torch import fx

from decomp.graph.views import is_view, read_after_change


def traced(body):
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
    graph.output(body(x).node)
    return {node.name: node for node in graph.nodes}


@pytest.mark.parametrize(("body", "view"), [
    (lambda x: x.view(-1), True), (lambda x: x[:, 1], True), (lambda x: torch.transpose(x, 0, 1), True),
    (lambda x: x.T, True), (lambda x: x.shape, False), (lambda x: x.clone(), False), (lambda x: torch.relu(x), False),
])  # fmt: skip
def test_a_view_shares_the_memory_of_its_input(body, view):
    *_, node, _ = traced(body).values()
    assert is_view(node) is view


def test_places_are_copied_out_of_a_tensor_and_slices_are_not():
    nodes = traced(lambda x: x[x > 0] + x[:, [0, 1]] + x[..., None, : x.shape[1] // 2] + x[x.size(0) - 1])
    views = [is_view(node) for node in nodes.values() if node.target is operator.getitem]
    assert views == [False, False, True, True, True]  # the fourth is that of x.shape


def changed(read):
    """Whether memory is read after `p` has been changed: nodes of x.chunk(2, 1) and of slices, changed in place."""

    def forward(x):
        y = x * 1
        kept, part, rest, flat = y[:, :2], y[:, 1:3], y[:, 3:], y.view(-1)
        low, high = y.chunk(2, 1)[0], y.chunk(2, 1)[1]
        (flat * 2).sum()
        changed = part.mul_(3)
        return read(changed, y, kept, rest, flat, low, high)

    nodes = traced(forward)
    return read_after_change(nodes["getitem_1"], nodes["mul_"])


@pytest.mark.parametrize(("read", "stale"), [
    (lambda c, y, kept, rest, flat, low, high: y.sum(), True),
    (lambda c, y, kept, rest, flat, low, high: c.relu(), False),
    (lambda c, y, kept, rest, flat, low, high: c + kept, True),  # they have channel 1 in common
    (lambda c, y, kept, rest, flat, low, high: c + rest, False),
    (lambda c, y, kept, rest, flat, low, high: c + rest[:, 0].view(-1), False),
    (lambda c, y, kept, rest, flat, low, high: c + y[:, 5:], False),
    (lambda c, y, kept, rest, flat, low, high: c + y[:, 2:], True),
    (lambda c, y, kept, rest, flat, low, high: c + flat, True),
    (lambda c, y, kept, rest, flat, low, high: c + low[0], True),
])  # fmt: skip
def test_memory_that_is_read_after_a_change_under_another_name_is_found(read, stale):
    assert changed(read) is stale


def test_the_parts_of_a_chunk_do_not_share_their_memory():
    def forward(read):
        def body(x):
            low, high = x.chunk(2, 1)[0], x.chunk(2, 1)[1]
            parts = x.chunk(2, 1)
            low, high = parts[0], parts[1]
            return read(low.mul_(2), x, high)

        nodes = traced(body)
        return read_after_change(nodes["getitem_2"], nodes["mul_"])

    assert [forward(lambda c, x, high: c + high), forward(lambda c, x, high: c + x)] == [False, True]
