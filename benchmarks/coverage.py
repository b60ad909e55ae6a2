"""Coverage of known families of networks: trace, narrowing, factors, writing, reading.

``python -m benchmarks.coverage`` writes docs/coverage.md. Weights are random and normalisation statistics
randomised, so this says nothing of accuracy: it says what is understood, that nothing is changed where nothing is
left out, and that what is emitted costs what was planned and loads in a fresh process to the same output. Factors
come from the weights alone. Each network runs in a process of its own; results are kept in a JSON file beside, and
networks that are in it are not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import decomp
from benchmarks.coverage_networks import build, listed
from decomp.allocation.allocator import Allocator
from decomp.allocation.layer_curves import LayerCurves
from decomp.cost import models
from decomp.cost.count import cost
from decomp.data.formats import network_file
from decomp.errors import DecompError
from decomp.execution.outputs import difference, leaves
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.modules import convolution
from decomp.problem import factors
from decomp.problem.factors import ConvFactor, FactoredConv, Geometry, Selection
from decomp.surgery import batchnorm
from decomp.surgery.apply_solution import apply_solution

TOLERANCE, ASKED = 1e-4, 2.0
ROOT = Path(__file__).resolve().parent.parent


def factored(layer, module, keep, item):
    """A layer's weights on the channels it keeps, as exact or truncated products."""
    kernel = module.weight if layer.kind == "linear" else convolution.kernel_of(module)
    weight, bias = kernel.detach(), None if module.bias is None else module.bias.detach()
    if layer.kind == "linear":
        space = layer.input_space
        weight = weight.reshape(len(weight), -1, *(space.map_shape if space else (1, 1)))
        return FactoredConv.dense(weight if keep is None else weight[:, keep], bias, Geometry())
    weight, geometry = weight if keep is None else weight[:, keep], convolution.geometry(module)
    (n, c, kh, kw), factors, names = weight.shape, [], []
    if item.spatial_rank is not None:
        A = weight.permute(1, 2, 0, 3).reshape(c * kh, n * kw)
        V, H = product(A, item.spatial_rank)
        factors.append(ConvFactor(V.T.reshape(-1, c, kh, 1).contiguous(), None, geometry.vertical()))
        names.append("vertical")
        weight = H.reshape(-1, n, kw).permute(1, 0, 2)[:, :, None].contiguous()
        geometry = geometry.horizontal()
    last = "horizontal" if names else "dense"
    if item.channel_rank is not None:
        P, F = product(weight.flatten(1), item.channel_rank)
        factors.append(ConvFactor(F.reshape(-1, *weight.shape[1:]).contiguous(), None, geometry))
        weight, geometry, last = P[:, :, None, None].contiguous(), Geometry(), "pointwise"
        names.append("filters")
    return FactoredConv((*factors, ConvFactor(weight, bias, geometry)), (*names, last))


def product(A, rank):
    """A ≈ L R with ``rank`` columns in L; exact at full rank."""
    if rank >= min(A.shape):
        Q, R = torch.linalg.qr(A)
        extra = rank - Q.shape[1]
        return nn.functional.pad(Q, (0, extra)), nn.functional.pad(R, (0, 0, 0, extra))
    U, S, V = torch.svd_lowrank(A, q=rank, niter=0)
    return U * S, V.T


def apply(network, view, items):
    """Put every layer's plan into the network; the first channels stay."""
    edited = []
    for layer in view.layers:
        item = items[layer.name]
        if layer.fitted and item.treated:
            keep = None if item.keep is None else torch.arange(item.keep)
            selection = None if keep is None else Selection(keep, layer.input_space.width)
            chain = factored(layer, network.get_submodule(layer.name), keep, item)
            edited += apply_solution(network, view, factors.LayerSolution(layer.name, selection, chain))
    return list(dict.fromkeys(edited))


def full_sizes(view):
    """Every step of every layer at its full size."""
    from decomp.allocation.plan import LayerPlan, limits

    items = {}
    for layer in view.layers:
        item = items[layer.name] = LayerPlan(layer.name)
        for step, (name, limit, _) in limits(layer).items():
            if step not in layer.left_alone:
                setattr(item, name, limit)
    return items


def flat_curves(view):
    """Losses that fall evenly with every size: only the cost is to be met."""
    import numpy as np

    items, found = full_sizes(view), {}
    for layer in view.layers:
        item = items[layer.name]
        sizes = (item.keep, item.spatial_rank, item.channel_rank)
        found[layer.name] = LayerCurves(*(None if size is None else np.linspace(1, 0, size + 1) for size in sizes))
    return found


def run_one(name, speedup=ASKED):
    """The facts of one network, as a row of the table."""
    torch.manual_seed(0)
    row = {"name": name}
    module, shape = build(name)
    x = torch.randn(2, *shape)
    try:
        began = time.perf_counter()
        network = trace(module, name, shape=shape)
        batchnorm.fold_bn(network)
        view = NetworkGraph(network, shape, name)
        row["seconds"] = time.perf_counter() - began
        counted = cost(network, shape)
        alone = [layer for layer in view.layers if layer.kind == "conv" and not layer.fitted]
        row.update(
            convs=sum(layer.kind == "conv" for layer in view.layers), alone=len(alone),
            own=sum(bool(la.input_space and not la.input_space.sampled) for la in view.layers),
            sampled=sum(bool(la.input_space and la.input_space.sampled) for la in view.layers),
            recovers=sum(la.recovers is not None for la in view.layers),
            whole_conv_share=sum(counted.per_layer.get(la.name, 0) for la in view.layers if la.fitted) / counted.macs,
        )  # fmt: skip
        with torch.no_grad():
            wanted = module(x)
            apply(network, view, full_sizes(view))
            row["exact"] = difference(wanted, network(x))
        network = trace(module, name, shape=shape)
        del module
        batchnorm.fold_bn(network)
        view = NetworkGraph(network, shape, name)
        allocator = Allocator(view, flat_curves(view), models.MacsCost(view, counted.per_layer))
        row["most"] = allocator.most()
        # Where the target is out of reach, what is emitted and read back is the cheapest there is.
        items = allocator.uniform(speedup) if row["most"] >= speedup else allocator.smallest()
        planned = allocator.cost(items)
        edited = apply(network, view, items)
        row["speedup"] = counted.macs / cost(network, shape).macs
        row["as_planned"] = cost(network, shape).macs == planned
        row["loads"] = loads_elsewhere(network, edited, shape, x)
    except DecompError as error:
        row["refused"] = str(error)
    return row


def loads_elsewhere(network, edited, shape, x):
    """Whether the emitted network, loaded in a fresh process, gives the same finite output."""
    with tempfile.TemporaryDirectory() as folder:
        network_file.save(network, Path(folder) / "net", edited=edited, input_shape=shape)
        with torch.no_grad():
            y = network(x)
        finite = all(bool(torch.isfinite(value).all()) for _, value in leaves(y) if isinstance(value, torch.Tensor))
        torch.save((x, [value for _, value in leaves(y)]), f"{folder}/xy.pt")
        code = (
            "import sys, torch, decomp; from decomp.execution.outputs import difference, leaves; "
            "x, y = torch.load(sys.argv[1] + '/xy.pt'); torch.set_grad_enabled(False);"  # attention has a path for that
            "z = [value for _, value in leaves(decomp.load(sys.argv[1] + '/net')(x))]; print(difference(y, z) == 0)"
        )
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT)
        return finite and done.stdout.strip() == "True"


def table(rows, names):
    """The rows as Markdown."""
    lines = [
        "# Coverage", "",
        "Written by `python -m benchmarks.coverage`: random weights and normalisation statistics, small inputs,",
        "factors from the weights alone, so the page contains nothing about accuracy. *exact*: largest difference of",
        "an output, over its largest entry, with every step at full size. *2x*: counted speed-up of the network for",
        "a target of 2x; it has the planned cost and loads in a fresh process with the same output. If 2x is out of",
        "reach, the cheapest network is shown: the cost of transformers outside their convolutions remains. *left",
        "alone*: grouped and depthwise convolutions, which are not fitted; *narrowed*: layers that lose channels",
        "together with the layer before them; *sampled*: layers that read a subset of channels which other layers",
        "read too; *recovery*: layers that also correct the error of the other summand of a sum. Rows of networks",
        "that were run before are kept from then. Of `detection:` networks it is the backbone with the heads that run",
        "on its maps, of `yolo:` networks all up to the maps that boxes are decoded from.",
        "", f"{len(rows)} of {len(names)} networks on the list have been run.", "",
        "| network | convs | left alone | narrowed | sampled | recovery | trace | exact | 2x |",
        "| ------- | ----- | ---------- | -------- | ------- | -------- | ----- | ----- | -- |",
    ]  # fmt: skip
    for row in rows:
        if "convs" not in row:
            lines.append(f"| {row['name']} | | | | | | | | {row.get('refused') or row.get('failed')} |")
            continue
        exact = f"{row['exact']:.0e}" if "exact" in row else ""
        if exact and row["exact"] > TOLERANCE:
            exact = f"NOT: {exact}"
        end = row.get("refused") or row.get("failed")
        if "loads" in row:
            end = f"{row['speedup']:.2f}x" + ("" if row["as_planned"] else ", NOT as planned")
            end += "" if row["loads"] else ", DIFFERS when loaded"
            if row["most"] < ASKED:
                end += f" at most: what can be fitted is {100 * row['whole_conv_share']:.1f} % of its cost"
        lines.append(f"| {row['name']} | {row['convs']} | {row['alone']} | {row['own']} | {row['sampled']} | "
                     f"{row['recovers']} | {row['seconds']:.1f} s | {exact} | {end} |")  # fmt: skip
    return "\n".join([*lines, ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="networks to run; all that have not been run yet where not given")
    parser.add_argument("--results", default="coverage.json", help="where results are kept")
    parser.add_argument("--out", default=str(ROOT / "docs" / "coverage.md"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_one(given.one)))
        return
    names, missing = listed()
    results = Path(given.results)
    rows = json.loads(results.read_text()) if results.is_file() else {}
    for name in given.only or names:
        if name in rows and "failed" not in rows[name]:
            continue
        command = [sys.executable, "-m", "benchmarks.coverage", "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        failed = {"name": name, "failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:160]}
        rows[name] = json.loads(last) if done.returncode == 0 else failed
        results.write_text(json.dumps(rows, indent=1))
        print(json.dumps(rows[name]), flush=True)
    shown = [rows[name] for name in names if name in rows]
    Path(given.out).parent.mkdir(exist_ok=True)
    Path(given.out).write_text(table(shown, names) + (f"\n{missing}.\n" if missing else ""), encoding="utf-8")
    print(missing or f"decomp {decomp.__version__}: {given.out}")


if __name__ == "__main__":
    main()
