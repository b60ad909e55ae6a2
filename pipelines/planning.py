"""From the frozen points to plan.json: error curves of every layer, the weight of each layer, one allocation."""

import os
import shutil
from dataclasses import replace

import numpy as np
import torch

from decomp import curves, selection, sensitivity
from decomp.allocation import Allocator, LayerCurves
from decomp.errors import FileError, TargetError, UsageError
from decomp.pipelines import files
from decomp.pipelines.problems import Problems
from decomp.pipelines.rundir import RunDirectory
from decomp.plan import STEPS, Plan, plan_macs

CURVES_VERSION = 2
# Columns of a layer's patch beyond which its moments no longer fit: K takes 8·p² bytes.
MOST_COLUMNS = 12_000


def plan(run, asked, frozen, view, counted, *, device, batch_size, reporter):
    """The plan of a run: the one that is there, or a new one, written to plan.json.

    Parameters
    ----------
    run : RunDirectory
    asked : dict
        speedup, steps, allocation.
    frozen : decomp.data.frozen.FrozenFile
    view : decomp.graph.NetworkGraph
        Of the original network; its reasons for leaving layers alone are completed here.
    counted : decomp.cost.Cost
    device : torch.device
    batch_size : int
    reporter : decomp.pipelines.log.Reporter

    Returns
    -------
    decomp.plan.Plan
    """
    _judge_sizes(view, frozen)
    if run.plan_json.is_file():
        data = files.read_json(run.plan_json, fix="remove it, or run decompose again with --redo")
        made = Plan.from_json(data, str(run.plan_json))
        made.validate(view, str(run.plan_json))
        made.macs_before = counted.macs
        made.macs_after = plan_macs(view, {item.layer: item for item in made.layers}, counted.per_layer)
        return made
    own, output = error_curves(run, frozen, view, device=device, batch_size=batch_size, reporter=reporter)
    usable = _for_steps(own if asked["allocation"] == "energy" else output, view, asked["steps"])
    allocator, items = _allocate(view, usable, counted, asked)
    macs = allocator.macs(items)
    made = Plan(asked["speedup"], tuple(asked["steps"]), asked["allocation"], list(items.values()), counted.macs, macs)
    if macs < 0.98 * counted.macs / asked["speedup"]:
        reporter.warn(f"the plan is {counted.macs / macs:.2f}x: sizes are too coarse to come closer to the target")
    files.write_json(run.plan_json, made.to_json())
    return made


def _allocate(view, usable, counted, asked):
    allocator = Allocator(view, usable, counted.per_layer)
    if asked["allocation"] == "uniform":
        return allocator, allocator.uniform(asked["speedup"])
    if asked["allocation"] == "energy":
        return allocator, allocator.with_energy().joint(asked["speedup"])
    # Fitted last, to all that the others left, the output layer repairs most of what came before; every channel it
    # reads helps it. So it reads all of them, unless the target is out of reach that way.
    whole = {n: replace(c, prune=None) if n == _output_layer(view) else c for n, c in usable.items()}
    spared = Allocator(view, whole, counted.per_layer)
    if spared.most() >= asked["speedup"]:
        return spared, spared.joint(asked["speedup"])
    return allocator, allocator.joint(asked["speedup"])


def _output_layer(view):
    """The linear layer that gives the network's output, if there is one."""
    last = view.layers[-1]
    return last.name if last.kind == "linear" and last.activation == "identity" else None


def _judge_sizes(view, frozen):
    """Say no where the rows cannot carry a fit of that many columns."""
    for layer in view.layers:
        columns = layer.in_channels * layer.kernel[0] * layer.kernel[1]
        points = 1 if layer.kind == "linear" else min(10, layer.out_hw[0] * layer.out_hw[1])
        rows = frozen.n_images * points
        reason = None
        if columns > MOST_COLUMNS:
            reason = f"{columns:,} columns a row are more than the {MOST_COLUMNS:,} that are fitted"
        elif layer.kind == "linear" and rows < 2 * columns:
            reason = f"{rows:,} rows are too few to fit {columns:,} columns"
        if reason:
            for step in STEPS:
                layer.left_alone.setdefault(step, reason)
            layer.input_space = None


def error_curves(run, frozen, view, *, device, batch_size, reporter):
    """Error curves and weights of all layers of the original network, kept in the run directory.

    Returns
    -------
    own, output : dict of str to LayerCurves
        With every step that the layer allows: the relative error of the layer's own responses, and the change of
        the network's output that goes with it.
    """
    origin = {key: frozen.meta[key] for key in ("network", "seed", "n_images", "n_points")}
    digest = files.digest_json({"version": CURVES_VERSION, **origin})
    kept = _read_curves(run.curves, digest, view)
    if kept is not None:
        return kept
    problems = Problems(frozen, view, batch_size=batch_size, device=device)
    wanted = torch.cat([y for _, _, y in problems.held_out_outputs()])
    own, output = {}, {}
    with reporter.progress(len(view.layers), "error curves", "layers") as progress:
        for layer in view.layers:
            own[layer.name], output[layer.name] = _layer_curves(layer, problems, wanted)
            progress.update(1)
    _write_curves(run.curves, digest, {"own": own, "output": output})
    return own, output


def _layer_curves(layer, problems, wanted):
    """Own error and change of the network's output for every size of every step of one layer."""
    steps = [step for step in STEPS if step not in layer.left_alone]
    if not steps:
        return LayerCurves(), LayerCurves()
    problem, held_out = problems.problem(layer)
    own, order = {}, None
    if "prune" in steps:
        order = selection.retention_order(problem, "backward")
        own["prune"] = curves.selection_curve(problem, held_out, order=order)
    if "spatial" in steps:
        own["spatial"] = curves.spatial_curve(problem, held_out)
    if "channel" in steps:
        own["channel"] = curves.channel_curve(problem, held_out)
    approximate = sensitivity.approximations(problem, order)

    def measure(weight, bias):
        with problems.replaced(layer, weight, bias):
            got = torch.cat([y for _, _, y in problems.held_out_outputs()])
        return sensitivity.output_divergence(wanted, got).mean().item()

    output = {step: sensitivity.output_curve(own[step], approximate[step], measure) for step in steps}
    return LayerCurves(**own), LayerCurves(**output)


def _for_steps(all_curves, view, steps):
    """Only the curves of the steps asked for; at least one must be left somewhere."""
    result = {name: LayerCurves(**{step: getattr(c, step) for step in steps}) for name, c in all_curves.items()}
    if not any(c.prune is not None or c.spatial is not None or c.channel is not None for c in result.values()):
        reasons = sorted({why for layer in view.layers for step, why in layer.left_alone.items() if step in steps})
        raise TargetError(
            view.name, f"no layer can be treated with --steps {','.join(steps)}", got="; ".join(reasons[:3]),
            fix="allow other steps",
        )  # fmt: skip
    return result


def _write_curves(path, digest, found):
    arrays = {"digest": np.array(digest)}
    for kind, curves_of in found.items():
        for name, c in curves_of.items():
            arrays.update({f"{kind}/{name}/{step}": getattr(c, step) for step in STEPS if getattr(c, step) is not None})
    with files.commit(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def _read_curves(path, digest, view):
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            if str(data["digest"]) != digest:
                return None
            return tuple(
                {
                    layer.name: LayerCurves(
                        **{s: data[f"{kind}/{layer.name}/{s}"] for s in STEPS if f"{kind}/{layer.name}/{s}" in data}
                    )
                    for layer in view.layers
                }
                for kind in ("own", "output")
            )
    except Exception:
        # A cache: whatever is wrong with it, it is made anew.
        return None


# -- run directories ---------------------------------------------------------------------------------------


def clear(run):
    """Remove what decompose and finetune made in a run; the frozen points and their curves stay."""
    for path in (run.model_dir, run.layers_dir, run.finetune_dir):
        if path.exists():
            shutil.rmtree(path)
    for path in (run.plan_json, run.report_json):
        path.unlink(missing_ok=True)
    for stage in ("decompose", "finetune", "evaluate"):
        run.update_config(stage, None)


def borrow(run, source):
    """A new run directory with the frozen points of another: hard links where the disk allows, copies elsewhere."""
    source = RunDirectory.open(source)
    if source.config("freeze") is None or not source.frozen.is_file():
        raise FileError(source.path, "holds no frozen points", fix=f"run freeze --run {source.path} first")
    run = RunDirectory.create(run)
    if run.config("freeze") is not None:
        if run.config("freeze") != source.config("freeze"):
            raise UsageError(run.path, f"was frozen differently from {source.path}", fix="give another --run")
        return run
    with run.lock():
        for name in (source.frozen, source.curves):
            if name.is_file():
                _link(name, run.path / name.name)
        with files.commit_directory(run.original_dir) as part:
            for name in sorted(source.original_dir.iterdir()):
                _link(name, part / name.name)
        run.update_config("freeze", source.config("freeze"))
    return run


def _link(source, target):
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with files.commit(target) as part:
            shutil.copyfile(source, part)
