import collections
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils import checkpoint

from decomp.errors import DecompError, TraceError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.serialise import build_graph, describe_graph
from decomp.graph.tracing import trace

SHAPE = (3, 6, 5)
Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass
class Fields:
    first: torch.Tensor
    second: torch.Tensor


class Net(nn.Module):
    """A convolution to eight channels, and an operation on its output."""

    def __init__(self, body):
        super().__init__()
        self.body, self.a, self.b = body, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.halves = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return self.body(self, self.a(x))


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    value = vars(value) if isinstance(value, Fields) else value
    return [t for part in (value.values() if isinstance(value, dict) else value) for t in tensors(part)]


def check(body, batch=3):
    """Trace, write as data and read back; all three give the same outputs. Returns the traced network."""
    torch.manual_seed(0)
    module, x = Net(body).eval(), torch.randn(batch, *SHAPE)
    traced = trace(module, shape=SHAPE)
    NetworkGraph(traced, SHAPE)
    again = build_graph(describe_graph(traced), traced.state_dict())
    with torch.no_grad():
        wanted, got, read = (tensors(network(x)) for network in (module, traced, again))
    assert len(wanted) == len(got) == len(read) > 0
    assert all(torch.equal(w, g) and torch.equal(w, r) for w, g, r in zip(wanted, got, read))
    return traced


def star(net, x):
    first, *others = x.chunk(4, 1)
    return torch.cat([*others, first], 1)


def appended(net, x):
    y = list(x.chunk(2, 1))
    y.extend(m(y[-1]) for m in net.halves)
    return torch.cat(y, 1)


@pytest.mark.parametrize("body", [
    star, appended,
    lambda net, x: torch.cat([m(part) for m, part in zip(net.halves, torch.chunk(x, 2, 1))], 1),
    lambda net, x: torch.cat([part * (i + 1) for i, part in enumerate(x.split(4, 1))], 1),
    lambda net, x: torch.cat([part for part in torch.split(x, [2, 6], 1)], 1),
    lambda net, x: torch.cat(list(torch.tensor_split(x, 3, 1))[::-1], 1),
    lambda net, x: torch.stack([*x.unbind(1)], 1),
    lambda net, x: x * len(x.chunk(4, 1)),
    lambda net, x: sum(part for part in x.permute(1, 0, 2, 3)),
    lambda net, x: x.view(*x.shape[:2], -1),
    lambda net, x: F.interpolate(x, size=[2 * n for n in x.shape[2:]]),
    lambda net, x: x if isinstance(x, torch.Tensor) and torch.is_tensor(x) else x * 2,
    lambda net, x: x * 2 if isinstance(x.chunk(2, 1), (list, tuple)) else x,
    lambda net, x: x.abs() if x.shape[1] == 8 and x.dim() == 4 else x,
])  # fmt: skip
def test_loops_and_questions_whose_answer_is_the_same_for_all_sizes(body):
    assert check(body).meta["branches"] == []


@pytest.mark.parametrize("body", [
    lambda net, x: sum(row for row in x.permute(2, 0, 1, 3)),
    lambda net, x: sum(x[:, :, i] for i in range(x.shape[2])),
    lambda net, x: F.adaptive_avg_pool2d(x, int(x.shape[2] * 0.5)),
    lambda net, x: x * float(x.shape[3]),
    lambda net, x: x * np.sqrt(x.shape[2]),
    lambda net, x: F.interpolate(x, size=tuple(int(n) for n in np.array(x.shape[2:]) * 2)),
    lambda net, x: F.pad(x, (0, max(x.shape[2] - 3, 0))),
])  # fmt: skip
def test_what_holds_for_one_size_only_is_followed_and_noted(body):
    (place,) = check(body).meta["branches"]
    assert place.startswith("test_tracer.py:")


@pytest.mark.parametrize("body", [
    lambda net, x: torch.stack([net.b(image[None])[0] for image in x]),
    lambda net, x: x * len(x),
    lambda net, x: x * len(x.nonzero()),
    lambda net, x: x[:, : int(x.sum())],
    lambda net, x: sum(x for _ in range(x.shape[0])),
])  # fmt: skip
def test_a_number_that_other_images_or_other_batches_change_is_refused(body):
    with pytest.raises(TraceError, match="net: the forward pass cannot be traced at test_tracer.py:.* is not fixed by"):
        trace(Net(body), "net", shape=SHAPE)


def patterns(net, x):
    y = torch.zeros(x.shape[0], 8, x.shape[2], x.shape[3], device=x.device)
    y[:, ::2] = x[:, 1::2]
    y[:, 1] = 3.0
    return y


def halved(net, x):
    x = x.clone()
    x[:, ::2] = x[:, ::2].sigmoid() * 0.5
    return x + x[:, :1]


@pytest.mark.parametrize("body", [
    patterns,
    halved,
    lambda net, x: x + torch.arange(x.shape[3], device=x.device),
    lambda net, x: x + torch.ones((x.shape[0], 8, 1, x.shape[3]), dtype=x.dtype),
    lambda net, x: x * torch.linspace(0, 1, x.shape[3]).view(1, 1, 1, -1),
    lambda net, x: x * torch.full((x.shape[0], 1, 1, 1), 2.0),
    lambda net, x: x @ torch.eye(x.shape[3]),
    lambda net, x: x * torch.tensor([x.shape[2], x.shape[3]]).float().mean(),
    lambda net, x: x * torch.tensor([2.0]) + x.new_zeros(x.shape[0], 8, 1, 1),
    lambda net, x: x + torch.ones_like(x) + torch.full_like(x, 2),
    lambda net, x: x + sum(torch.meshgrid([torch.arange(n) for n in x.shape[-2:]], indexing="ij")),
    lambda net, x: x + torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")[1],
    lambda net, x: F.pad(x, (0, math.ceil(x.shape[2] / 5), 0, round(x.shape[3] / 4))),
    lambda net, x: x / math.sqrt(x.shape[2]) * divmod(x.shape[2], 4)[1],
    lambda net, x: x * torch.ones(8).expand(x.shape[0], 8)[:, :, None, None],
    lambda net, x: torch.roll(x, shifts=(x.shape[2] // 2, 0), dims=(2, 3)),
    lambda net, x: x.view(x.shape[:1] + (8, -1)),
    lambda net, x: torch.max(x, 1).values * x.topk(3, 1).indices[:, 0],
    lambda net, x: torch.fft.rfft2(x).abs() * torch.linalg.vector_norm(x),
    lambda net, x: (torch._assert(x.shape[1] == 8, "width"), x)[1],
    lambda net, x: F.dropout(x, 0.5, net.training) if not net.training else x * 2,
    lambda net, x: F.affine_grid(torch.eye(2, 3)[None].repeat(x.shape[0], 1, 1), x.shape, align_corners=True),
    lambda net, x: checkpoint.checkpoint(net.b, x, use_reentrant=False),
    lambda net, x: net.scale[: x.shape[1]].view(1, -1, 1, 1) * x,
])  # fmt: skip
def test_calls_with_sizes_stay_calls_for_images_of_any_size(body):
    traced = check(body)
    assert traced.meta["branches"] == []


def form(value):
    """The class of a nested output, and of all that is in it."""
    if isinstance(value, dict):
        return {key: form(part) for key, part in value.items()}
    return [type(value).__name__, *map(form, value)] if isinstance(value, (list, tuple)) else type(value).__name__


@pytest.mark.parametrize("body, expected", [
    (lambda net, x: Pair(x, net.b(x)), ["tuple", "Tensor", "Tensor"]),
    (lambda net, x: Fields(x, net.b(x)), {"first": "Tensor", "second": "Tensor"}),
    (lambda net, x: torch.max(x, 1), ["max", "Tensor", "Tensor"]),
    (lambda net, x: {"a": x, "b": [net.b(x), Pair(x.mean(1), x)]},
     {"a": "Tensor", "b": ["list", "Tensor", ["tuple", "Tensor", "Tensor"]]}),
])  # fmt: skip
def test_named_tuples_and_dataclasses_become_tuples_and_dicts(body, expected):
    assert form(check(body)(torch.randn(2, *SHAPE))) == expected


def test_a_chunk_in_a_loop_is_followed_like_one_that_is_unpacked():
    def unpacked(net, x):
        p, q = x.chunk(2, 1)
        return net.b(torch.cat([p, net.halves[0](q)], 1))

    def listed(net, x):
        y = list(x.chunk(2, 1))
        return net.b(torch.cat([y[0], net.halves[0](y[-1])], 1))

    spaces = []
    for body in (unpacked, listed):
        graph = NetworkGraph(check(body), SHAPE)
        spaces.append([(s.producers, s.consumers, s.width, s.frozen) for s in graph.spaces.all])
        assert any(s.producers == ("a",) and s.consumers == ("halves.0", "b") for s in graph.spaces.all)
    assert spaces[0] == spaces[1]


def test_entries_of_a_tensor_whose_view_is_read_later_are_not_set():
    def body(net, x):
        y = x * 2
        flat = y.view(-1)
        y[:, :4] = 1.0
        return y + flat.sum()

    with pytest.raises(TraceError, match="'x.*= y' changes a tensor in place, and another view of its memory is read"):
        trace(Net(body), shape=SHAPE)


def under_autocast(device, **options):
    def body(net, x):
        with torch.autocast(device, **options):
            return net.b(x)

    return body


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_autocast_is_passed_over_and_noted_where_it_has_an_effect():
    asked = lambda net, x: under_autocast(x.device.type, enabled=False)(net, x)  # noqa: E731
    for body in (under_autocast("cpu", enabled=False), asked):
        assert check(body).meta["autocast"] is False
    if not torch.cuda.is_available():
        assert check(under_autocast("cuda")).meta["autocast"] is False
    mixed = trace(Net(under_autocast("cpu", dtype=torch.bfloat16)).eval(), shape=SHAPE)
    x = torch.randn(2, *SHAPE)
    assert mixed.meta["autocast"] is True and torch.equal(mixed(x), mixed.b(mixed.a(x)))


def test_a_refusal_names_the_module_to_leave_alone():
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(Net(lambda net, x: x if x.sum() > 0 else -x)))
    module[1][0].a = nn.Identity()
    with pytest.raises(TraceError, match="leave 1.0 as it is .--leaf."):
        trace(module, shape=SHAPE)
    module[1][0].body = lambda net, x: x + torch.rand(x.shape[2:])
    said = "1.0: calls a function that data cannot name, got .*rand; leave this module as it is .--leaf 1.0."
    with pytest.raises(DecompError, match=said) as found:
        describe_graph(trace(module, shape=SHAPE))
    assert "0x" not in str(found.value)


def test_names_that_are_exchanged_while_tracing_are_put_back():
    before = torch.zeros, torch.Tensor.expand, torch.is_tensor, isinstance
    check(lambda net, x: x + torch.zeros(x.shape[0], 8, 1, 1))
    with pytest.raises(TraceError):
        trace(Net(lambda net, x: x[:, : int(x.sum())]), shape=SHAPE)
    assert before == (torch.zeros, torch.Tensor.expand, torch.is_tensor, isinstance) and "isinstance" not in globals()


def test_a_traced_network_can_be_pickled():
    traced, x = check(lambda net, x: net.b(x).relu()), torch.randn(2, *SHAPE)
    again = pickle.loads(pickle.dumps(traced))
    assert torch.equal(again(x), traced(x))


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: x.masked_fill(x < 0, torch.finfo(x.dtype).min),
        lambda net, x: x.sum((2, 3)) / np.prod(x.shape[2:]),
        lambda net, x: x.reshape(-1, int(np.prod(x.shape[1:]))),
        lambda net, x: net.b(x.type(torch.FloatTensor)),
        lambda net, x: nn.Softmax(dim=1)(nn.MaxPool2d(2)(nn.ReLU()(x))),
        lambda net, x: nn.Upsample(size=x.shape[3])(x),
        lambda net, x: nn.Sequential(nn.Flatten(2), nn.Softplus())(x),
    ],
)
def test_constants_and_modules_that_forward_makes_are_followed(body):
    check(body)


def test_a_slice_of_a_sequential_calls_its_members_by_their_own_paths():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Tanh())

        def forward(self, x):
            for module in self.f[:2]:
                x = module(x)
            return self.f[2:](x)

    module, x = Sliced().eval(), torch.randn(3, *SHAPE)
    traced = trace(module, shape=SHAPE)
    assert [node.target for node in traced.graph.nodes][1:-1] == ["f.0", "f.1", "f.2", "f.3"]
    assert torch.equal(traced(x), module(x))


@pytest.mark.parametrize("pack", [lambda *args, **named: pack_padded_sequence(*args, **named), None])
def test_packed_sequences_are_calls_of_the_graph_and_come_back_from_data(pack):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.lstm = nn.Conv2d(3, 8, 3), nn.LSTM(8, 4, batch_first=True)

        def forward(self, x):
            x = self.a(x).mean(2).transpose(1, 2)
            lengths = torch.full((x.size(0),), x.size(1))
            packed = (pack or rnn.pack_padded_sequence)(x, lengths, batch_first=True, enforce_sorted=False)
            return rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    module, x = Reader().eval(), torch.randn(3, *SHAPE)
    before = rnn.pack_padded_sequence
    traced = trace(module, shape=SHAPE)
    assert rnn.pack_padded_sequence is before and pack_padded_sequence is before
    assert torch.equal(traced(x), module(x)) and torch.equal(trace(traced)(x), module(x))
    again = build_graph(describe_graph(traced), traced.state_dict())
    assert torch.equal(again(x), module(x))
    assert NetworkGraph(traced, SHAPE).layer("a").fitted


def test_the_number_of_images_by_len_is_refused_with_what_to_write():
    with pytest.raises(TraceError, match=r"'a' is not fixed by .*; write x.shape\[0\] for the number of images"):
        trace(Net(lambda net, x: x.reshape(len(x), -1)), shape=SHAPE)
    check(lambda net, x: x.reshape(x.shape[0], -1))


def test_a_network_whose_arguments_all_have_defaults_takes_its_first_one():
    class Library(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)

        def forward(self, pixel_values=None, labels=None, *, scale=2.0):
            if pixel_values is None:
                raise ValueError("pixel_values are needed")
            return {"loss": None if labels is None else labels.sum(), "maps": self.a(pixel_values) * scale}

    module, x = Library().eval(), torch.randn(3, *SHAPE)
    assert torch.equal(trace(module, shape=SHAPE)(x)["maps"], module(x)["maps"])
