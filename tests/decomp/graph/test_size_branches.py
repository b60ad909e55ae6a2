import pytest
import torch
from networks import CHAIN_INPUT, chain, randomise
from torch import fx, nn
from torch.nn import functional as F

from decomp.errors import TraceError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.size_branches import SizeBranches, size_branch_message
from decomp.graph.tracing import trace


class Joined(nn.Module):
    """Goes down and up again, and pads where an odd size was rounded down; as many networks for segmentation do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 2, 3)

    def forward(self, x):
        skip = F.relu(self.a(x))
        y = F.interpolate(self.b(F.max_pool2d(skip, 2)), scale_factor=2.0)
        if y.shape[-2:] != skip.shape[-2:]:
            y = F.pad(y, (0, skip.shape[-1] - y.shape[-1], 0, skip.shape[-2] - y.shape[-2]))
        return self.c(torch.cat([skip, y], dim=1))


@pytest.mark.parametrize("size", [8, 9])
def test_branches_on_sizes_are_taken_as_images_of_that_size_take_them(size):
    module, x = randomise(Joined()), torch.randn(3, 1, size, size)
    network = trace(module, shape=(1, size, size))
    assert torch.equal(network(x), module(x))
    assert [place.split(":")[0] for place in network.meta["branches"]] == ["test_size_branches.py"]
    assert any(node.target is F.pad for node in network.graph.nodes) == (size == 9)
    assert NetworkGraph(network, (1, size, size)).layer("c").input_space is not None
    with pytest.raises(TraceError, match="cannot be traced"):
        trace(module)
    assert trace(chain(), shape=CHAIN_INPUT).meta["branches"] == []


@pytest.mark.parametrize("question", [
    "x.sum() > 0", "x.shape[0] > 1", "len(x) > 1", "x.sum().item() > 0", "x.flatten().tolist()[0] + x.shape[2] > 8",
    "torch.allclose(x, x * 2)",
])  # fmt: skip
def test_what_other_images_or_other_batches_answer_otherwise_is_refused(question):
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            return self.conv(x) if eval(question) else x

    with pytest.raises(TraceError, match="net: the forward pass cannot be traced"):
        trace(Dynamic(), "net", shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        ("x.shape[2] > 7", True), ("x.shape[2] > 8", False), ("x.dim() == 4", True),
        ("x.numel() // len(x) == 64", True), ("torch.numel(x[0]) == 65", False),
        ("x.shape[1:] == (1, 8, 8)", True), ("x.is_floating_point()", True),
        ("x.shape[0] > 1", None), ("x.max() > 1", None), ("x.sum().item() == 0", None), ("x", None),
    ],
)  # fmt: skip
def test_a_condition_has_an_answer_only_where_sizes_decide_it(condition, answer):
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    x = fx.Proxy(graph.placeholder("x"), tracer)
    node = eval(condition, {"torch": torch, "x": x, "len": lambda value: value.shape[0]}).node
    assert SizeBranches(nn.Identity(), (1, 8, 8)).evaluate(node) is answer


def test_conditions_of_a_growing_graph_are_evaluated_one_after_the_other():
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
    branches = SizeBranches(nn.Identity(), (1, 8, 8))
    assert branches.evaluate((x.shape[-1] > 4).node) is True
    y = x[..., ::2]
    assert branches.evaluate((y.shape[-1] > 4).node) is False
    assert branches.evaluate((y.sum().item() > x.shape[-1]).node) is None


def test_a_graph_that_does_not_run_has_no_answer():
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
    assert SizeBranches(nn.Identity(), (1, 8, 8)).evaluate((x.view(-1, 7).shape[1] > 4).node) is None


def test_the_message_names_three_places_and_the_size():
    said = size_branch_message(["a.py:1", "b.py:2"], (3, 8, 9))
    assert said == "control flow depends on the input size (a.py:1, b.py:2); the result is valid for 3x8x9 only"
    assert "(a.py:1, a.py:2, a.py:3 and more)" in size_branch_message([f"a.py:{i}" for i in range(1, 5)], (1, 8, 8))
