"""Channels dropped by the same criterion in this package and in Torch-Pruning, layer by layer.

    .peers/bin/python -m benchmarks.peers.same_choice

Every layer loses the same share of its channels, residual streams as whole groups. Torch-Pruning's group norm sums the
weights that write, scale and read a channel, as `group-l1` and `group-l2` do; `l1` and `l2` of this package look at the
filters that write it alone, so that these may differ. The table says in how many layers the dropped channels are the
same ones, and what share of all dropped channels is common to both.
"""

import argparse

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.common import markdown
from decomp.criteria.candidates import candidates
from decomp.criteria.choose import by_layer
from decomp.criteria.scores import score
from decomp.data import models
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace

#: Criterion of this package, and the exponent of Torch-Pruning's norm.
PAIRS = (("group-l1", 1), ("group-l2", 2), ("l1", 1), ("l2", 2))


def ours(network, shape, criterion, ratio):
    """Dropped channels of each layer that writes some."""
    graph = NetworkGraph(trace(network), shape)
    names = candidates(graph.spaces, coupled=True)
    choice = by_layer(score(graph.module, graph.spaces, names, criterion), ratio)
    return {
        path: frozenset(range(graph.spaces[name].width)) - frozenset(places)
        for name, places in choice.keep.items()
        for path in graph.spaces[name].producers
    }


def theirs(network, shape, power, ratio):
    """The same of Torch-Pruning."""
    names = {module: name for name, module in network.named_modules()}
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        network, torch.zeros(1, *shape), importance=tp.importance.GroupMagnitudeImportance(p=power),
        pruning_ratio=ratio, ignored_layers=[classifier],
    )  # fmt: skip
    dropped = {}
    for group in pruner.step(interactive=True):
        for member, places in group:
            if member.handler in (tp.prune_conv_out_channels, tp.prune_linear_out_channels):
                dropped[names[member.target.module]] = frozenset(places)
        group.prune()
    return dropped


def compared(name, criterion, power, ratio):
    """A row of the table."""
    loaded = models.load_model(name)
    network = loaded.module.eval()
    mine = ours(network, loaded.input_shape, criterion, ratio)
    other = theirs(models.load_model(name).module.eval(), loaded.input_shape, power, ratio)
    layers = [path for path in mine if path in other]
    common = sum(len(mine[path] & other[path]) for path in layers)
    return {
        "network": name, "decomp": criterion, "torch-pruning": f"group norm, p = {power}", "dropped": f"{ratio:.0%}",
        "layers": len(layers), "equal": sum(mine[path] == other[path] for path in layers),
        "channels in common": f"{common / max(1, sum(len(other[path]) for path in layers)):.1%}",
        "only in one": len(mine.keys() ^ other.keys()),
    }  # fmt: skip


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="zoo:vgg-fashion,zoo:resnet20-fashion")
    parser.add_argument("--ratio", type=float, default=0.5)
    asked = parser.parse_args()
    rows = [compared(name, *pair, asked.ratio) for name in asked.networks.split(",") for pair in PAIRS]
    print(markdown(tuple(rows[0]), rows))


if __name__ == "__main__":
    main()
