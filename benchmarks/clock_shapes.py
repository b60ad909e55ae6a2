"""Plans by measured time for torchvision's networks at 224 pixels with random weights, made and timed without images.

The loss of a size is a formula (the share of the network's work in the layer, times the squared share that is cut), so
that every layer gives up some of its sizes. Time, the table of times and the search are those of decompose.
"""

import json
import time
from pathlib import Path

import numpy as np

SIDE = 224
NAMES = ("vgg16", "resnet18", "resnet50", "mobilenet_v2")


def graph_of(name):
    """The traced network with its batch normalisations folded; equal in every process.

    As trained networks it has no bias of zeros, which an exporter would leave out.
    """
    import torch
    import torchvision

    from decomp.graph.network_graph import NetworkGraph
    from decomp.graph.tracing import trace
    from decomp.surgery.batchnorm import fold_bn

    torch.manual_seed(0)
    network = trace(getattr(torchvision.models, name)(weights=None).eval(), name)
    fold_bn(network)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return NetworkGraph(network, (3, SIDE, SIDE), name)


def curves_of(graph, macs):
    """Loss of every size by formula.

    Parameters
    ----------
    graph : decomp.graph.network_graph.NetworkGraph
    macs : mapping of str to int
        By layer.
    """
    from decomp.allocation.layer_curves import LayerCurves
    from decomp.allocation.plan import STEP_TABLE

    curves, whole = {}, sum(macs.values())
    for layer in graph.layers:
        steps = [step for step in STEP_TABLE if step.name not in layer.left_alone] if layer.fitted else []
        share = (macs.get(layer.name, 0) / whole) ** 0.5
        curves[layer.name] = LayerCurves(
            **{step.name: share * (1 - np.arange(n + 1) / n) ** 2 for step in steps for n in [step.largest(layer)]}
        )
    return curves


def plan_shape(name, runtime_name, asked, path, threads):
    """Write the sizes and the measurement of a plan, or the line with which it was refused."""
    import torch

    from decomp.allocation.plan import SIZES
    from decomp.allocation.rules import Rules
    from decomp.cost.count import cost
    from decomp.cost.models import counted_model
    from decomp.errors import DecompError
    from decomp.pipelines.console.reporter import Reporter
    from decomp.pipelines.decomposition.latency_plan import LatencyProblem, plans_for_latency
    from decomp.pipelines.decomposition.make_plan import decompose_options

    torch.set_num_threads(threads)
    graph, start = graph_of(name), time.monotonic()
    whole = cost(graph.module, graph.input_shape)
    options = decompose_options(speedup=asked, cost="latency", runtime=runtime_name, latency_batch=1)
    counted = counted_model("macs", graph, whole.per_layer, whole)
    try:
        problem = LatencyProblem(
            Path(path).parent / f"{name}-latency.json", options, graph, curves_of(graph, whole.per_layer),
            Rules(multiple=8), counted=counted, original=graph.module, device=torch.device("cpu"),
            reporter=Reporter(quiet=True),
        )  # fmt: skip
        found = plans_for_latency(problem)[0]  # without images, no trial takes the one by multiply-accumulates
    except DecompError as error:
        record = {"refused": str(error)}
    else:
        sizes = {layer: {size: getattr(plan, size) for size in SIZES.values()} for layer, plan in found.plans.items()}
        record = {"latency": found.latency, "sizes": sizes}
    Path(path).write_text(json.dumps({**record, "seconds": round(time.monotonic() - start, 1)}))


def networks_of(name, path):
    """The original and a network of the sizes in a file, with random weights."""
    from decomp.allocation.plan import LayerPlan
    from decomp.surgery.random_network import random_network

    graph, sizes = graph_of(name), json.loads(Path(path).read_text())["sizes"]
    plans = {layer: LayerPlan(layer, **own) for layer, own in sizes.items()}
    return {"original": graph.module, "planned": random_network(graph, plans)}
