import pytest
import torch
from torch import fx

from decomp.graph.views import is_view, view_read_after


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


@pytest.mark.parametrize(("body", "read"), [
    (lambda x, y: y.sum(), True), (lambda x, y: x * 2, False), (lambda x, y: x.relu() + y[0], True),
])  # fmt: skip
def test_a_view_that_is_read_after_a_change_is_found(body, read):
    def forward(x):
        view = x[:, :2].view(-1)
        (view * 2).sum()
        x.mul_(3)
        return body(x, view)

    nodes = traced(forward)
    assert view_read_after(nodes["x"], nodes["mul_"]) is read
