"""Channel spaces that may be narrowed."""

import pytest
import torch
from small_graphs import INPUT, make
from torch import nn

from decomp.criteria.candidates import candidates, united_by_addition
from decomp.errors import UsageError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace


def spaces_of(name):
    return NetworkGraph(trace(make(name)), INPUT).spaces


@pytest.mark.parametrize(
    "name, inner, coupled",
    [
        ("residual", ["a.0", "c.0"], ["stem"]), ("grouped", ["a.0"], ["stem"]), ("dense", ["stem", "a", "c", "d"], []),
        ("squeeze-excite", ["stem", "a.0", "squeeze", "b.0"], []), ("depthwise separable", None, []),
    ],
)  # fmt: skip
def test_streams_of_residual_stages_stay_unless_asked_for(name, inner, coupled):
    spaces = spaces_of(name)
    found = candidates(spaces)
    assert inner is None or found == inner
    assert [n for n in candidates(spaces, coupled=True) if n not in found] == coupled
    assert [s.name for s in spaces.all if united_by_addition(s)] == coupled


def test_outputs_and_the_image_are_never_narrowed():
    for name in ("residual", "shuffle", "u-net"):
        spaces = spaces_of(name)
        assert all(spaces[n].frozen is None for n in candidates(spaces, coupled=True))
        assert "head" not in candidates(spaces, coupled=True)


def test_skipped_layers_keep_their_outputs():
    spaces = spaces_of("residual")
    assert candidates(spaces, skip=["a.0"]) == ["c.0"]
    assert candidates(spaces, coupled=True, skip=["b.0"]) == ["a.0", "c.0"]
    assert candidates(spaces, skip=["head", "c.1"]) == ["a.0"]


def test_a_layer_to_skip_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="skip: must name layers of the network, got a.00; did you mean a.0"):
        candidates(spaces_of("residual"), skip=["a.00"])


def test_a_sum_of_values_from_one_layer_is_no_stream():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.own = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.b = nn.Conv2d(6, 4, 1)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x + self.own(x)).mean((2, 3))

    spaces = NetworkGraph(trace(Own()), INPUT).spaces
    assert candidates(spaces) == ["a"] and any(words.startswith("add") for words in spaces["a"].couplings)
