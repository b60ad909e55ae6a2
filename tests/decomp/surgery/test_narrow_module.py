"""A narrowed module computes the kept outputs from the kept inputs."""

import pytest
import torch
from networks import randomise
from torch import nn

from decomp.errors import DecompError
from decomp.modules.select import Select
from decomp.surgery.narrow_module import narrow_carrier, narrow_layer


def images(shape, n=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(5))


def zero_elsewhere(x, keep):
    """The input with all channels but the kept ones at zero."""
    zeroed = torch.zeros_like(x)
    zeroed[:, keep] = x[:, keep]
    return zeroed


LAYERS = {
    "conv": (nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 0), dilation=(1, 2)), (6, 7, 7)),
    "conv without bias": (nn.Conv2d(6, 8, 3, padding="same", padding_mode="reflect", bias=False), (6, 7, 7)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1), (6, 5, 5)),
    "linear": (nn.Linear(6, 8), (6,)),
    "chain": (nn.Sequential(nn.Conv2d(6, 3, (3, 1)), nn.Conv2d(3, 8, (1, 3))), (6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("reads", "writes"), [([0, 4], [1, 2, 7]), ([0, 4], None), (None, [1, 2, 7])])
def test_a_narrowed_layer_gives_the_kept_outputs_for_the_kept_inputs(name, reads, writes):
    layer, shape = LAYERS[name]
    layer, x = randomise(layer), images(shape)
    inputs, outputs = reads or list(range(6)), writes or list(range(8))
    small = narrow_layer(layer, reads and torch.tensor(reads), writes and torch.tensor(writes))
    wanted = layer(zero_elsewhere(x, inputs))[:, outputs]
    torch.testing.assert_close(small(x[:, inputs]), wanted, rtol=1e-4, atol=1e-5)
    assert not small.training


def test_a_layer_that_keeps_all_is_itself():
    layer = nn.Conv2d(2, 3, 1)
    assert narrow_layer(layer) is layer


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_loses_whole_groups(kind):
    layer, x = kind(6, 9, 3, groups=3, padding=1), images((6, 5, 5))
    reads, writes = torch.tensor([0, 1, 4, 5]), torch.tensor([0, 1, 2, 6, 7, 8])
    small = narrow_layer(layer, reads, writes)
    assert small.groups == 2
    torch.testing.assert_close(small(x[:, reads]), layer(x)[:, writes], rtol=1e-4, atol=1e-5)


CARRIERS = {
    "batch norm": (nn.BatchNorm2d(6, eps=1e-2), (6, 4, 4)),
    "batch norm without scale": (nn.BatchNorm2d(6, affine=False), (6, 4, 4)),
    "prelu": (nn.PReLU(6), (6, 4, 4)),
    "prelu with one slope": (nn.PReLU(), (6, 4, 4)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (6, 4, 4)),
}


@pytest.mark.parametrize("name", CARRIERS)
def test_a_narrowed_carrier_treats_the_kept_channels_as_before(name):
    carrier, shape = CARRIERS[name]
    if isinstance(carrier, nn.PReLU):
        carrier.weight.data = torch.rand(carrier.weight.shape)
    carrier, x, keep = randomise(carrier), images(shape), torch.tensor([1, 2, 5])
    small = narrow_carrier(carrier, keep, 6)
    torch.testing.assert_close(small(x[:, keep]), carrier(x)[:, keep], rtol=1e-5, atol=1e-6)
    assert not small.training


def test_a_normalisation_behind_a_flatten_keeps_all_columns_of_a_channel():
    norm, x = randomise(nn.BatchNorm1d(12)), images((12,))
    small = narrow_carrier(norm, torch.tensor([0, 2]), 3)
    columns = [0, 1, 2, 3, 8, 9, 10, 11]
    torch.testing.assert_close(small(x[:, columns]), norm(x)[:, columns])


@pytest.mark.parametrize("narrow", [lambda m: narrow_layer(m, torch.tensor([0])),
                                    lambda m: narrow_carrier(m, torch.tensor([0]), 2)])  # fmt: skip
def test_other_classes_are_refused(narrow):
    with pytest.raises(DecompError, match="GroupNorm: its channels cannot be narrowed"):
        narrow(nn.GroupNorm(1, 2))


def test_nothing_left_is_refused():
    with pytest.raises(DecompError, match="at least one channel"):
        narrow_layer(nn.Conv2d(2, 3, 1), writes=torch.tensor([], dtype=torch.long))


def test_parts_of_groups_are_refused():
    conv = nn.Conv2d(8, 8, 1, groups=2)
    with pytest.raises(DecompError, match="whole groups of 4 to 4 channels must stay"):
        narrow_layer(conv, torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_groups_that_are_read_and_written_must_be_the_same():
    with pytest.raises(DecompError, match="whole groups of 2 to 2 channels must stay"):
        narrow_layer(nn.Conv2d(4, 4, 1, groups=2), torch.tensor([0, 1]), torch.tensor([2, 3]))


def test_a_narrowed_selection_passes_some_of_its_channels_on():
    select, x = Select.of(torch.tensor([1, 3, 4]), 6), images((6, 2, 2))
    small = narrow_layer(select, writes=torch.tensor([0, 2]))
    assert torch.equal(small(x), x[:, [1, 4]]) and small.in_channels == 6
    with pytest.raises(DecompError, match="channels that it reads must stay"):
        narrow_layer(select, torch.tensor([0]), torch.tensor([0]))
