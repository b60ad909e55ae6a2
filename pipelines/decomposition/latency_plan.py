"""Plans for a measured speed-up: table of factor times, exclusion of slow factorizations, correction by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from decomp.allocation.choices import LayerPlans
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import Plan, columns, widths_written
from decomp.allocation.rules import Rules
from decomp.allocation.target import Allocation, allocate, limiting_factors, most
from decomp.cost.chain import chain, geometry_of
from decomp.cost.latency_model import FactorKind, LatencyCost, Table, chain_module, factor_grids
from decomp.errors import TargetError
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import require_supported
from decomp.surgery.random_network import random_network

from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..measure import devices
from .target_errors import limiting_options
from .timings import Timings, round_ratios

# The target of the search is corrected until the measured speed-up is between these shares of the requested one, at
# most CORRECTIONS times.
ENOUGH, SURPLUS, CORRECTIONS = 0.98, 1.06, 5
# Below this share of the requested speed-up there is a warning or an error.
SHORT = 0.9
# Spread of the ratios of one network's times to those of itself, above which the machine is too busy to be believed.
NOISE = 0.2


def require_same_device(plan: Plan, device: torch.device, name: str, reporter: Reporter) -> None:
    """Refuse a plan by latency on another device than that of its measurement; warn of other conditions.

    Raises
    ------
    TargetError
        Naming both devices.
    """
    recorded = plan.latency
    name_here = devices.full_name(device)
    here = {"device": name_here, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if recorded["device"] != here["device"]:
        raise TargetError(
            name, f"was made for its latency on {recorded['device']}", got=here["device"],
            fix="use it there (see --device), or make one for this device with --cost latency --redo",
        )  # fmt: skip
    for key in ("threads", "torch"):
        if recorded[key] != here[key]:
            reporter.warn(f"{name}: latencies were measured with {key} {recorded[key]}, now {here[key]}")


def require_same_runtime(plan: Plan, runtime: str, name: str) -> None:
    """Refuse a plan for another runtime than the one that is asked for.

    Raises
    ------
    TargetError
        Naming both.
    """
    made = plan.latency.get("runtime", "eager") if plan.latency else f"no runtime, but to reduce {plan.cost}"
    if made != runtime:
        fix = "leave the runtime out, or make a plan for it with cost latency"
        raise TargetError(name, f"was made for {made}", got=f"the runtime {runtime}", fix=fix)


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
    assert options.runtime is not None
    require_supported(options.runtime, options.latency_layout, device.type)
    made = runtime(options.runtime, options.latency_layout)
    timings = Timings(path, device, options.latency_batch, made)
    timings.keep_prepared(graph.module, (options.latency_batch, *graph.input_shape))
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
    chosen = _choose(attempts, options.speedup, reporter)
    chosen.latency = search.confirmed(chosen)
    return chosen


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
        kind = FactorKind.of(layer, dense[0])
        placed = self.timings.placed(networks, kind, widths[0])
        times = self.timings.compare(placed, self.timings.shape(kind, widths[0]))
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

    def confirmed(self, allocation: Allocation) -> dict[str, Any]:
        """The measurement of the chosen sizes, made again; the lower of both speed-ups is the one that is said.

        The original runs twice in each round, so that the noise of the machine is measured beside the speed-up.
        """
        original, first = self.graph.module, allocation.latency
        networks = {"original": original, "planned": random_network(self.graph, allocation.plans), "again": original}
        times = self.timings.rounds(networks, (self.timings.batch_size, *self.graph.input_shape))
        low, high = round_ratios(times["original"], times["planned"])
        quiet_low, quiet_high = round_ratios(times["original"], times["again"])
        noise, before, after = quiet_high - quiet_low, median(times["original"]), median(times["planned"])
        found = {**first, "low": round(low, 3), "high": round(high, 3), "noise": round(noise, 3)}
        if before / after < first["measured_speedup"]:
            found |= {
                "original_ms": round(before, 4), "measured_ms": round(after, 4),
                "measured_speedup": round(before / after, 3),
            }  # fmt: skip
        if noise > NOISE:
            self.reporter.warn(
                f"the machine is busy: times of the original against itself spread over {100 * noise:.0f} %, so that "
                "the measured speed-up is not certain; make the plan again when nothing else runs"
            )
        elif found["measured_speedup"] < ENOUGH * self.options.speedup <= first["measured_speedup"]:
            self.reporter.warn(
                f"measured again, the planned sizes are {found['measured_speedup']:.2f}x as fast as the original, less "
                f"than the target of {self.options.speedup:g}x"
            )
        return found

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
    return LatencyCost(graph, tables, *_parts(timings, graph, names, shape))


def _parts(
    timings: Timings, graph: NetworkGraph, names: list[str], shape: tuple[int, ...]
) -> tuple[dict[str, float], float]:
    """Milliseconds of each fitted layer in the original, and of the rest.

    In eager mode both are measured while it runs. The parts of a compiled network are in the proportions of eager mode.
    Otherwise a layer takes as long as its convolutions in context, and the rest is what the network takes beside.
    """
    if not timings.in_context:
        parts, rest = timings.within(graph.module, names, shape)
        if timings.runtime.name == "eager":
            return parts, rest
        share = timings.compare({"whole": graph.module}, shape)["whole"] / (sum(parts.values()) + rest)
        return {name: time * share for name, time in parts.items()}, rest * share
    parts = {}
    for name in names:
        layer, geometry = graph.layer(name), geometry_of(graph.module.get_submodule(name))
        links = chain(layer, layer.in_channels, layer.out_channels, geometry=geometry)
        times = [
            timings.factor(FactorKind.of(layer, link), int(link.in_channels), int(link.out_channels)) for link in links
        ]
        parts[name] = sum(times) * len(layer.calls)
    timings.save()
    whole = timings.compare({"whole": graph.module}, shape)["whole"]
    share = min(1.0, whole / sum(parts.values()))
    return {name: time * share for name, time in parts.items()}, max(0.0, whole - sum(parts.values()))
