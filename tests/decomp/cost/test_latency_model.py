"""Measured times as a cost, on tables that are known."""

import numpy as np
import pytest
import torch
from networks import CHAIN_INPUT, chain
from torch import nn

from decomp.allocation.allocator import Allocator
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan, limits
from decomp.cost import latency_model as latency
from decomp.cost.chain import chain as chain_formula
from decomp.cost.chain import geometry_of
from decomp.cost.latency_model import FactorKind, LatencyCost, chain_module, factor_grids
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn
from decomp.surgery.random_network import random_factors


def view_of():
    network = trace(chain())
    fold_bn(network)
    return NetworkGraph(network, CHAIN_INPUT)


@pytest.mark.parametrize("ranks", [(None, None), (3, None), (None, 4), (3, 4)])
def test_the_factors_that_are_timed_are_those_of_the_chain(ranks):
    """Same shapes in, on the way and out as the factors that a solver returns, and the same kernels."""
    view = view_of()
    for layer in view.layers:
        if layer.kind == "linear":
            continue
        usable = [r if step not in layer.left_alone else None for r, step in zip(ranks, ("spatial", "channel"))]
        geometry = geometry_of(view.module.get_submodule(layer.name))
        links = chain_formula(layer, layer.in_channels, layer.out_channels, *usable, geometry=geometry)
        factors = random_factors(view, layer, LayerPlan(layer.name, None, *usable)).factors
        assert len(links) == len(factors)
        x = torch.zeros(2, layer.in_channels, *layer.in_hw)
        for factor, link in zip(factors, links):
            kind = FactorKind.of(layer, link)
            built = kind.build(link.in_channels, link.out_channels)
            assert kind.images(2, link.in_channels) == tuple(x.shape) and built.kernel_size == factor.kernel
            expected, x = built(x), factor.forward(x)
            assert expected.shape == x.shape


def test_a_linear_layer_is_timed_as_one_on_rows():
    view = view_of()
    layer = view.layers[-1]
    (grid,) = factor_grids(layer, view.module.get_submodule(layer.name)).values()
    assert grid.kind == FactorKind(latency.LINEAR) and grid.kind.images(2, 9) == (2, 9)
    assert grid.kind.build(9, 5)(torch.zeros(2, 9)).shape == (2, 5)
    assert (grid.inputs, grid.outputs) == ([1, 2, 4, 9], [1, 2, 5])


def test_each_factor_is_timed_at_shares_of_its_own_channels():
    view = view_of()
    layer = view.layers[1]  # 8 -> 10, 3x5: largest spatial rank 24
    grids = factor_grids(layer, view.module.get_submodule(layer.name))
    c, n, r = [1, 2, 4, 8], [1, 2, 5, 10], [2, 3, 6, 12, 24]
    shown = {name: (grid.inputs, grid.outputs) for name, grid in grids.items()}
    assert shown == {"dense": (c, n), "filters": (c, n), "pointwise": (n, n), "vertical": (c, r), "horizontal": (r, n)}
    # Filters and the layer in one piece differ in their channel counts alone, so one measurement serves both.
    assert grids["filters"].kind == grids["dense"].kind
    one_by_one = view.layers[3]
    assert "vertical" not in factor_grids(one_by_one, view.module.get_submodule(one_by_one.name))


def test_outputs_are_timed_in_whole_blocks_and_at_their_own_count():
    view = view_of()
    layer, last = view.layers[1], view.layers[-1]  # 8 -> 10, 3x5: largest spatial rank 24
    grids = factor_grids(layer, view.module.get_submodule(layer.name), block=4)
    assert (grids["dense"].inputs, grids["dense"].outputs) == ([1, 2, 4, 8], [4, 8, 10])
    assert grids["vertical"].outputs == [4, 8, 12, 24]
    (linear,) = factor_grids(last, view.module.get_submodule(last.name), block=4).values()
    assert linear.inputs == [1, 2, 4, 9]


@pytest.mark.parametrize("block", latency.BLOCKS)
def test_the_block_of_a_runtime_is_found_from_times_that_rise_in_steps(block):
    sizes, random = (32, 33, 36, 37, 40, 41, 44, 48), np.random.default_rng(0)
    steps = [0.5 + 0.01 * -(-n // block) * block for n in sizes]
    assert latency.nearest_block(sizes, steps) == block
    noisy = [time + 0.01 * random.standard_normal() for time in steps]  # a sixteenth of the whole rise
    assert latency.nearest_block(sizes, noisy) == block
    assert latency.nearest_block(sizes, steps[::-1]) == 1


def test_outputs_take_nearly_the_time_of_the_next_whole_block_and_inputs_their_own():
    at = latency._interpolator([1, 9], [8, 16, 24], [[1.0, 2.0, 3.0], [9.0, 10.0, 11.0]], block=8)
    assert [at(1, n) for n in (1, 8, 16, 24)] == [1.0, 1.0, 2.0, 3.0]
    assert at(1, 9) == pytest.approx(2 - latency.WITHIN * 7 / 8) and at(1, 9) < at(1, 10) < at(1, 16)
    assert [at(n, 8) for n in (1, 2, 5, 9)] == [1.0, 2.0, 5.0, 9.0]
    assert latency._interpolator([1], [8, 20], [[1.0, 2.0]], block=8)(1, 20) == 2.0  # the own count, no whole block


def test_a_chain_becomes_one_module_that_runs():
    view = view_of()
    layer = view.layers[1]
    geometry = geometry_of(view.module.get_submodule(layer.name))
    for ranks, count in (((None, None), 1), ((3, 4), 3)):
        links = chain_formula(layer, 5, 7, *ranks, geometry=geometry)
        module = chain_module(layer, links)
        assert sum(isinstance(m, nn.Conv2d) for m in module.modules()) == count
        images = FactorKind.of(layer, links[0]).images(2, 5)
        assert module(torch.zeros(images)).shape == (2, 7, *layer.out_hw)


def fake_tables(view, milliseconds):
    tables = {}
    for layer in view.layers:
        for name, grid in factor_grids(layer, view.module.get_submodule(layer.name)).items():
            times = [[milliseconds(a, b) for b in grid.outputs] for a in grid.inputs]
            tables[layer.name, name] = grid.inputs, grid.outputs, times
    return tables


def test_times_are_interpolated_scaled_and_summed():
    view = view_of()
    parts = {layer.name: 1.0 + layer.index for layer in view.layers}
    model = LatencyCost(view, fake_tables(view, lambda a, b: 2 + 0.5 * a * b), parts, beside=0.0)
    assert model.total == pytest.approx(sum(parts.values()))
    layer = view.layers[1]
    c, n = layer.in_channels, layer.out_channels
    scale = parts[layer.name] / (2 + 0.5 * c * n)
    assert model.layer(layer, c, n) == pytest.approx(parts[layer.name])
    assert model.layer(layer, 5, n) == pytest.approx(scale * (2 + 0.5 * 5 * n))  # bilinear in between is exact here
    chain_ms = (2 + 0.5 * 5 * 7) + (2 + 0.5 * 7 * 3) + (2 + 0.5 * 3 * 9)
    assert model.layer(layer, 5, 9, 7, 3) == pytest.approx(scale * chain_ms)
    a, b = np.array([[1], [5], [c]]), np.array([[2, n]])
    table = model.layer(layer, a, b, 7, 3)
    assert table.shape == (3, 2) and table[1, 1] == pytest.approx(model.layer(layer, 5, n, 7, 3))


def test_what_lies_beside_the_layers_goes_with_their_outputs():
    view = view_of()
    parts = {layer.name: 1.0 for layer in view.layers}
    tables = fake_tables(view, lambda a, b: 1.0)
    with_it, without = (LatencyCost(view, tables, parts, beside) for beside in (6.0, 0.0))
    assert with_it.total == without.total + 6
    added = {
        layer.name: [with_it.layer(layer, 1, n) - without.layer(layer, 1, n) for n in (1, layer.out_channels)]
        for layer in view.layers
    }
    assert sum(whole for _, whole in added.values()) == pytest.approx(6)
    for layer in view.layers:
        assert added[layer.name][0] == pytest.approx(added[layer.name][1] / layer.out_channels)


def test_a_selection_takes_its_time_only_where_fewer_channels_are_read_than_are_there():
    view = view_of()
    tables, parts = fake_tables(view, lambda a, b: 1.0 + a), {layer.name: 1.0 for layer in view.layers}
    layer, other = view.layers[1], view.layers[2]
    without, model = LatencyCost(view, tables, parts, 0.0), LatencyCost(view, tables, parts, 0.0, 1, {layer.name: 0.25})
    c, n = layer.in_channels, layer.out_channels
    added = [model.layer(layer, width, n) - without.layer(layer, width, n) for width in (1, c - 1, c)]
    assert added == pytest.approx([0.25, 0.25, 0.0]) and model.total == without.total
    widths, outputs = np.array([[1], [c - 1], [c]]), np.array([[2, n]])
    table = model.layer(layer, widths, outputs, 3, 2) - without.layer(layer, widths, outputs, 3, 2)
    assert table == pytest.approx(np.array([[0.25, 0.25], [0.25, 0.25], [0.0, 0.0]]))
    assert model.layer(other, 1, 1) == without.layer(other, 1, 1)


def test_noise_that_makes_wider_factors_faster_is_not_followed():
    view = view_of()
    tables = fake_tables(view, lambda a, b: 1.0)
    name = view.layers[1].name
    inputs, outputs, times = tables[name, "dense"]
    times[1][1] = 5.0  # slower than all that are wider
    model = LatencyCost(view, tables, {layer.name: 1.0 for layer in view.layers}, beside=0.0)
    wide = model.layer(view.layers[1], inputs[-1], outputs[-1])
    assert model.layer(view.layers[1], inputs[1], outputs[1]) == pytest.approx(wide)


def test_where_factors_only_take_longer_the_allocation_narrows_instead():
    """A device on which a call costs all the time: two factors are twice as slow as one, whatever their width."""
    view = view_of()
    rng, curves = np.random.default_rng(0), {}
    for layer in view.layers:
        made = {
            step: rng.uniform(0.2, 2) * (1 - np.arange(limit + 1) / limit) ** 2
            for step, (_, limit, _) in limits(layer).items()
            if step not in layer.left_alone
        }
        curves[layer.name] = LayerCurves(**made)
    tables = fake_tables(view, lambda a, b: 50.0 + 0.1 * a * b)
    model = LatencyCost(view, tables, {layer.name: 1.0 for layer in view.layers}, beside=0.0)
    items = Allocator(view, curves, model).joint(1.05)
    assert all(item.spatial_rank is None and item.channel_rank is None for item in items.values())
    assert any(item.keep is not None for item in items.values())


def test_a_kind_is_told_apart_by_all_that_its_time_depends_on():
    words = {
        FactorKind((3, 3), in_hw=(8, 8)).words(4, 5),
        FactorKind((3, 3), in_hw=(8, 8)).words(5, 4),
        FactorKind((3, 1), in_hw=(8, 8)).words(4, 5),
        FactorKind((3, 3), in_hw=(8, 9)).words(4, 5),
        FactorKind(latency.LINEAR).words(4, 5),
    }
    assert len(words) == 5


def test_single_sizes_cost_what_they_cost_in_a_table_of_many():
    random = np.random.default_rng(0)
    milliseconds = np.cumsum(np.cumsum(random.random((3, 4)), 0), 1)
    at = latency._interpolator([2, 5, 9], [4, 8, 16, 21], milliseconds.tolist(), block=4)
    n_in, n_out = np.arange(1, 13)[:, None], np.arange(1, 25)[None, :]
    many = at(n_in, n_out)
    ones = [[at(i, o) for o in n_out[0].tolist()] for i in n_in[:, 0].tolist()]
    assert many.shape == (12, 24) and np.array_equal(many, ones)
    assert at(5, 8) == milliseconds[1, 1] and at(99, 99) == milliseconds[2, 3] and at(1, 3) < at(1, 8)
    middle = 0.5 * (milliseconds[1, 1] + milliseconds[2, 1])
    assert at(7, 8) == pytest.approx(middle)
