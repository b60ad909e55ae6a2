"""Plans for a measured speed-up: table of factor times, exclusion of slow factorizations, correction by measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from decomp.allocation.choices import LayerPlans
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import Plan, columns, widths_written
from decomp.allocation.rules import Rules
from decomp.allocation.target import Allocation, allocate, limiting_factors, most
from decomp.cost.chain import chain, geometry_of
from decomp.cost.latency_model import FactorKind, LatencyCost, Table, chain_module, factor_grids
from decomp.errors import FileError, TargetError
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.runtimes.eager import Eager
from decomp.runtimes.timing import latencies, random_images, times_within
from decomp.surgery.random_network import random_network

from ...data.formats.json_files import read_json, write_json
from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..measure import devices
from .target_errors import limiting_options

KIND = "decomp latencies"
# Repetitions of one factor: at most so many, and at least five of them even where they take longer than SECONDS.
REPEATS, SECONDS = 20, 0.05
ROUNDS, WHOLE_SECONDS = 30, 20.0
# The target of the search is corrected until the measured speed-up is between these shares of the requested one, at
# most CORRECTIONS times.
ENOUGH, SURPLUS, CORRECTIONS = 0.98, 1.06, 5
# Below this share of the requested speed-up there is a warning or an error.
SHORT = 0.9

Shape = tuple[int, ...]


class Timings:
    """Milliseconds of factors on one device, stored in the run directory.

    Parameters
    ----------
    path : Path
    device : torch.device
    batch_size : int
    layout : str
        Of :data:`decomp.runtimes.eager.LAYOUTS`.
    """

    def __init__(self, path: Path, device: torch.device, batch_size: int, layout: str) -> None:
        self.path, self.device, self.batch_size, self.layout = path, device, batch_size, layout
        self.conditions = conditions(device, batch_size, layout)
        self._key = "; ".join(f"{name} {value}" for name, value in self.conditions.items())
        self._entries: dict[str, dict[str, float]] = {}
        self._milliseconds: dict[str, float] = {}
        try:
            self._entries = read_json(path, kind=KIND)["entries"]
            self._milliseconds = dict(self._entries.get(self._key, {}))
        except (FileError, KeyError, TypeError, AttributeError, ValueError):
            self._entries = {}  # none, or a file that cannot be used: all is measured again

    def table(self, kind: FactorKind, inputs: Sequence[int], outputs: Sequence[int]) -> list[list[float]]:
        """Times of a kind of factor, (inputs, outputs) in milliseconds."""
        return [[self.factor(kind, n_in, n_out) for n_out in outputs] for n_in in inputs]

    def factor(self, kind: FactorKind, n_in: int, n_out: int) -> float:
        """Median time of one factor in milliseconds."""
        words = kind.words(n_in, n_out)
        if words not in self._milliseconds:
            shape = kind.images(self.batch_size, n_in)
            module = self._prepared(kind.build(n_in, n_out), shape)
            times = latencies({"": module}, shape, self.device, REPEATS, layout=self.layout, max_seconds=SECONDS)
            self._milliseconds[words] = round(median(times[""]), 5)
        return self._milliseconds[words]

    def compare(self, networks: Mapping[str, nn.Module], shape: Shape) -> dict[str, float]:
        """Median times of networks that run in turn, in milliseconds."""
        prepared = {name: self._prepared(network, shape) for name, network in networks.items()}
        times = latencies(prepared, shape, self.device, ROUNDS, layout=self.layout, max_seconds=WHOLE_SECONDS)
        return {name: median(values) for name, values in times.items()}

    def within(self, network: nn.Module, names: list[str], shape: Shape) -> tuple[dict[str, float], float]:
        """Times of a network's modules while it runs, and of the rest.

        See :func:`decomp.runtimes.timing.times_within`.
        """
        prepared = self._prepared(network, shape)
        return times_within(prepared, names, shape, self.device, ROUNDS, layout=self.layout, max_seconds=WHOLE_SECONDS)

    def _prepared(self, network: nn.Module, shape: Shape) -> nn.Module:
        return Eager(self.layout).prepare(network, random_images(shape, self.device, self.layout))

    def save(self) -> None:
        """Write all times to the file."""
        self._entries[self._key] = self._milliseconds
        write_json(self.path, {"entries": self._entries}, kind=KIND)


def conditions(device: torch.device, batch_size: int, layout: str) -> dict[str, Any]:
    """Conditions of a measurement on which a time depends, beside the shapes."""
    return {
        "device": devices.full_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "batch_size": batch_size, "layout": layout,
    }  # fmt: skip


def require_same_device(plan: Plan, device: torch.device, name: str, reporter: Reporter) -> None:
    """Refuse a plan by latency on another device than that of its measurement; warn of other conditions.

    Raises
    ------
    TargetError
        Naming both devices.
    """
    recorded = plan.latency
    here = conditions(device, recorded["batch_size"], recorded["layout"])
    if recorded["device"] != here["device"]:
        raise TargetError(
            name, f"was made for its latency on {recorded['device']}", got=here["device"],
            fix="use it there (see --device), or make one for this device with --cost latency --redo",
        )  # fmt: skip
    for key in ("threads", "torch"):
        if recorded[key] != here[key]:
            reporter.warn(f"{name}: latencies were measured with {key} {recorded[key]}, now {here[key]}")


def allocate_for_latency(
    path: Path,
    options: DecomposeOptions,
    graph: NetworkGraph,
    curves: Mapping[str, LayerCurves],
    rules: Rules,
    *,
    device: torch.device,
    reporter: Reporter,
) -> Allocation:
    """Sizes for a speed-up in measured time.

    The allocation uses a table of times of single factors. Factorizations that are measured to be slower than the
    layer in one piece are excluded, and a network of the chosen sizes, with random weights, is timed against the
    original: the target of the search is corrected by the difference from the table.

    Parameters
    ----------
    path : Path
        ``latency.json`` of the run.
    options : DecomposeOptions
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        Of the steps that may be used.
    rules : decomp.allocation.rules.Rules
    device : torch.device
    reporter : decomp.pipelines.console.reporter.Reporter

    Raises
    ------
    TargetError
        The smallest sizes are measured to be clearly slower than requested; names the limiting options.
    """
    assert options.latency_batch is not None and options.latency_layout is not None  # as cost is latency
    timings = Timings(path, device, options.latency_batch, options.latency_layout)
    search = _Search(timings, graph, _latency_cost(timings, graph, reporter), options, rules, reporter)
    attempts: list[Allocation] = []
    speedup = options.speedup
    for _ in range(CORRECTIONS + 1):
        reachable = most(graph, curves, search.cost, rules)
        speedup = min(speedup, reachable)
        allocation, curves = search.without_slow_chains(curves, speedup)
        allocation.latency = search.measure(allocation.plans)
        attempts.append(allocation)
        measured = _measured(allocation)
        reporter.step(f"measured speed-up with the planned sizes: {measured:.2f}x")
        if ENOUGH * options.speedup <= measured <= SURPLUS * options.speedup:
            break
        if measured < options.speedup and speedup == reachable:
            if measured < SHORT * options.speedup:
                raise search.out_of_reach(curves, measured)
            break
        speedup = _corrected(attempts, options.speedup)
    return _choose(attempts, options.speedup, reporter)


@dataclass(frozen=True)
class _Search:
    """Search on the table of times, checked by measurements."""

    timings: Timings
    graph: NetworkGraph
    cost: LatencyCost
    options: DecomposeOptions
    rules: Rules
    reporter: Reporter

    def without_slow_chains(
        self, curves: Mapping[str, LayerCurves], speedup: float
    ) -> tuple[Allocation, Mapping[str, LayerCurves]]:
        """An allocation in which no layer is slower than the same layer in one piece; the curves that remain."""
        graph, options = self.graph, self.options
        while True:
            reachable = min(speedup, most(graph, curves, self.cost, self.rules))
            allocation = allocate(
                graph, curves, self.cost, self.rules,
                speedup=reachable, allocation=options.allocation, steps=options.steps,
            )  # fmt: skip
            slow = [layer for layer in graph.layers if layer.fitted and self._is_slow(layer, allocation.plans)]
            if not slow:
                return allocation, curves
            for layer in slow:
                words = allocation.plans[layer.name].words()
                self.reporter.step(f"{layer.name}: {words} is not faster than the unsplit layer")
                curves = {**curves, layer.name: curves[layer.name].only("prune")}

    def _is_slow(self, layer: Layer, plans: LayerPlans) -> bool:
        plan = plans[layer.name]
        if not plan.factored:
            return False
        geometry = geometry_of(self.graph.module.get_submodule(layer.name))
        widths = columns(layer, plan.keep), widths_written(self.graph, plans)[layer.name]
        dense = chain(layer, *widths, geometry=geometry)
        factors = chain(layer, *widths, *plan.ranks, geometry=geometry)
        networks = {"chain": chain_module(layer, factors), "dense": chain_module(layer, dense)}
        images = FactorKind.of(layer, dense[0]).images(self.timings.batch_size, widths[0])
        times = self.timings.compare(networks, images)
        return times["chain"] >= times["dense"]

    def measure(self, plans: LayerPlans) -> dict[str, Any]:
        """Times of the original and of a network of the planned sizes, with the conditions of the measurement."""
        networks = {"original": self.graph.module, "planned": random_network(self.graph, plans)}
        times = self.timings.compare(networks, (self.timings.batch_size, *self.graph.input_shape))
        return {
            **self.timings.conditions,
            "original_ms": round(times["original"], 4),
            "measured_ms": round(times["planned"], 4),
            "measured_speedup": round(times["original"] / times["planned"], 3),
        }

    def out_of_reach(self, curves: Mapping[str, LayerCurves], measured: float) -> TargetError:
        """The error for a speed-up that the smallest sizes do not reach, with the limiting options."""
        options = self.options
        causes = limiting_options(
            limiting_factors(self.graph, curves, self.cost, self.rules, options.steps),
            rules=self.rules, skip=options.skip, keep_first=options.keep_first, steps=options.steps,
        )  # fmt: skip
        held = f"batch of {options.latency_batch}, limited by {'; '.join(causes)}"
        return TargetError(
            "--speedup", f"at most {measured:.2f}x was measured with the smallest sizes, {held}",
            got=f"{options.speedup:g}x", fix="lower the target or lift a limit",
        )  # fmt: skip


def _measured(allocation: Allocation) -> float:
    return allocation.latency["measured_speedup"]


def _corrected(attempts: list[Allocation], wanted: float) -> float:
    """Speed-up by the table at which the measured one should be as wanted.

    Between two attempts, one too slow and one too fast, by logarithmic interpolation; otherwise in proportion to the
    last attempt.
    """
    points = sorted((_measured(attempt), attempt.allocator.total / attempt.cost) for attempt in attempts)
    below = [point for point in points if point[0] < wanted]
    above = [point for point in points if point[0] >= wanted]
    aim = wanted * (1 + SURPLUS) / 2
    if below and above and below[-1][1] < above[0][1]:
        share = np.log(aim / below[-1][0]) / np.log(above[0][0] / below[-1][0])
        return float(below[-1][1] * (above[0][1] / below[-1][1]) ** min(max(share, 0.1), 0.9))
    last = attempts[-1]
    return max(1.0 + 1e-6, aim * last.allocator.total / last.cost / _measured(last))


def _choose(attempts: list[Allocation], wanted: float, reporter: Reporter) -> Allocation:
    """The slowest attempt that is measured to be fast enough; if there is none, the fastest."""
    enough = [attempt for attempt in attempts if _measured(attempt) >= ENOUGH * wanted]
    if enough:
        return min(enough, key=_measured)
    fastest = max(attempts, key=_measured)
    if _measured(fastest) < SHORT * wanted:
        reporter.warn(
            f"at most {_measured(fastest):.2f}x was measured, less than the target of {wanted:g}x; is the machine busy?"
        )
    return fastest


def _latency_cost(timings: Timings, graph: NetworkGraph, reporter: Reporter) -> LatencyCost:
    """Cost model from times of all factors that the plan can use, and of the whole network."""
    tables: dict[tuple[str, str], Table] = {}
    fitted = [layer for layer in graph.layers if layer.fitted]
    with reporter.progress(
        len(fitted), f"measuring convolutions, batch size {timings.batch_size}", "layers"
    ) as progress:
        for layer in fitted:
            for name, grid in factor_grids(layer, graph.module.get_submodule(layer.name)).items():
                times = timings.table(grid.kind, grid.inputs, grid.outputs)
                tables[layer.name, name] = grid.inputs, grid.outputs, times
            timings.save()
            progress.update(1)
    shape, names = (timings.batch_size, *graph.input_shape), [layer.name for layer in fitted]
    return LatencyCost(graph, tables, *timings.within(graph.module, names, shape))
