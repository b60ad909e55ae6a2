"""Stage 2: conv by conv in execution order, from the frozen points to the emitted network."""

from dataclasses import dataclass, field

from decomp.allocation.plan import latency_words
from decomp.cost.count import cost as counted_cost
from decomp.errors import DecompError, UsageError

from ...data.formats import network_file
from ...data.formats.digests import digest_file, digest_json
from ...data.formats.json_files import write_json
from ..console.options import DecomposeOptions
from ..console.program import program
from ..decomposition import make_plan as planning
from ..decomposition import session as subject
from ..decomposition.gather import ProblemGatherer
from ..decomposition.layer_loop import solve_layers
from ..decomposition.layer_reports import announce
from ..measure import fidelity
from ..measure.devices import pick_device
from ..run import loading, reuse
from ..run.conditions import freeze_options
from ..run.directory import RunDirectory


@dataclass
class DecomposeResult:
    """What the stage did: the plan, the counted cost and how close the outputs stayed."""

    run: RunDirectory
    done_before: bool
    facts: dict = field(default_factory=dict)

    def lines(self):
        """Lines for a person."""
        f = self.facts
        if self.done_before:
            first = f"{self.run.model_dir}: already decomposed at {f['asked']['speedup']:g}x, nothing to do"
        else:
            first = f"{self.run.model_dir}: decomposed"
        if f.get("plan_only"):
            return [f"plan in {self.run.plan_json}; edit it, then run decompose again without --plan-only"]
        lines = [
            first,
            f"{f['macs_before'] / 1e6:,.2f} M → {f['macs_after'] / 1e6:,.2f} M multiply-accumulates "
            f"({f['macs_before'] / f['macs_after']:.2f}x), "
            f"{f['params_before'] / 1e6:,.3f} M → {f['params_after'] / 1e6:,.3f} M parameters",
        ]
        if f.get("latency"):
            lines.append(latency_words(f["latency"]))
        if f.get("fidelity"):
            lines.append(f["fidelity"]["words"])
        if "passes" in f:
            lines.append(_work_words(f))
        if f.get("part"):
            lines.append(
                f"next: decomp.load({str(self.run.model_dir)!r}, into=model) puts {f['part']} back into its model"
            )
        else:
            lines.append(f"next: {program()} finetune --run {self.run.path}")
        return lines


def decompose(
    run, *, speedup=None, steps=("spatial", "channel", "prune"), selector="best", allocation="joint", cost="macs",
    multiple=8, skip=(), keep_first=False, max_layer_speedup=None, latency_batch=64, latency_layout="contiguous",
    plan=None, activation_aware=True, refine=True, recovery=True, sampler=True, coupled=None, device="auto",
    plan_only=False, source_run=None, redo=False, batch_size=100, memory=None, reporter,
):  # fmt: skip
    """Make the network ``speedup`` times cheaper and emit it.

    Parameters
    ----------
    run : path or RunDirectory
        With frozen points in it, unless ``source_run`` is given.
    speedup : float
        Cost of the original over that of the emitted network, above 1. Not with ``plan``.
    steps : tuple of {'spatial', 'channel', 'prune'}
    selector : str
        How pruned channels are chosen: 'best', 'lasso', 'backward', 'l1', 'max-response', 'first-k', 'random'.
    allocation : {'joint', 'energy', 'uniform'}
        How sizes are shared out, see :mod:`decomp.allocation.allocator`.
    cost : {'macs', 'params', 'latency'}
        What is to shrink: multiply-accumulates, parameters, or the time measured on this device.
    multiple : int
        Widths and ranks are multiples of it in layers that are wide enough, see
        :func:`decomp.allocation.sizes.fitting_multiple`.
    skip : sequence of str
        Layers that keep their shape, by name or pattern.
    keep_first : bool
        The first convolution keeps its shape.
    max_layer_speedup : float, optional
        No layer becomes more than so many times cheaper.
    latency_batch : int
        Images at a time, where ``cost`` is 'latency'.
    latency_layout : str
        How images and weights lie in memory then, of :data:`decomp.runtimes.timing.LAYOUTS`.
    plan : path, optional
        A plan to use instead of a new one; it says speed-up, steps, allocation and cost.
    activation_aware : bool
        Fit behind the activation where it is known, otherwise linearly everywhere.
    refine : bool
        Refine the factors of each layer jointly, in the metric of the network's output.
    recovery : bool
        The last layer in front of a sum makes up for the errors of what it is added to.
    sampler : bool
        Layers that share their input with others may read a subset of it.
    coupled : float, optional
        Share of the channels that stay in whole spaces that several layers write or read (residual streams), in
        (0, 1]; they are left whole where it is not given. plan.json can give each space a number of its own.
    device : {'auto', 'cpu', 'cuda'}
    plan_only : bool
        Stop when plan.json is written.
    source_run : path, optional
        Take the frozen points from this run; ``run`` is then made anew.
    redo : bool
        Throw away an earlier decomposition in this run.
    batch_size : int
        Images at a time, at most: fewer where memory does not allow as many.
    memory : int, optional
        Bytes to stay within, see :mod:`decomp.pipelines.decomposition.memory`; half of the machine's where not given.
    reporter : decomp.pipelines.console.reporter.Reporter

    Returns
    -------
    DecomposeResult
    """
    given = None if plan is None else planning.read(plan)
    if given is not None and speedup is not None:
        got = f"--speedup {speedup:g}x"
        raise UsageError("--plan", "says the speed-up itself", got=got, fix="leave one of them out")
    if given is None and (speedup is None or not speedup > 1):
        got = "none" if speedup is None else f"{speedup:g}"
        raise UsageError("--speedup", "must be above 1", got=got, fix="give for example 4x")
    run = RunDirectory(run) if source_run is None else reuse.borrow(run, source_run)
    run = RunDirectory.open(run)
    asked = {
        "speedup": float(speedup or 0), "steps": list(steps), "selector": selector, "allocation": allocation,
        "cost": cost, "multiple": multiple, "skip": list(skip), "keep_first": keep_first,
        "max_layer_speedup": max_layer_speedup, "latency_batch": latency_batch if cost == "latency" else None,
        "latency_layout": latency_layout if cost == "latency" else None,
        "plan": None, "activation_aware": activation_aware, "refine": refine, "recovery": recovery,
        "sampler": sampler, "coupled": coupled,
    }  # fmt: skip
    if given is not None:
        asked.update(
            speedup=given.speedup, steps=list(given.steps), allocation=given.allocation, cost=given.cost,
            multiple=given.multiple, plan=digest_json(given.to_json()),
        )  # fmt: skip
    with run.lock(), reporter.stage("decompose"):
        if redo:
            reuse.clear(run, DecomposeOptions.from_json(asked))
        before = _done_before(run, asked)
        if before is not None:
            return before
        loading.warn_of_other_versions(run, "decompose" if run.layers_dir.is_dir() else "freeze", reporter)
        device = pick_device(device)
        with subject.opened(run, device, sampler=sampler, memory=memory, batch_size=batch_size) as opened:
            made = _plan(run, asked, given, opened, device, reporter)
            if plan_only:
                return DecomposeResult(run, False, {"asked": asked, "plan_only": True})
            return _decompose(run, asked, made, opened, device, reporter)


def _done_before(run, asked):
    """The result of an earlier run with the same options; an error for other options; None when there is none."""
    before = run.config("decompose")
    if before is None or not (run.plan_json.is_file() or "macs_after" in before):
        return None
    for key, value in asked.items():
        if before["asked"].get(key) != value:
            then, now = (_shown(key, v) for v in (before["asked"].get(key), value))
            raise UsageError(
                run.path, f"was decomposed with {key} = {then}", got=now,
                fix=f"use --redo to replace it, or --run OTHER --from {run.path} to keep both",
            )  # fmt: skip
    if "macs_after" in before and (run.model_dir / "structure.json").is_file():
        loading.load_network(run, run.model_dir)
        return DecomposeResult(run, True, before)
    return None


def _shown(key, value):
    return value if key != "plan" else "none" if value is None else f"one of digest {value[:12]}"


def _plan(run, asked, given, opened, device, reporter):
    """The plan of the run, announced; an attempt that ends without one leaves no trace."""
    before = run.config("decompose") or {}
    begun = {"asked": asked, "limits": opened.space.limits.to_json()}
    if "plan_digest" in before and run.plan_json.is_file():
        begun["plan_digest"] = before["plan_digest"]
    run.update_config("decompose", begun)
    ours = not run.plan_json.is_file()
    try:
        spaces = planning.spaces(run, asked, given, opened.view)
        if spaces:
            opened.narrow(run, spaces, device=device, reporter=reporter)
        opened.survey(run, device=device, reporter=reporter)
        if given is not None and ours:
            given = planning.checked(given, opened, device, "the plan", reporter)
            write_json(run.plan_json, given.to_json())
        plan = planning.plan(run, asked, opened, device=device, reporter=reporter)
    except DecompError:
        if not run.plan_json.is_file():
            run.update_config("decompose", None)
        raise
    if begun.get("plan_digest") not in (None, digest_file(run.plan_json)):
        reporter.warn(f"{run.plan_json} is not as decompose wrote it: taken as edited by you")
    if "plan_digest" not in begun:
        # How the plan left our hands: another digest later, or none, means that a person has edited it.
        begun["plan_digest"] = digest_file(run.plan_json) if ours else ""
        run.update_config("decompose", begun)
    announce(plan, opened.view, reporter)
    return plan


def _decompose(run, asked, plan, opened, device, reporter):
    frozen, view, counted, space = opened.frozen, opened.view, opened.counted, opened.space
    metrics = opened.known.metrics if asked["refine"] else {}
    options = {"device": device, "recovery": asked["recovery"], "remaining_outputs": opened.kept, "memory": space}
    problems = ProblemGatherer(frozen, view, metrics=metrics, **options)
    made_from = {"plan": plan.to_json(), "asked": asked, "frozen": frozen.content, "spaces": opened.keep}
    edited, reports = solve_layers(run, asked, plan, view, problems, made_from, reporter)
    network = view.module
    after = counted_cost(network, opened.input_shape)
    _check_target(plan, after)
    size = space.limits.batch_size
    close = fidelity.compare(opened.original.to(device), network, frozen, problems.n_fit, size, device)
    space.count_passes(2 * close["images"])
    network.cpu()
    facts = {
        **run.config("decompose"), "macs_before": counted.macs, "macs_after": after.macs,
        "params_before": counted.params, "params_after": after.params, "layers": reports, "fidelity": close,
        "latency": plan.latency, "part": frozen.meta.get("part"),
        "passes": round(space.forward_images / frozen.n_images, 2), "spilled_bytes": space.most_on_disk,
        "left_alone": {layer.name: dict(layer.left_alone) for layer in view.layers if layer.left_alone},
    }  # fmt: skip
    meta = {"model": frozen.meta["model"], "plan": plan.to_json(), "macs": after.macs, "macs_before": counted.macs}
    folded = [edit["module"] for edit in network_file.read_structure(run.original_dir)["edits"]]
    edited = list(dict.fromkeys([*folded, *opened.edited, *edited]))
    place = {"part": frozen.meta.get("part"), "leaves": frozen.meta.get("leaves") or ()}
    network_file.save(network, run.model_dir, edited=edited, input_shape=opened.input_shape, meta=meta, **place)
    reporter.step(
        network_file.verify_into_original(
            run.model_dir,
            lambda: loading.original_class(
                freeze_options(run), input_shape=frozen.meta["input_shape"], n_classes=frozen.meta["n_classes"]
            ),
        )
    )
    run.update_config("decompose", facts)
    return DecomposeResult(run, False, facts)


def _work_words(facts):
    spilled = facts["spilled_bytes"]
    words = f"{facts['passes']:.1f} passes over the calibration images"
    return words + (f", up to {spilled / 2**20:,.0f} MiB of values kept on the disk meanwhile" if spilled else "")


def _check_target(plan, after):
    counts = (("multiply-accumulates", plan.macs_after, after.macs), ("parameters", plan.params_after, after.params))
    for what, planned, got in counts:
        if got != planned:
            fix = "please report this"
            raise DecompError("emitted network", f"must have the planned {planned} {what}", got=got, fix=fix)
