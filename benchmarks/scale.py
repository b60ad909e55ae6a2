"""Time and traffic of `decompose` in many processes, on paper: from rates measured here on one thread.

    python -m benchmarks.scale --images 50000 --processes 1 8 64

Rates are processor seconds of forward passes, moments, sweeps of the activation-aware fit, and of what is not shared:
the curves and the solution of one layer without its passes over rows, at some widths; between and beyond them in
proportion to the power of the columns that the two nearest show. The rest is counted: which layers a network has, what
each process gives to exchanges, and how long that takes at a bandwidth that is assumed.
"""

import argparse
import math
import time

import torch
import torchvision
from torch import nn

from benchmarks.common import machine, markdown
from decomp.allocation.plan import LayerPlan
from decomp.pipelines.decomposition.row_tiles import BLOCK_ROWS
from decomp.pipelines.decomposition.survey_curves import _own_curves
from decomp.problem.factors import Geometry
from decomp.problem.layer_problem import LayerProblem
from decomp.problem.moments import TILE_COLUMNS, TILE_ROWS, Moments, MomentSum
from decomp.solvers.half_quadratic import HalfQuadratic, LowRankMap
from decomp.solvers.linalg import least_squares
from decomp.solvers.solve_layer import solve_layer

NETWORKS = ("vgg16", "resnet50")
POINTS, PASSES, SIZE = 10, 4.0, 224
# Sweeps over the rows of a layer: measured in runs at 4x as 10 to 50; passes that make targets of the refinement.
SWEEPS, TARGETS, MEASURED = 30, 4, 9
FIELDS = (
    "network", "processes", "forward", "moments", "sweeps", "curves", "solutions", "exchange", "hours", "speedup",
    "GiB",
)  # fmt: skip


def seconds(work, repeats=1):
    """Least processor seconds of a call, after a first one."""
    found = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found[1:])


def problem(c, n, kernel):
    """A layer of random weights whose inputs are correlated and differ from those of the responses, as in a network."""
    generator, p = torch.Generator().manual_seed(0), c * kernel**2
    weight = torch.randn(n, c, kernel, kernel, generator=generator) / p**0.5
    mixing = torch.randn(p, p, generator=generator) / p**0.5 * torch.logspace(0.5, -1.5, p)[:, None]
    X = (torch.randn(max(4096, 2 * p), p, generator=generator) @ mixing + 0.3).relu()
    Y = X @ weight.flatten(1).T
    X = (X + 0.2 * X.std() * torch.randn(X.shape, generator=generator)).unflatten(1, (c, kernel, kernel))
    moments = Moments.of_rows(X, Y)
    return LayerProblem("layer", weight, torch.zeros(n), Geometry(), moments, "relu", lambda: iter([(X, Y)]))


def alone(c, n, kernel):
    """Processor seconds of the curves of a layer, and of its solution at all three steps."""
    one = problem(c, n, kernel)
    sizes = LayerPlan("layer", c * 3 // 4, c * kernel // 2 if kernel > 1 else None, n * 3 // 4)
    steps = ["prune", "spatial", "channel"] if kernel > 1 else ["prune", "channel"]
    start = time.process_time()
    _own_curves(steps, one, one.moments)
    middle = time.process_time()
    solve_layer(one, sizes)
    return middle - start, time.process_time() - middle


def rates(widths):
    """Seconds of one image, of one row of moments per product, of one row of a sweep per n², and alone by columns."""
    found = {"alone": {}}
    for name in NETWORKS:
        network = getattr(torchvision.models, name)(weights=None).eval()
        x = torch.randn(4, 3, SIZE, SIZE)
        with torch.no_grad():
            found[name] = seconds(lambda network=network, x=x: network(x)) / len(x)
    p, n = 2304, 256
    X, Y, moments = torch.randn(TILE_ROWS, p), torch.randn(TILE_ROWS, n), MomentSum(p, n)
    found["moments"] = seconds(lambda: moments.add(X, Y)) / TILE_ROWS / products(p, n)
    one = problem(n, n, 1)
    fit = least_squares(one.moments, prior=one.matrix())
    splitting = HalfQuadratic(one, one.moments, fit, fit.weight)
    start = LowRankMap(torch.eye(n).double()[:, : n // 2], torch.eye(n).double()[: n // 2], one.moments.y_mean)
    found["sweep"] = seconds(lambda: splitting.sweep(start, 0.01), 3) / 4096 / n**2
    for c in widths:
        found["alone"][9 * c] = alone(c, c, 3)
        curves, solution = found["alone"][9 * c]
        print(f"{9 * c} columns: curves {curves:.2f} s, solution {solution:.2f} s", flush=True)
    return found


def products(p, n):
    return p * (p + TILE_COLUMNS) / 2 + p * n + n * n / 2


def at_columns(known, p, place):
    """Seconds at a number of columns, by the power between the two nearest numbers that were measured."""
    columns = sorted(known)
    high = next((i for i in range(1, len(columns)) if columns[i] >= p), len(columns) - 1)
    a, b = columns[high - 1], columns[high]
    power = math.log(known[b][place] / known[a][place]) / math.log(b / a)
    return known[b][place] * (p / b) ** power


def layers(name):
    """Columns p, responses n and whether an activation follows, of the convolutions of a network without the first."""
    modules = getattr(torchvision.models, name)(weights=None).named_modules()
    convolutions = [(path, module) for path, module in modules if isinstance(module, nn.Conv2d)]
    return [
        (
            m.in_channels * m.kernel_size[0] * m.kernel_size[1],
            m.out_channels,
            not path.endswith(("conv3", "downsample.0")),
        )
        for path, m in convolutions[1:]
    ]


def traffic(p, n, activated):
    """Bytes of one layer that very many processes each send to others, survey and fit together.

    Of an entry of a sum two numbers go to the process that adds them up, and one comes from it to all. An entry that
    one process has and all need is passed on about twice.
    """
    added, passed_on = 2 * 2 * products(p, n), p * n * MEASURED / 2 + (p + n) * BLOCK_ROWS / 2
    if activated:  # sums of a sweep, and the map that they give; targets of the refinement
        added += (n * n + 2 * n) * SWEEPS + (p * n + n * n) * TARGETS
        passed_on += (n * n + n) * SWEEPS + p * n * (1 + TARGETS)
    return 24 * added + 16 * passed_on


def estimate(name, n_images, processes, rate, bandwidth):
    """One row of the table, in hours."""
    found, sent_of_all = dict.fromkeys(FIELDS[2:8], 0.0), (processes - 1) / processes
    n_rows, shapes = n_images * POINTS, layers(name)
    found["forward"] = PASSES * n_images * rate[name] / processes
    blocks = math.ceil(n_rows / BLOCK_ROWS / processes) * BLOCK_ROWS  # whole blocks
    own = min(blocks, n_rows)
    curves = [at_columns(rate["alone"], p, 0) for p, _, _ in shapes]
    for p, n, activated in shapes:
        found["moments"] += 2 * own * products(p, n) * rate["moments"]
        found["sweeps"] += activated * own * n * rate["sweep"] * (SWEEPS * n + TARGETS * p)
        found["solutions"] += at_columns(rate["alone"], p, 1)
        found["exchange"] += sent_of_all * traffic(p, n, activated) / bandwidth
    # Neighbouring layers at a time, one for each process: all wait for the slowest.
    found["curves"] = sum(max(curves[i : i + processes]) for i in range(0, len(curves), processes))
    hours = {key: value / 3600 for key, value in found.items()}
    sent = sent_of_all * sum(traffic(*shape) for shape in shapes) / 2**30
    return {"network": name, "processes": processes, **hours, "hours": sum(hours.values()), "GiB": sent}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256], help="channels of 3x3 layers")
    parser.add_argument("--bandwidth", type=float, default=1e9, help="bytes a second between processes, assumed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rate = rates(options.widths)
    for name in NETWORKS:
        print(f"{name}: {rate[name]:.3f} s an image")
    print(f"moments {1e-9 / rate['moments']:.1f} G products/s, sweeps {1e9 * rate['sweep']:.3f} ns per row and n²")
    rows = []
    for name in NETWORKS:
        for processes in options.processes:
            rows.append(estimate(name, options.images, processes, rate, options.bandwidth))
            first = next(row for row in rows if row["network"] == name)
            rows[-1]["speedup"] = first["hours"] / rows[-1]["hours"]
    print(machine())
    print(markdown(FIELDS, rows))


if __name__ == "__main__":
    main()
