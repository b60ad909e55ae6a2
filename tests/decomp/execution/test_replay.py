import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CHAIN_INPUT, block, chain
from torch import nn

from decomp.execution import replay as capture
from decomp.execution import sampled_rows
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.narrow_network import shrink


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
    # Drawn for each image by itself, uniformly: each place about equally often.
    counts = torch.bincount(flat.flatten(), minlength=grid[0] * grid[1]).double()
    expected = 400 * n_points / len(counts)
    assert ((counts - expected).square() / expected).sum() < len(counts) + 5 * (2 * len(counts)) ** 0.5
    if n_points < grid[0] * grid[1]:
        assert not torch.equal(flat[0], flat[1])


def replay_of(module, shape, n=23, **options):
    images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    view = NetworkGraph(trace(module), shape)
    return images, view, capture.Replay(view.module, lambda a, b: images[a:b], n, batch_size=5, **options)


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize(("make", "shape"), [(chain, CHAIN_INPUT), (block, (3, 8, 8))])
def test_replay_gives_what_the_layers_read_with_and_without_keeping(make, shape, budget):
    images, view, replay = replay_of(make(), shape, budget=budget)
    seen = {}
    for layer in view.layers:
        module = view.module.get_submodule(layer.name)

        def remember(module, inputs, output, name=layer.name):
            seen[name] = inputs[0].clone()

        module.register_forward_hook(remember)
    with torch.no_grad():
        wanted = view.module(images)
    for layer in view.layers:
        view.module.get_submodule(layer.name)._forward_hooks.clear()
    for layer in view.layers:
        replay.advance(view.node(layer))
        # Twice: in-place operations further on must not spoil what is kept.
        for _ in range(2):
            got = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
            assert torch.allclose(got, seen[layer.name], atol=1e-5)
        outputs = torch.cat([y for _, _, y in replay.outputs()])
        assert torch.allclose(outputs, wanted, atol=1e-5)


def test_keeping_values_saves_work():
    _, view, kept = replay_of(chain(), CHAIN_INPUT, budget=1 << 30)
    _, _, lost = replay_of(chain(), CHAIN_INPUT, budget=0)
    for replay in (kept, lost):
        names = {layer.node for layer in view.layers}
        for node in [node for node in replay.nodes if node.name in names]:
            replay.advance(node)
            list(replay.inputs(node))
    assert kept.forward_images <= 23 * 1.01 < lost.forward_images


def test_visit_sees_values_before_anything_changes_them_in_place():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    images, view, replay = replay_of(module, (1, 4, 4))
    node = view.node(view.layers[0])
    values = []
    for _, _, _, value, other in replay.visit({node}):
        assert other is None
        values.append(value.clone())
    with torch.no_grad():
        assert torch.allclose(torch.cat(values), module[0](images), atol=1e-6)
    assert torch.cat(values).min() < 0


def test_narrowed_values_are_those_of_a_narrow_producer():
    images, view, replay = replay_of(chain(), CHAIN_INPUT)
    for name, keep in (("3", torch.tensor([0, 2, 5])), ("13", torch.tensor([1, 4]))):
        layer = view.layer(name)
        replay.advance(view.node(layer))
        space = layer.input_space
        before = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
        replay.narrow(view.columns_kept(layer, keep))
        after = torch.cat([x for _, _, x in replay.inputs(view.node(layer))])
        wanted = before.reshape(23, space.width, -1)[:, keep].reshape(after.shape)
        assert torch.equal(after, wanted)
        shrink(view.module, view.spaces, {view.own_space(layer).name: keep.numpy()})
        fresh = capture.Replay(view.module, lambda a, b: images[a:b], 23, batch_size=5)
        again = torch.cat([x for _, _, x in fresh.inputs(view.node(layer))])
        assert torch.allclose(again, after, atol=1e-5)
