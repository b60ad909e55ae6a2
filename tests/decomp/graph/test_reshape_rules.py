import pytest
import torch
from channel_maps import follow, map_of
from torch import nn

COLUMNS = [i for i in range(4) for _ in range(30)]


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.flatten(1), lambda x: torch.flatten(x, 1), nn.Flatten(), lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1), lambda x: torch.reshape(x, (x.shape[0], -1)),
    ],
)  # fmt: skip
def test_a_flatten_repeats_every_channel_once_for_each_pixel(body):
    found = follow(body)
    assert found.reads == COLUMNS and found.frozen == []
    (layer,) = [use for use in found.map.uses if use.path == "b"]
    assert layer.map_shape == (6, 5)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x.flatten(2).view(x.size(0), x.size(1), 6, 5),
        lambda x: x.view(x.shape[0], x.shape[1], 30, 1),
    ],
)
def test_a_view_of_as_many_channels_keeps_them(body):
    found = follow(body)
    assert found.reads == [0, 1, 2, 3] and found.frozen == []


def test_the_number_of_channels_of_another_tensor_unites_with_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.c(a.flatten(2).view(x.size(0), b.size(1), 6, 5))

    found = map_of(Net(), (1, 6, 5))
    a, b, _ = found.uses
    roots = found.roots[a.writes].tolist()
    assert roots == found.roots[b.writes].tolist() and not set(roots) & set(found.reasons)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: x.view(-1, 120), "is reshaped to a fixed size of 120; write -1 or flatten(1)"),
        (lambda x: x.view(x.size(0), 4, 30, 1), "is reshaped to a fixed size of 4; write -1 or flatten(1)"),
        (lambda x: x.view(x.size(0), x.flatten(1).size(1)), "is reshaped to a computed size by view"),
        (lambda x: x.view(x.size(0), x.size(1) * 30), "has its number of channels read by 'mul'"),
        (lambda x: x.view(x.size(0), -1, 6, 10), "is reshaped from (4, 6, 5) to (2, 6, 10)"),
        (lambda x: x.flatten(1).view(x.size(0), -1, 5, 1).flatten(1), "is reshaped from (120,) to (24, 5, 1)"),
        (lambda x: x.flatten(0, 1).view(2, -1), "is reshaped from (4, 6, 5) to (6, 5)"),
    ],
)
def test_other_reshapes_freeze_the_channels_with_the_reason(body, reason):
    assert follow(body).frozen[0] == reason
