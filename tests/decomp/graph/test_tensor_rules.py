import pytest
import torch
from channel_maps import follow
from torch.nn import functional as F

ALL = [0, 1, 2, 3]


def halves_added(x):
    left, right = x.chunk(2, dim=1)[0], x.chunk(2, dim=1)[1]
    return left + right


def swapped(x):
    parts = torch.chunk(x, 2, dim=1)
    return torch.cat([parts[1], parts[-2]], 1)


def quarters_maximum(x):
    parts = x.chunk(4, 1)
    return torch.maximum(parts[0], parts[3])


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        (lambda x: torch.cat([x, x], 1), ALL + ALL),
        (lambda x: torch.cat([x, torch.relu(x)], dim=-3), ALL + ALL),
        (lambda x: torch.cat([x, x], 2), ALL),
        (lambda x: torch.cat(torch.cat([x, x], 0).chunk(2), 1), ALL + ALL),
        (lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1), [i for i in ALL for _ in range(30)] * 2),
        (lambda x: x * x.mean((2, 3), keepdim=True), ALL),
        (lambda x: x - x.amax(2, keepdim=True), ALL),
        (lambda x: x * torch.ones(1, 1, 5), ALL),
        (lambda x: F.pad(x, (1, 2, 3, 4)), ALL),
        (lambda x: x[:, :, 1:, ::2], ALL),
        (lambda x: x[:1], ALL),
        (lambda x: x.chunk(2, 3)[1], ALL),
        (lambda x: torch.cat([x, x], 0).chunk(2)[1], ALL),
        (lambda x: torch.cat([x, x], 0).split(x.shape[0])[1], ALL),
        (lambda x: torch.split(x, 2, dim=-1)[1], ALL),
        (lambda x: torch.cat([x, x], 0)[: x.shape[0]], ALL),
        (lambda x: torch.cat([x, x], 0)[x.size(0) :, :, 1:], ALL),
        (lambda x: x.sum((2, 3)), ALL),
    ],
)
def test_channels_are_followed_through_without_being_bound(body, reads):
    found = follow(body)
    assert found.reads == reads and found.united == ALL and found.frozen == []


@pytest.mark.parametrize(
    ("body", "united", "reads"),
    [
        (halves_added, [0, 1, 0, 1], [0, 1]),
        (swapped, [0, 1, 0, 1], [0, 1, 0, 1]),
        (quarters_maximum, [0, 0, 0, 0], [0]),
    ],
)
def test_parts_of_chunks_go_together(body, united, reads):
    found = follow(body)
    assert found.united == united and found.reads == reads and found.frozen == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: x * torch.ones(4, 1, 1), "meets a free tensor in 'mul'"),
        (lambda x: x + torch.ones(2, 4, 6, 5), "meets a free tensor in 'add'"),
        (lambda x: torch.cat([x.chunk(3, 1)[0], x.chunk(3, 1)[1]], 1), "is cut into uneven parts by 'chunk'"),
        (lambda x: x[:, 1:], "is cut at fixed channels by getitem"),
        (lambda x: x[:, [0, 2]], "goes through 'getitem'"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)), "goes through 'pad'"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)), "goes through 'pad'"),  # as many channels, shifted by one
        (lambda x: x + x.mean(1, keepdim=True), "goes through 'mean'"),
    ],
)
def test_other_uses_freeze_the_channels_with_the_reason(body, reason):
    assert follow(body).frozen == [reason]


def test_what_unites_and_joins_is_noted_in_words():
    words = [text for text, _ in follow(lambda x: torch.cat([x + torch.relu(x), x], 1)).map.events]
    assert words == ["add (add)", "cat (cat)"]
    assert [text for text, _ in follow(swapped).map.events] == ["chunk (chunk)", "cat (cat)"]
