import json

import pytest
import torch
from networks import CHAIN_INPUT, block, chain

from decomp.cost.count import cost
from decomp.errors import DecompError
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.serialise import build_graph, describe_graph
from decomp.graph.tracing import trace
from decomp.modules import convolution
from decomp.problem import factors
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, Selection
from decomp.surgery import apply_solution as surgery
from decomp.surgery import batchnorm


def images(shape, n=4):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3))


def masked(module, view, keeps):
    """The network at full shapes with the dropped channels set to zero right before their reader."""
    hooks = []
    for name, keep in keeps.items():
        space = view.layer(name).input_space
        mask = torch.zeros(space.width).index_fill(0, keep, 1.0).repeat_interleave(space.repeat)

        def hook(layer, inputs, mask=mask):
            x = inputs[0]
            return (x * (mask if x.dim() == 2 else mask[:, None, None]),)

        hooks.append(view.module.get_submodule(name).register_forward_pre_hook(hook))
    return hooks


@pytest.mark.parametrize("seed", range(6))
def test_narrow_networks_equal_masked_ones(seed):
    generator = torch.Generator().manual_seed(seed)
    module, x = chain(), images(CHAIN_INPUT)
    network = trace(module)
    if seed % 2:
        batchnorm.fold_bn(network)
    view = NetworkGraph(network, CHAIN_INPUT)
    keeps = {}
    for layer in view.layers:
        if layer.input_space:
            width = layer.input_space.width
            count = int(torch.randint(1, width + 1, (), generator=generator))
            keeps[layer.name] = torch.randperm(width, generator=generator)[:count].sort().values
    hooks = masked(module, view, keeps)
    wanted = network(x)
    for hook in hooks:
        hook.remove()
    before = cost(network, CHAIN_INPUT).macs
    for layer in view.layers:
        own = network.get_submodule(layer.name)
        space, keep = layer.input_space, keeps.get(layer.name)
        selection = None
        weight = own.weight.detach()
        if layer.kind == "linear":
            weight = weight.reshape(len(weight), space.width, *space.map_shape)
        if keep is not None:
            selection, weight = Selection(keep, space.width), weight[:, keep]
        bias = None if own.bias is None else own.bias.detach()
        geometry = convolution.geometry(own) if layer.kind == "conv" else Geometry()
        solution = factors.LayerSolution(layer.name, selection, FactoredConv.dense(weight, bias, geometry))
        surgery.apply_solution(network, view, solution)
    assert torch.allclose(network(x), wanted, atol=1e-5)
    assert cost(network, CHAIN_INPUT).macs <= before


def test_factors_become_a_chain_of_named_convolutions():
    g = Geometry((2, 1), (1, 2), (1, 1), "zeros")
    vertical = ConvFactor(torch.randn(4, 8, 3, 1), None, g.vertical())
    horizontal = ConvFactor(torch.randn(6, 4, 1, 5), None, g.horizontal())
    pointwise = ConvFactor(torch.randn(10, 6, 1, 1), torch.randn(10))
    factored = FactoredConv((vertical, horizontal, pointwise), ("vertical", "horizontal", "pointwise"))
    module = surgery.module_from_factors(factors.LayerSolution("3", None, factored), "conv")
    assert list(dict(module.named_children())) == ["vertical", "horizontal", "pointwise"]
    x = images((8, 12, 12))
    assert torch.allclose(module(x), factored.forward(x), atol=1e-5)
    assert module.pointwise.out_channels == 10


def test_a_layer_without_a_space_is_not_narrowed():
    network = trace(block())
    view = NetworkGraph(network, (3, 8, 8), sampler=False)
    own = network.conv1
    solution = factors.LayerSolution(
        "conv1",
        Selection(torch.tensor([0]), 8),
        FactoredConv.dense(own.weight.detach()[:, :1], None, Geometry((1, 1), (1, 1))),
    )
    with pytest.raises(DecompError, match="conv1: its input cannot be narrowed"):
        surgery.apply_solution(network, view, solution)


def test_a_shared_input_is_sampled_and_its_writer_keeps_its_width():
    network, x = trace(block()), images((3, 8, 8))
    view = NetworkGraph(network, (3, 8, 8))
    own, keep = network.conv1, torch.tensor([1, 3, 6])
    hooks = masked(network, view, {"conv1": keep})
    wanted = network(x)
    for hook in hooks:
        hook.remove()
    dense = FactoredConv.dense(own.weight.detach()[:, keep], None, Geometry((1, 1), (1, 1)))
    assert surgery.apply_solution(network, view, factors.LayerSolution("conv1", Selection(keep, 8), dense)) == ["conv1"]
    assert network.stem.out_channels == 8 and network.conv1.dense.in_channels == 3
    assert torch.allclose(network(x), wanted, atol=1e-5)
    assert network.conv1.select.index.tolist() == [1, 3, 6] and not list(network.conv1.select.parameters())
    again = trace(network)
    assert torch.equal(again(x), network(x))
    rebuilt = build_graph(json.loads(json.dumps(describe_graph(network))), network.state_dict())
    assert torch.equal(rebuilt(x), network(x))
