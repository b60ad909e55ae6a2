"""From what is known of the original network to plan.json: one allocation over all layers and steps."""

from dataclasses import replace

from decomp.allocation.choices import plan_cost
from decomp.allocation.local_search import LOWEST_SHARE
from decomp.allocation.objective import for_steps, objective_curves
from decomp.allocation.plan import Plan
from decomp.allocation.target import OutOfReach, allocate
from decomp.cost.models import counted_model
from decomp.errors import UsageError

from ...data.formats.json_files import read_json, write_json
from . import latency_plan as timing
from . import rules as limits
from . import shared_channels as coupling
from .target_errors import out_of_reach


def plan(run, asked, subject, *, device, reporter):
    """The plan of a run: the one that is there, or a new one, written to plan.json.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
        speedup, steps, allocation, cost, multiple, skip, keep_first, max_layer_speedup, latency_batch.
    subject : decomp.pipelines.decomposition.session.Subject
        With its survey.
    device : torch.device
        Where the network is to be fast, for plans by latency.
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    decomp.allocation.plan.Plan
    """
    if run.plan_json.is_file():
        made = read(run.plan_json)
        return checked(made, subject, device, str(run.plan_json), reporter)
    held, usable = _choices(subject, asked)
    if asked["cost"] == "latency":
        found = timing.allocate(run, asked, subject, usable, held.rules, device=device, reporter=reporter)
    else:
        found = _allocate(subject, usable, asked, held.rules)
    made = _assemble(asked, subject, found, held)
    for note in made.notes:
        reporter.warn(note)
    write_json(run.plan_json, made.to_json())
    return made


def spaces(run, asked, given, view):
    """Whole channel spaces to narrow and how many channels stay: those of the plan if there is one, else by the share.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
        coupled, cost, and what limits are made from.
    given : decomp.allocation.plan.Plan or None
        From a file.
    view : decomp.graph.network_graph.NetworkGraph
        Of the original network.

    Returns
    -------
    dict of str to int

    Raises
    ------
    TargetError, UsageError
    """
    made, name = given, "the plan"
    if run.plan_json.is_file():
        made, name = read(run.plan_json), str(run.plan_json)
    if made is not None:
        coupling.check(made.spaces, view, name)
        return made.spaces
    if asked["coupled"] is None:
        return {}
    for option, held in (
        ("--cost latency", asked["cost"] == "latency"),
        ("--max-layer-speedup", asked["max_layer_speedup"]),
    ):
        if held:
            raise UsageError("--coupled", "narrows by counted cost, layers together", got=option, fix="leave one out")
    return coupling.counts_for(view, asked["coupled"], limits.from_options(view, asked).rules)


def require_reachable(subject, asked):
    """Refuse a target that is out of reach, without making a plan; one by latency is only known once it is measured.

    Raises
    ------
    TargetError, UsageError
    """
    held, usable = _choices(subject, asked)
    if asked["cost"] != "latency":
        _allocate(subject, usable, asked, held.rules)


def _allocate(subject, usable, asked, rules):
    """Sizes for a speed-up by counted cost."""
    targets = {"speedup": asked["speedup"], "allocation": asked["allocation"], "steps": asked["steps"]}
    try:
        return allocate(subject.view, usable, cost_model(subject, asked["cost"]), rules, **targets)
    except OutOfReach as error:
        options = {"skip": asked["skip"], "keep_first": asked["keep_first"], "steps": asked["steps"]}
        raise out_of_reach(error, rules=rules, **options) from None


def _choices(subject, asked):
    """The rules that the options make, and the loss of every size of every layer."""
    curves = objective_curves(asked["allocation"], subject.known.own, subject.known.output)
    return limits.from_options(subject.view, asked), for_steps(curves, subject.view, asked["steps"])


def read(path):
    """A plan from a file that a person may have written.

    Raises
    ------
    FileError, TargetError
        Naming the file, or the layer and the field.
    """
    data = read_json(path, fix="give another plan, or make it anew with decompose --redo")
    return Plan.from_json(data, str(path), renew="make it anew with decompose --redo")


def checked(made, subject, device, name, reporter):
    """A plan as it was read, checked against network and device, its costs counted anew."""
    made.validate(subject.view, name)
    if made.latency:
        timing.require_same_device(made, device, name, reporter)
    return _count(made, subject)


def _count(made, subject):
    items = {item.layer: item for item in made.layers}
    made.macs_before, made.params_before = subject.counted.macs, subject.counted.params
    made.macs_after = int(plan_cost(subject.view, items, cost_model(subject, "macs")))
    made.params_after = round(plan_cost(subject.view, items, cost_model(subject, "params")))
    return made


def cost_model(subject, name):
    """The counted cost of that name, 'macs' or 'params'."""
    return counted_model(name, subject.view, subject.per_layer, subject.counted)


def _assemble(asked, subject, found, held):
    allocator = found.allocator
    layers = [replace(item, limits=held.of_layer(name)) for name, item in found.plans.items()]
    made = Plan(
        asked["speedup"], tuple(asked["steps"]), asked["allocation"], layers, cost=asked["cost"],
        multiple=asked["multiple"], spaces=subject.spaces, latency=found.latency,
    )  # fmt: skip
    reached, rules = allocator.total / found.cost, allocator.rules
    if reached * LOWEST_SHARE > found.speedup:
        made.notes.append(f"the plan is {reached:.2f}x: sizes are too coarse to come closer to the target")
    if rules.multiple != asked["multiple"]:
        fewer = f"with {asked['multiple']} the target is missed"
        made.notes.append(f"sizes are multiples of {rules.multiple}: {fewer}")
    off = [f"{item.layer} ({', '.join(item.off_multiple)})" for item in layers if item.off_multiple]
    if off:
        made.notes.append(f"off their multiple, to use at least {LOWEST_SHARE:.0%} of the target: {'; '.join(off)}")
    return _count(made, subject)
