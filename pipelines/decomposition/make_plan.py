"""Plan of a run: read from a file, or allocated over all layers and steps from a survey."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from decomp.allocation.choices import plan_cost
from decomp.allocation.layer_curves import LayerCurves
from decomp.allocation.local_search import LOWEST_SHARE
from decomp.allocation.objective import for_steps, objective_curves
from decomp.allocation.plan import LayerPlan, Plan
from decomp.allocation.target import Allocation, OutOfReach, allocate
from decomp.cost.models import counted_model
from decomp.errors import MissingError, UsageError, near_miss
from decomp.graph.network_graph import NetworkGraph
from decomp.runtimes.names import require_installed

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from ..console.options import DecomposeOptions
from ..console.parse import refuse_without_latency
from ..console.reporter import Reporter
from ..console.words import counted, listed
from ..distributed.own_copy import take_file
from ..distributed.process_group import from_first
from ..run.directory import RunDirectory
from .best_of_trials import BestOfTrials
from .latency_conditions import (
    digest_of_sizes,
    doubts,
    require_same_device,
    require_same_runtime,
    with_sizes_compared,
)  # fmt: skip
from .latency_plan import LatencyProblem, plans_for_latency
from .rules import LayerRules, plan_rules
from .session import SurveyedRun
from .shared_channels import check_widths, widths_for_share
from .target_errors import out_of_reach

#: Shares of the channels of whole spaces that are tried beside all of them.
SHARES = (0.875, 0.75, 0.5)
FIX = "leave one of them out"
#: The way out of a plan.json that cannot be read; a finished run gives its layers up only by --redo.
WITHOUT_PLAN = "correct it, or delete it and give the command again: a new one is made, and --redo begins anew with it"


def decompose_options(plan: Plan | None = None, **choices: Any) -> DecomposeOptions:
    """Options of a decomposition from keywords, or from a given plan and the keywords that it leaves open.

    Parameters
    ----------
    plan : decomp.allocation.plan.Plan, optional
        Decides speed-up, steps, allocation, cost and multiple.
    **choices
        Fields of :class:`decomp.pipelines.console.options.DecomposeOptions`.

    Raises
    ------
    UsageError
        For an unknown option, a value that is not allowed, or a speed-up beside a plan.
    TargetError, DecompError
        The plan is for another runtime than the one asked for, or that runtime is not installed.
    """
    known = [entry.name for entry in fields(DecomposeOptions) if entry.name != "plan"]
    for name in choices:
        if name not in known:
            fix = near_miss(name, known) or f"there are {', '.join(known)}"
            raise UsageError(name, "is no option of decompose", fix=fix)
    if plan is None:
        options = DecomposeOptions(**{"speedup": None, **choices})
        refuse_without_latency(options.cost, choices)
        if options.runtime is not None:
            require_installed(options.runtime)
        return options
    for name in ("coupled", "leave_out"):
        if choices.get(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError("--plan", f"contains the value of {option} itself", got=f"{option} beside it", fix=FIX)
    if choices.get("runtime") is not None:
        require_same_runtime(plan, choices["runtime"], "the plan")
    if choices.get("speedup") is not None:
        got = f"--speedup {choices['speedup']}"
        raise UsageError("--plan", "says the speed-up itself", got=got, fix=FIX)
    of_plan = {
        "speedup": plan.speedup, "steps": plan.steps, "allocation": plan.allocation, "cost": plan.cost,
        "multiple": plan.multiple, "plan": digest_json(plan.to_json()),
    }  # fmt: skip
    return DecomposeOptions(**{**choices, **of_plan})


def make_plan(
    run: RunDirectory,
    options: DecomposeOptions,
    surveyed: SurveyedRun,
    *,
    given: Plan | None = None,
    reporter: Reporter,
) -> Plan:
    """The plan in plan.json, or a new one, which is written there; of several processes the first one makes it.

    Parameters
    ----------
    run : RunDirectory
    options : DecomposeOptions
    surveyed : decomp.pipelines.decomposition.session.SurveyedRun
    given : decomp.allocation.plan.Plan, optional
        In place of a plan.json.
    reporter : decomp.pipelines.console.reporter.Reporter

    Raises
    ------
    TargetError, UsageError
        The target is out of reach, or the plan does not fit the network.
    """
    is_new, plans = from_first(lambda: _made(run, options, surveyed, given, reporter))
    plan = plans[0] if len(plans) == 1 else _better_of(plans[0], plans[1], options, surveyed, reporter)
    if is_new:
        from_first(lambda: _keep(run, plan, reporter))
    take_file(run.plan_json)
    return plan


def _made(
    run: RunDirectory, options: DecomposeOptions, surveyed: SurveyedRun, given: Plan | None, reporter: Reporter
) -> tuple[bool, list[Plan]]:
    """Whether the plan is new, and the plan; or two new ones, of which trials take one."""
    if given is not None:
        write_json(run.plan_json, check_plan(given, surveyed, "the plan", reporter).to_json())
    if run.plan_json.is_file():
        return False, [check_plan(read_plan(run.plan_json, of_run=True), surveyed, str(run.plan_json), reporter)]
    rules = plan_rules(options, surveyed.graph)
    if options.cost == "latency":
        found = plans_for_latency(latency_problem(options, surveyed, reporter))
    else:
        found = [allocate_counted(options, surveyed, plan_curves(options, surveyed), rules)]
    return True, [_assemble(options, surveyed, allocation, rules) for allocation in found]


def _better_of(
    timed: Plan, counted: Plan, options: DecomposeOptions, surveyed: SurveyedRun, reporter: Reporter
) -> Plan:
    """Of a plan by measured time and one by multiply-accumulates that is as fast, the one that loses less in a trial.

    The second one has to be surely better: it is expected to lose more, or about as much.
    """
    trials, left = (
        BestOfTrials[Plan](surveyed.opened, options, reporter),
        {layer.name for layer in surveyed.graph.layers},
    )
    for words, plan in (("measured time", timed), ("multiply-accumulates", counted)):
        sizes = {item.layer: item for item in plan.layers if item.layer in left}
        trials.take(plan, f"plan by {words}, {plan.latency['measured_speedup']:.2f}x", surveyed, sizes)
    assert trials.best is not None
    if trials.best is counted:
        reporter.step("the plan by multiply-accumulates is taken: at the asked time it changes the outputs less")
    return trials.best


def _keep(run: RunDirectory, plan: Plan, reporter: Reporter) -> None:
    """Write a new plan, and say what is uncertain about it."""
    for note in [*(doubts(plan.speedup, plan.latency) if plan.latency else ()), *plan.notes]:
        reporter.warn(note)
    write_json(run.plan_json, plan.to_json())


def space_candidates(
    run: RunDirectory, options: DecomposeOptions, plan: Plan | None, graph: NetworkGraph
) -> dict[float, Mapping[str, int]]:
    """Channel spaces to narrow as a whole, with their numbers of remaining channels, by the share that they keep.

    Parameters
    ----------
    run : RunDirectory
        Its plan.json decides, if there is one.
    options : DecomposeOptions
        Give the share where there is no plan; with `AUTO` there are several candidates.
    plan : decomp.allocation.plan.Plan or None
        From a file that the caller has given.
    graph : decomp.graph.network_graph.NetworkGraph
        Of the original network.

    Raises
    ------
    TargetError, UsageError
    """
    name = "the plan"
    if run.plan_json.is_file():
        plan, name = read_plan(run.plan_json, of_run=True), str(run.plan_json)
    if plan is not None:
        check_widths(plan.spaces, graph, name)
        return {1.0: plan.spaces}
    if options.coupled is None:
        return {1.0: {}}
    if options.max_layer_speedup is not None:
        rule = "narrows by counted cost, layers together"
        raise UsageError("--coupled", rule, got="--max-layer-speedup", fix="leave one out")
    rules = plan_rules(options, graph).rules
    if not isinstance(options.coupled, str):
        return {options.coupled: widths_for_share(graph, options.coupled, rules)}
    found: dict[float, Mapping[str, int]] = {}
    for share in (1.0, *SHARES):
        widths = widths_for_share(graph, share, rules)
        if widths not in found.values():
            found[share] = widths
    return found


def require_reachable(options: DecomposeOptions, surveyed: SurveyedRun) -> None:
    """Refuse a counted target that is out of reach, without making a plan; a latency is only known by measurement.

    Raises
    ------
    TargetError, UsageError
    """
    rules, curves = plan_rules(options, surveyed.graph), plan_curves(options, surveyed)
    if options.cost != "latency" and not options.leave_out:  # without blocks more can be reached
        allocate_counted(options, surveyed, curves, rules)


def read_plan(path: str | os.PathLike[str], *, of_run: bool = False) -> Plan:
    """A plan from a file that may have been edited or written by hand.

    Parameters
    ----------
    path : path
    of_run : bool
        Whether it is the plan.json of the run that is decomposed, and no file given to it. An edit with a mistake in it
        is not replaced by a new plan, also not where the decomposition begins anew: that would take hours for a result
        that was not asked for.

    Raises
    ------
    FileError, TargetError
        Naming the file, or the layer and the field.
    """
    if not os.path.exists(path):
        raise MissingError(path, "there is no such plan", fix="give the path of a plan.json")
    fix = WITHOUT_PLAN if of_run else "give another plan"
    return Plan.from_json(read_json(path, fix=fix), str(path), renew=fix)


def check_plan(plan: Plan, surveyed: SurveyedRun, name: str, reporter: Reporter) -> Plan:
    """A plan checked against network and device, with its costs counted again.

    Raises
    ------
    TargetError
        It does not fit the network, or was made by latency for another device.
    """
    plan.validate(surveyed.graph, name, surveyed.narrowed.left_out_layers)
    if plan.latency:
        require_same_device(plan, surveyed.opened.device, name, reporter)
        plan = with_sizes_compared(plan, surveyed.narrowed.left_out_layers)
    return _with_costs(plan, surveyed)


def plan_curves(options: DecomposeOptions, surveyed: SurveyedRun) -> dict[str, LayerCurves]:
    """Loss of every size of every layer, of the allowed steps."""
    curves = objective_curves(options.allocation, surveyed.survey.own, surveyed.survey.output)
    return for_steps(curves, surveyed.graph, options.steps)


def allocate_counted(
    options: DecomposeOptions, surveyed: SurveyedRun, curves: Mapping[str, LayerCurves], rules: LayerRules
) -> Allocation:
    """Sizes for a target in multiply-accumulates or parameters.

    Raises
    ------
    TargetError
        It is out of reach; says the maximum and its causes, in the words of the options.
    """
    cost = counted_model(
        options.cost, surveyed.graph, surveyed.narrowed.macs_by_layer, surveyed.opened.cost
    )  # fmt: skip
    try:
        return allocate(
            surveyed.graph, curves, cost, rules.rules,
            speedup=options.speedup, allocation=options.allocation, steps=options.steps,
        )  # fmt: skip
    except OutOfReach as error:
        raise out_of_reach(
            error, rules=rules.rules, skip=options.skip, keep_first=options.keep_first, steps=options.steps
        ) from None


def latency_problem(options: DecomposeOptions, surveyed: SurveyedRun, reporter: Reporter) -> LatencyProblem:
    """A target in measured time for the layers of a run, see :mod:`decomp.pipelines.decomposition.latency_plan`."""
    opened, graph = surveyed.opened, surveyed.graph
    changed = surveyed.narrowed.widths or surveyed.narrowed.left_out
    return LatencyProblem(
        opened.run.latency_json, options, graph, plan_curves(options, surveyed), plan_rules(options, graph).rules,
        counted=counted_model("macs", graph, surveyed.narrowed.macs_by_layer, opened.cost),
        original=opened.original if changed else graph.module, device=opened.device, reporter=reporter,
    )  # fmt: skip


def _assemble(options: DecomposeOptions, surveyed: SurveyedRun, allocation: Allocation, rules: LayerRules) -> Plan:
    allocator = allocation.allocator
    plans, known = allocation.plans, rules.of_layer
    # Also the layers of blocks that are left out, so that a block is taken back by its name alone.
    layers = [
        replace(plans.get(layer.name, LayerPlan(layer.name)), limits=known(layer.name))
        for layer in surveyed.opened.graph.layers
    ]
    plan = Plan(
        options.speedup, options.steps, options.allocation, layers, cost=options.cost, multiple=options.multiple,
        spaces=dict(surveyed.narrowed.widths), left_out=list(surveyed.narrowed.left_out), latency=allocation.latency,
    )  # fmt: skip
    if plan.latency:
        plan.latency = {**plan.latency, "sizes": digest_of_sizes(plan, surveyed.narrowed.left_out_layers)}
    reached, multiple = allocator.total / allocation.cost, allocator.rules.multiple
    too_fast = reached * LOWEST_SHARE > allocation.speedup
    by_blocks = too_fast and bool(plan.left_out) and not any(item.treated for item in plans.values())
    if by_blocks:
        blocks, target = counted(len(plan.left_out), "block"), f"{allocation.speedup:g}x"
        plan.notes.append(
            f"the plan is {reached:.2f}x, more than the {target} asked for: leaving out {blocks} "
            f"({listed(plan.left_out)}) saves that much alone, with all other layers as they were; leave out fewer, or "
            "ask for a higher speed-up"
        )
    elif too_fast:
        plan.notes.append(f"the plan is {reached:.2f}x: sizes are too coarse to come closer to the target")
    if multiple != options.multiple and not by_blocks:
        plan.notes.append(f"sizes are multiples of {multiple}, because multiples of {options.multiple} miss the target")
    off = [f"{item.layer} ({', '.join(item.off_multiple)})" for item in layers if item.off_multiple]
    if off:
        plan.notes.append(f"not multiples, to use at least {100 * LOWEST_SHARE:.0f} % of the target: {'; '.join(off)}")
    return _with_costs(plan, surveyed)


def _with_costs(plan: Plan, surveyed: SurveyedRun) -> Plan:
    """The plan with costs of the original network and of its own sizes."""
    original, graph = surveyed.opened.cost, surveyed.graph
    plans = {item.layer: item for item in plan.layers}

    def cost(name: str) -> float:
        return plan_cost(graph, plans, counted_model(name, graph, surveyed.narrowed.macs_by_layer, original))

    plan.macs_before, plan.params_before = original.macs, original.params
    plan.macs_after, plan.params_after = int(cost("macs")), round(cost("params"))
    return plan
