import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from decomp.execution import sampled_rows
from decomp.execution.sampled_rows import points_of_calls
from decomp.graph.layer import InputSpace
from decomp.modules.convolution import kernel_of


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)
def test_patches_times_weights_are_the_responses(kernel, stride, padding, dilation, mode):
    stride = (1, 1) if padding == "same" else stride
    conv = nn.Conv2d(3, 5, kernel, stride, padding, dilation, padding_mode=mode).double()
    x = torch.randn(4, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        y = conv(x)
    positions = sampled_rows.draw_positions(4, 7, y.shape[2:], torch.Generator().manual_seed(0))
    X = sampled_rows.patches(conv, x, positions)
    Y = sampled_rows.responses(y, positions)
    expected = X.flatten(1) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(expected, Y.flatten(0, 1), atol=1e-12)


@pytest.mark.parametrize("grid", [(2, 3), (5, 5), (40, 40)])
def test_positions_are_distinct_inside_and_cover_the_borders(grid):
    positions = sampled_rows.draw_positions(400, 10, grid, torch.Generator().manual_seed(1)).long()
    flat = positions[..., 0] * grid[1] + positions[..., 1]
    n_points = min(10, grid[0] * grid[1])
    assert positions.shape == (400, n_points, 2)
    assert all(len(set(row.tolist())) == n_points for row in flat)
    for axis in (0, 1):
        assert positions[..., axis].min() == 0 and positions[..., axis].max() == grid[axis] - 1
    # Drawn for each image independently, uniformly: each place about equally often.
    counts = torch.bincount(flat.flatten(), minlength=grid[0] * grid[1]).double()
    expected = 400 * n_points / len(counts)
    assert ((counts - expected).square() / expected).sum() < len(counts) + 5 * (2 * len(counts)) ** 0.5
    if n_points < grid[0] * grid[1]:
        assert not torch.equal(flat[0], flat[1])


def test_rows_of_a_linear_layer_are_those_of_a_convolution_over_the_whole_map():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 2, 4, generator=generator, dtype=torch.float64)
    linear = nn.Linear(24, 6).double()
    space = InputSpace(None, "fc", 3, map_shape=(2, 4))
    positions = torch.zeros(5, 1, 2, dtype=torch.int32)
    X = sampled_rows.layer_rows(linear, space, x.flatten(1), positions)
    assert X.shape == (5, 3, 2, 4) and torch.equal(X, x)
    conv = nn.Conv2d(3, 6, (2, 4)).double()
    with torch.no_grad():
        conv.weight.copy_(linear.weight.view(6, 3, 2, 4))
    assert torch.equal(sampled_rows.layer_rows(conv, space, x, positions), X)
    with torch.no_grad():
        y = linear(x.flatten(1))
    assert torch.equal(sampled_rows.responses(y, positions), y[:, None])


def test_without_a_space_a_linear_layer_reads_single_numbers():
    x = torch.arange(6.0).view(2, 3)
    positions = torch.zeros(2, 1, 2, dtype=torch.int32)
    assert torch.equal(sampled_rows.layer_rows(nn.Linear(3, 2), None, x, positions), x.view(2, 3, 1, 1))


def test_responses_are_read_row_first():
    y = torch.arange(2 * 1 * 3 * 4.0).view(2, 1, 3, 4)
    positions = torch.tensor([[[2, 1]], [[0, 3]]], dtype=torch.int32)
    assert sampled_rows.responses(y, positions).flatten().tolist() == [9.0, 15.0]


def test_draws_depend_on_the_generator_alone():
    def draw(seed):
        return sampled_rows.draw_positions(20, 4, (30, 30), torch.Generator().manual_seed(seed))

    first = draw(3)
    torch.manual_seed(11)
    assert torch.equal(draw(3), first) and not torch.equal(draw(4), first)
    flat = first[..., 0].long() * 30 + first[..., 1]
    assert (flat[:, 1:] > flat[:, :-1]).all(), "positions ascend within an image"


def test_points_of_several_calls_are_in_proportion_to_their_grids():
    assert points_of_calls(10, [(8, 8)]) == [10] and points_of_calls(10, [(2, 3)]) == [6]
    assert points_of_calls(10, [(8, 8), (8, 8)]) == [10, 10]
    assert points_of_calls(10, [(16, 16), (8, 8), (4, 4), (1, 1)]) == [30, 8, 2, 1]
    assert points_of_calls(1000, [(4, 4), (2, 2)]) == [16, 4]


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_patches_of_a_transposed_convolution_times_its_kernel_are_the_responses(
    kernel, stride, padding, dilation, more
):
    more = tuple(min(m, max(s, d) - 1) for m, s, d in zip(more, stride, dilation))
    conv = nn.ConvTranspose2d(3, 5, kernel, stride, padding, more, dilation=dilation).double()
    x = torch.randn(4, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        y = conv(x)
    positions = sampled_rows.draw_positions(4, 9, y.shape[2:], torch.Generator().manual_seed(0))
    X = sampled_rows.patches(conv, x, positions)
    expected = X.flatten(1) @ kernel_of(conv).flatten(1).T + conv.bias
    assert torch.allclose(expected, sampled_rows.responses(y, positions).flatten(0, 1), atol=1e-12)


@pytest.mark.parametrize("conv", [{"padding": 1}, {"padding": (0, 2), "stride": 2}, {"padding": 3, "dilation": 3}])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("size", [(13, 17), (5, 6)])
def test_few_patches_of_a_map_are_those_of_all_its_positions(conv, mode, size):
    """Of a map that is larger than its patches, and of one that is not."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Conv2d(3, 4, 3, padding_mode=mode, **conv)
    x = torch.randn(2, 3, *size, generator=generator)
    out = module(x).shape[-2:]
    every = torch.cartesian_prod(torch.arange(out[0]), torch.arange(out[1]))
    all_patches = sampled_rows.patches(module, x, every.expand(2, -1, -1)).view(2, len(every), 3, 3, 3)
    corners = [0, out[1] - 1, len(every) - out[1], len(every) - 1]
    found = sampled_rows.patches(module, x, every[corners].expand(2, -1, -1)).view(2, 4, 3, 3, 3)
    assert torch.equal(found, all_patches[:, corners])
    product = torch.einsum("mpchw,nchw->mnp", found, module.weight) + module.bias[:, None]
    assert torch.allclose(product, module(x).flatten(2)[..., corners], atol=1e-5)
