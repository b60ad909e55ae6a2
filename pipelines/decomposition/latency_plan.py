"""Plans for a measured speed-up: proposals from a table of times, measured as whole networks until one is as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.allocation.allocator import Allocator
from decomp.allocation.choices import LayerPlans
from decomp.allocation.interfaces import CostModel
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.plan import LayerPlan, columns, widths_written
from decomp.allocation.rules import Rules
from decomp.allocation.target import Allocation, allocate, limiting_factors, most
from decomp.cost.chain import chain, geometry_of
from decomp.cost.latency_model import FactorKind, LatencyCost, chain_module
from decomp.errors import TargetError
from decomp.graph.branches import residual_branches
from decomp.graph.layer import Layer
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.shared_spaces import whole_spaces
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import require_supported
from decomp.surgery.random_network import random_network

from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..measure.known_times import SAME
from .latency_tables import latency_cost
from .plans_between import plans_between
from .speed_ratio import RoundsRule, SpeedRatio
from .target_errors import limiting_options
from .target_search import CENTRE, ENOUGH, LEAST, MOST, SURPLUS, Attempt, Candidate, TargetSearch
from .timings import CHAIN_ROUNDS, CHAIN_SECONDS, Shape, Timings
from .whole_networks import PATIENCE, WholeNetworks

# Measurements of the chosen plan that may disagree with the ones before them, until the search gives up.
CONFIRMATIONS = 3
# Times that the choice is made again at most because the machine has become faster; plans by a counted cost that are
# tried to find the one of a given loss.
RETURNS, EQUAL_LOSS = 2, 7
# Plans of it, beside the first, that are proposed and those between two that are measured at most.
RIVAL = 3, 2
#: Expected loss of a plan by multiply-accumulates over that of the plan by measured time up to which both are tried. On
#: the shipped VGG at 2x in ONNX Runtime the first lost half as much at about the same time.
LOSS_RATIO = 2.5
#: Milliseconds of the original above which only one plan is made: measuring and trying a second one takes minutes then.
SLOW = 20.0


@dataclass(frozen=True, eq=False)
class LatencyProblem:
    """A speed-up in measured time that sizes of all layers are wanted for.

    Attributes
    ----------
    path : Path
        ``latency.json`` of the run.
    options : DecomposeOptions
    graph : decomp.graph.network_graph.NetworkGraph
    curves : dict of str to LayerCurves
        Of the steps that may be used.
    rules : decomp.allocation.rules.Rules
    counted : CostModel
        Multiply-accumulates.
    original : torch.nn.Module
        Against which networks are timed; not the graph's own where channels or blocks have gone before.
    device : torch.device
    reporter : decomp.pipelines.console.reporter.Reporter
    """

    path: Path
    options: DecomposeOptions
    graph: NetworkGraph
    curves: Mapping[str, LayerCurves]
    rules: Rules
    counted: CostModel
    original: nn.Module
    device: torch.device
    reporter: Reporter


def candidate_for_latency(problem: LatencyProblem) -> LayerPlans:
    """Sizes of a network that is one of several candidates, measured to be as fast as asked.

    A table of times of single factors proposes sizes; factorizations that are measured to be slower than the layer in
    one piece are excluded. Networks of the proposed sizes, with random weights, are timed against the original until
    one is as fast as asked (:mod:`decomp.pipelines.decomposition.target_search`), and the chosen one is measured
    again. A slow machine is not waited for.

    Parameters
    ----------
    problem : LatencyProblem

    Raises
    ------
    TargetError
        The smallest sizes are measured to be slower than requested, which names the limiting options; or the narrowed
        spaces alone make the network faster than that.
    """
    timings, shape = _timings(problem)
    with WholeNetworks(timings, problem.original, shape, problem.reporter) as networks:
        _, chosen = _Planner(problem, timings, _cost(timings, problem), networks).found()
        return chosen.candidate.plans


def plans_for_latency(problem: LatencyProblem) -> list[Allocation]:
    """Sizes for a speed-up in measured time, and where they may lose less, those of a plan by multiply-accumulates.

    The first ones are found as by :func:`candidate_for_latency`, while the original is watched: a slow machine is
    waited for. A plan by multiply-accumulates that is measured to be as fast is given beside it where it may lose less,
    see :data:`LOSS_RATIO`. Each is measured once more at the end.

    Parameters
    ----------
    problem : LatencyProblem

    Returns
    -------
    list of Allocation
        One or two, the one by measured time first.

    Raises
    ------
    TargetError
        As for :func:`candidate_for_latency`.
    """
    timings, shape = _timings(problem)
    with WholeNetworks(timings, problem.original, shape, problem.reporter) as networks:
        networks.watch(PATIENCE)
        cost = _cost(timings, problem)
        if timings.measured:  # a table takes long, and the machine may have another speed by now
            networks.watch(PATIENCE)
        planner = _Planner(problem, timings, cost, networks)
        found = [planner.found()]
        found += planner.counted_rival(found[0][1])
        return planner.allocations(found)


def latency_model(problem: LatencyProblem) -> LatencyCost:
    """The cost model that times of a network make, measured or read from ``latency.json``.

    Parameters and errors as for :func:`candidate_for_latency`.
    """
    return _cost(_timings(problem)[0], problem)


def _timings(problem: LatencyProblem) -> tuple[Timings, Shape]:
    """The known times, with the original prepared, and the shape of a batch."""
    options, device = problem.options, problem.device
    assert options.latency_batch is not None and options.latency_layout is not None  # as cost is latency
    assert options.runtime is not None
    require_supported(options.runtime, options.latency_layout, device.type)
    made, shape = runtime(options.runtime, options.latency_layout), (options.latency_batch, *problem.graph.input_shape)
    timings = Timings(problem.path, device, options.latency_batch, made)
    timings.keep_prepared(problem.original, shape)
    return timings, shape


def _cost(timings: Timings, problem: LatencyProblem) -> LatencyCost:
    graph, original, options, reporter = problem.graph, problem.original, problem.options, problem.reporter
    cost, shape = latency_cost(timings, graph, reporter), (timings.batch_size, *graph.input_shape)
    if original is not graph.module:
        times = timings.compare({"original": original, "smaller": graph.module}, shape)
        alone = times["original"] / times["smaller"]
        reporter.step(f"measured speed-up before the layers get their sizes: {alone:.2f}x")
        if alone > MOST * options.speedup:
            name, what, fix = "--coupled", "narrowed channel spaces", "keep a larger share of their channels"
            if not options.coupled:
                name, what, fix = "--leave-out", "blocks that are left out", "leave out fewer of them"
            rule = f"the {what} alone were measured {alone:.2f}x as fast, more than the target"
            raise TargetError(name, rule, got=f"{options.speedup:g}x", fix=f"{fix}, or raise the target")
        cost.total *= alone
    return cost


@dataclass(eq=False)
class _Planner:
    """Proposals for the search, measurements of whole networks, and the choice at the end."""

    problem: LatencyProblem
    timings: Timings
    cost: CostModel
    networks: WholeNetworks
    measured_chains: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph, self.options, self.rules = self.problem.graph, self.problem.options, self.problem.rules
        self.curves, self.reporter = self.problem.curves, self.problem.reporter
        self.all_sizes = Allocator(self.graph, self.curves, self.cost, self.rules)
        # Steps that are left, without the factorizations that are slower than a layer in one piece.
        self.usable = self.curves
        self._most = most(self.graph, self.curves, self.cost, self.rules)

    def found(self) -> tuple[TargetSearch, Attempt]:
        """The plan by measured time, with its search."""
        search = self._search(self._proposed, lambda: self._most)
        chosen = self._settled(search, self._confirmed(search, search.run()))
        if chosen.speedup < LEAST * self.options.speedup:
            raise self._out_of_reach(chosen)
        return search, chosen

    def allocations(self, found: list[tuple[TargetSearch, Attempt]]) -> list[Allocation]:
        """Plans, each measured once more, with their measurements; the first one is that by measured time."""
        (search, chosen), *rivals = found
        for _, rival in rivals:
            self._once_more(rival)
        kept = [rival for rival in rivals if rival[1].speedup >= LEAST * self.options.speedup]
        found, first = [(search, self._kept_at_the_end(search, chosen)), *kept], search.attempts[0]
        table_error = self.cost.total / first.candidate.milliseconds / first.speedup - 1
        return [self._allocation(*one, table_error) for one in found]

    def _allocation(self, search: TargetSearch, chosen: Attempt, table_error: float) -> Allocation:
        ratio = replace(self.networks.judged(chosen.ratio), spread=chosen.spread)
        latency = {
            **self.timings.conditions, **ratio.to_json(), "process": self.networks.process,
            "table_error": round(table_error, 4),
        }  # fmt: skip
        if not search.is_kept(chosen.speedup):
            slower, faster = search.neighbours()
            latency |= {"slower": round(slower, 3), "faster": round(min(faster, chosen.speedup), 3)}
        allocator, plans = self.all_sizes, chosen.candidate.plans
        return Allocation(allocator, plans, allocator.total / allocator.cost(plans), latency)

    def _search(self, propose: Any, highest: Any) -> TargetSearch:
        whole = {layer.name: LayerPlan(layer.name, left_alone=dict(layer.left_alone)) for layer in self.graph.layers}
        return TargetSearch(
            self.options.speedup, self.cost.total, self._candidate(whole), highest, propose, self._between,
            lambda candidate: self.measure(candidate, self._wanted), self.reporter,
        )  # fmt: skip

    @property
    def _wanted(self) -> tuple[float, float]:
        """Speed-ups that end the search; of others it asks only on which side they lie."""
        return ENOUGH * self.options.speedup, SURPLUS * self.options.speedup

    def _candidate(self, plans: LayerPlans) -> Candidate:
        return Candidate(plans, self.all_sizes.cost(plans), self.all_sizes.error(plans))

    def _between(self, slow: Candidate, fast: Candidate) -> list[Candidate]:
        return [self._candidate(plans) for plans in plans_between(self.all_sizes.choices, slow.plans, fast.plans)]

    # -- proposals ----------------------------------------------------------------------------------------

    def _proposed(self, speedup: float) -> Candidate:
        """The plan for a speed-up by the table in which no layer is slower than the same layer in one piece."""
        while True:
            plans = self._allocated(self.usable, self.cost, min(speedup, self._most))
            slow = [layer for layer in self.graph.layers if layer.fitted and self._is_slow(layer, plans)]
            if not slow:
                return self._candidate(plans)
            for layer in slow:
                words = plans[layer.name].words()
                self.reporter.step(f"{layer.name}: {words} is not faster than the unsplit layer")
                self.usable = {**self.usable, layer.name: self.usable[layer.name].only("prune")}
            self._most = most(self.graph, self.usable, self.cost, self.rules)

    def _allocated(self, curves: Mapping[str, LayerCurves], cost: CostModel, speedup: float) -> LayerPlans:
        options = self.options
        return allocate(
            self.graph, curves, cost, self.rules, speedup=speedup, allocation=options.allocation, steps=options.steps
        ).plans

    def _is_slow(self, layer: Layer, plans: LayerPlans) -> bool:
        plan = plans[layer.name]
        if not plan.factored:
            return False
        geometry = geometry_of(self.graph.module.get_submodule(layer.name))
        widths = columns(layer, plan.keep), widths_written(self.graph, plans)[layer.name]
        key = f"{layer.name} {widths} {plan.ranks}"
        if key not in self.measured_chains:
            dense = chain(layer, *widths, geometry=geometry)
            factors = chain(layer, *widths, *plan.ranks, geometry=geometry)
            networks = {"chain": chain_module(layer, factors), "dense": chain_module(layer, dense)}
            kind = FactorKind.of(layer, dense[0])
            placed = self.timings.placed(networks, kind, widths[0])
            shape = self.timings.shape(kind, widths[0])
            times = self.timings.compare(placed, shape, CHAIN_ROUNDS, CHAIN_SECONDS)
            self.measured_chains[key] = times["chain"] >= times["dense"]
        return self.measured_chains[key]

    # -- measurements -------------------------------------------------------------------------------------

    def measure(self, candidate: Candidate, wanted: tuple[float, float] | None = None) -> SpeedRatio:
        """Speed-up of a network of the planned sizes with random weights."""
        kept = LEAST * self.options.speedup, MOST * self.options.speedup
        return self.networks.ratio(random_network(self.graph, candidate.plans), RoundsRule(wanted, kept))

    def _confirmed(self, search: TargetSearch, attempt: Attempt) -> Attempt:
        """An attempt whose speed-up was measured again with both networks prepared anew, as in another process.

        Where the two differ so much that the promise would not be kept, a third measurement decides, and if it speaks
        against the attempt too, the search goes on with what is known now.
        """
        for _ in range(CONFIRMATIONS):
            for _ in range(2):
                self.networks.prepare_anew()
                if search.is_sure(search.measure_again(attempt).speedup):
                    break
            self.reporter.step(f"measured again with the chosen sizes: {attempt.speedup:.2f}x")
            if search.is_sure(attempt.speedup):
                return attempt
            attempt = search.run()
            if len(attempt.ratios) > 1:  # nothing better was found than what was measured again already
                break
        return search.best()

    def _settled(self, search: TargetSearch, chosen: Attempt) -> Attempt:
        """The choice, made again where the original is faster now than it was when the chosen plan was measured.

        A machine with more than one speed slows the original by another share than plans.
        """
        for _ in range(RETURNS):
            now, then = self.networks.watch(), chosen.ratio.original_ms
            if then <= SAME * now:
                break
            words = f"the original takes {now:.3g} ms now, and took {then:.3g} ms when the plan was measured"
            self.reporter.step(f"{words}: measuring again")
            chosen = self._confirmed(search, chosen)
        return chosen

    def _kept_at_the_end(self, search: TargetSearch, chosen: Attempt) -> Attempt:
        """A chosen attempt, measured once more; where most measurements now speak against it, another one."""
        self._once_more(chosen)
        if chosen.speedup < LEAST * self.options.speedup:
            self.reporter.step(f"measured once more: {chosen.speedup:.2f}x, so that the search goes on")
            chosen = self._confirmed(search, search.run())
        if chosen.speedup < LEAST * self.options.speedup:
            raise self._out_of_reach(chosen)
        return chosen

    def _once_more(self, attempt: Attempt) -> None:
        """Measure an attempt some time later: also plans have more than one speed, whatever that of the original."""
        ratio = self.measure(attempt.candidate, self._wanted)
        if ratio.is_comparable(attempt.ratio):
            attempt.ratios.append(ratio)

    def counted_rival(self, chosen: Attempt) -> list[tuple[TargetSearch, Attempt]]:
        """A plan by multiply-accumulates as fast as a chosen one, with its search; none if slow or of too large a loss.

        The expected loss of a size leaves out what a refined fit brings: more in plans with many small factors.
        """
        most_lost = LOSS_RATIO * chosen.candidate.loss
        fewest = None if chosen.ratio.original_ms > SLOW else self._by_count(lambda one: one.loss <= most_lost)
        if fewest is None or fewest.plans == chosen.candidate.plans:
            return []

        def propose(speedup: float) -> Candidate:
            """Of the macs plans, the one for which the table says this speed-up."""
            return self._by_count(lambda one: one.milliseconds * speedup >= self.cost.total) or fewest

        search = self._search(propose, lambda: self.cost.total / fewest.milliseconds)
        search.proposals, search.refinements = RIVAL
        # The table is expected to be as far off as for the chosen plan.
        search.first = self.cost.total / chosen.candidate.milliseconds * CENTRE * self.options.speedup / chosen.speedup
        best = search.run()
        more = f"{best.candidate.loss / chosen.candidate.loss:.2g} times the expected loss"
        self.reporter.step(f"a plan by {self.problem.counted.unit} of {more} was measured {best.speedup:.2f}x")
        if not search.is_kept(best.speedup):
            return []
        best = self._settled(search, self._confirmed(search, best))
        fair = best.ratio.is_comparable(chosen.ratio) and best.candidate.loss <= most_lost
        return [(search, best)] if fair and search.is_kept(best.speedup) else []

    def _by_count(self, holds: Any) -> Candidate | None:
        """The plan with the fewest multiply-accumulates for which a condition holds that more of them satisfy."""
        low, high, found = 1.0, most(self.graph, self.curves, self.problem.counted, self.rules), None
        for _ in range(EQUAL_LOSS):
            middle = (low * high) ** 0.5
            one = self._candidate(self._allocated(self.curves, self.problem.counted, middle))
            if holds(one):
                low, found = middle, one
            else:
                high = middle
        return found

    def _out_of_reach(self, fastest: Attempt) -> TargetError:
        """The error for a speed-up that the smallest sizes do not reach, with the limiting options."""
        options = self.options
        causes = limiting_options(
            limiting_factors(self.graph, self.usable, self.cost, self.rules, options.steps),
            rules=self.rules, skip=options.skip, keep_first=options.keep_first, steps=options.steps,
        )  # fmt: skip
        held = f"batch of {options.latency_batch} in {options.runtime}, limited by {'; '.join(causes)}"
        if signs := self.networks.judged(fastest.ratio).disturbances:
            held += f"; the machine was busy: {'; '.join(signs)}"
        fix = "lower the target or lift a limit"
        if options.coupled is None and whole_spaces(self.graph)[0]:
            fix += ", or narrow whole channel spaces too (--coupled 0.75)"
        if not options.leave_out and residual_branches(self.graph):
            fix += ", or leave out residual blocks (--leave-out auto)"
        return TargetError(
            "--speedup", f"at most {fastest.speedup:.2f}x was measured with the smallest sizes, {held}",
            got=f"{options.speedup:g}x", fix=fix,
        )  # fmt: skip
