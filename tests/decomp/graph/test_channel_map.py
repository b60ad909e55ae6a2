import pytest
import torch
from channel_maps import follow, map_of
from torch import nn
from torch.nn import functional as F

ALL = [0, 1, 2, 3]


@pytest.mark.parametrize(
    "body",
    [
        nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), F.relu, torch.sigmoid, lambda x: x.clamp(0, 1), lambda x: -x,
        lambda x: x.mean((2, 3)), lambda x: x + x.dim() * x.ndim,
        lambda x: x.expand_as(x),
    ],
)  # fmt: skip
def test_operations_on_every_channel_by_itself_pass_them_on(body):
    found = follow(body)
    assert found.reads == ALL and found.united == ALL and found.frozen == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: F.softmax(x, 1), "goes through 'softmax'"),
        (nn.Softmax(1), "goes through body (Softmax)"),
        (lambda x: x.mean((1, 2), keepdim=True), "goes through 'mean'"),
        (lambda x: torch.where(x > 0, x, 2 * x), "goes through 'gt'"),
    ],
)
def test_operations_across_channels_freeze_them(body, reason):
    found = follow(body)
    assert found.frozen[0] == reason
    new = [root for root in found.map.roots.tolist() if found.map.reasons.get(root, "").startswith("comes out of")]
    assert new and found.reads == [None] * len(found.reads)


def test_the_image_and_the_output_are_frozen():
    found = map_of(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 5, 5))
    (use,) = found.uses
    assert {found.reasons[root] for root in found.roots[use.reads].tolist()} == {"is the image itself"}
    assert {found.reasons[root] for root in found.roots[use.writes].tolist()} == {"is the network's output"}
    assert [(name, len(ids)) for name, ids in found.origins] == [("input_1", 3)]


def test_united_channels_share_the_first_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return F.softmax(a, 1) + (a + b).flip(1)

    found = map_of(Net(), (1, 4, 4))
    use_of = {use.path: use for use in found.uses}
    roots = found.roots[use_of["a"].writes]
    assert roots.tolist() == found.roots[use_of["b"].writes].tolist()
    assert {found.reasons[root] for root in roots.tolist()} == {"goes through 'softmax'"}
