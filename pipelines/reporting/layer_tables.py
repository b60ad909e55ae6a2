"""Tables of the layers of a run: costs, errors, error curves, channels, sensitivity."""

from __future__ import annotations

import shlex
from typing import Any

from decomp.allocation.plan import SIZES, STEPS
from decomp.errors import FileError

from ...data.formats.curves_file import read_curves
from ...data.formats.json_files import read_json
from ...data.formats.layer_file import current_report, read_selection
from ..console.program import command_line
from ..console.words import counted
from ..run.begun import compressing_command
from ..run.directory import RunDirectory
from ..run.networks import compressed
from .summary import planned_sizes, summarise
from .tables import WITHOUT, Missing, Table

#: Way out for a damaged file that belongs to a pruned network.
AGAIN = "put a copy of it back, or prune again with --redo"


def layers(run: RunDirectory) -> Table | Missing:
    """Cost of each layer before and after."""
    if not is_finished(run):
        return _unfinished(run, "layers")
    summary = summarise(run)
    header = (
        "layer", "kind", "becomes", "macs_before", "macs_after", "params_before", "params_after", "error", "left_alone"
    )  # fmt: skip
    reasons = _reasons(run)
    rows = [(*(getattr(item, name) for name in header[:-1]), reasons.get(item.layer)) for item in summary.layers]
    notes = [summary.costs(), *(summary.fidelity["words"].split("\n") if summary.fidelity else [])]
    return Table("layers", header, rows, notes, summary)


def _reasons(run: RunDirectory) -> dict[str, str]:
    """For each layer with steps that cannot be applied or were ruled out, the reasons."""
    if is_pruned(run):
        return dict((run.config("prune") or {}).get("left_alone") or {})
    reasons = {}
    for item in planned_sizes(run).values():
        steps: dict[str, list[str]] = {}
        for step, why in item.left_alone.items():
            steps.setdefault(why, []).append(step)
        texts = [f"no {' or '.join(names)}: {why}" for why, names in steps.items()]
        if len(steps) == 1 and len(item.left_alone) == len(STEPS):
            texts = list(steps)
        if "skip" in item.limits:
            texts.insert(0, f"skipped by {item.limits['skip']}")
        reasons[item.layer] = "; ".join(texts)
    return {layer: text for layer, text in reasons.items() if text}


def is_finished(run: RunDirectory) -> bool:
    """Whether the decomposition or pruning of a run came to its end, and its network is there."""
    made = compressed(run)
    return made is not None and "macs_after" in (run.config(made.stage) or {})


def _unfinished(run: RunDirectory, name: str) -> Missing:
    """A figure of a compressed network that is not made yet; a command that was begun goes on."""
    words = {"decompose": "decomposition", "prune": "pruning"}
    begun = next((word for stage, word in words.items() if run.config(stage) is not None), None)
    why = "nothing is decomposed yet" if begun is None else f"the {begun} is not finished"
    return Missing(name, why, compressing_command(run))


def is_pruned(run: RunDirectory) -> bool:
    """Whether a run holds a pruned network, of which nothing was fitted."""
    return run.config("prune") is not None


def errors(run: RunDirectory) -> Table | Missing | None:
    """Relative squared error of each layer's responses after each of its steps; None where nothing is fitted."""
    if is_pruned(run):
        return None
    reports = (run.config("decompose") or {}).get("layers")
    if not reports:
        return _unfinished(run, "errors")
    rows = [
        (report["layer"], step, values.get("fitted"), values.get("held_out"), values.get("output_error"))
        for report in map(current_report, reports)
        for step, values in report["errors"].items()
    ]
    return Table("errors", ("layer", "step", "fitted", "held_out", "output_error"), rows)


def curves(run: RunDirectory) -> Table | Missing | None:
    """Error of each layer of the original network at every size of every step, and the chosen size."""
    if is_pruned(run):
        return None
    elsewhere = command_line("decompose", "NEW", f"--from {shlex.quote(str(run))} --speedup 4x --plan-only")
    if not run.curves.is_file():
        if is_finished(run):
            return Missing(
                "curves", f"{run.curves}, with the error curves, is gone; a new run can make them", elsewhere
            )
        return Missing("curves", "there are no error curves yet", compressing_command(run))
    if not is_finished(run) and not run.plan_json.is_file():
        begun = run.config("decompose") is not None
        return Missing("curves", "there is no plan yet", compressing_command(run) + ("" if begun else " --plan-only"))
    plan = planned_sizes(run)
    try:
        survey = read_curves(run.curves, None, plan)
    except FileError as error:
        raise FileError(run.curves, error.rule, fix=WITHOUT) from error
    assert survey is not None  # of any digest
    rows: list[tuple[Any, ...]] = []
    for layer, item in plan.items():
        for step in STEPS:
            own, output = getattr(survey.own[layer], step), getattr(survey.output[layer], step)
            if own is None:
                continue
            chosen = getattr(item, SIZES[step])
            for size in range(1, len(own)):
                change = None if output is None else float(output[size])
                rows.append((layer, step, size, len(own) - 1, float(own[size]), change, int(size == chosen)))
    if not rows:
        return Missing("curves", "no layer of the plan has an error curve", elsewhere)
    return Table("curves", ("layer", "step", "size", "full_size", "error", "output_change", "chosen"), rows)


def channels(run: RunDirectory) -> Table | Missing | None:
    """Kept and removed channels: the inputs of each pruned layer, or those of each space of a pruned network.

    None where the plan of a finished decomposition prunes no layer.
    """
    if is_pruned(run):
        return _channels_of_spaces(run)
    rows: list[tuple[Any, ...]] = []
    fitted = {report["layer"] for report in (run.config("decompose") or {}).get("layers") or ()}
    for path in sorted(run.layers_dir.glob("*.safetensors")) if run.layers_dir.is_dir() else ():
        layer, keep, n_total = read_selection(path, fix=WITHOUT)
        fitted.discard(layer)
        if keep is not None and n_total is not None:
            kept = set(keep.tolist())
            rows += [(layer, channel, int(channel in kept)) for channel in range(n_total)]
    if not is_finished(run) and not rows:
        return _unfinished(run, "channels")
    another = command_line("decompose", "NEW", f"--from {shlex.quote(str(run))} --speedup 4x --steps prune")
    if fitted:
        why = f"the files of {counted(len(fitted), 'layer')} are gone from {run.layers_dir}; put copies of them back"
        return Missing("channels", why, another)
    return Table("channels", ("layer", "channel", "kept"), rows) if rows else None


def _channels_of_spaces(run: RunDirectory) -> Table | Missing:
    """Kept and removed channels of a pruned network, by channel space."""
    rows: list[tuple[Any, ...]] = []
    if not is_finished(run):
        return _unfinished(run, "channels")
    plan = read_json(run.prune_json, fix=AGAIN)
    try:
        for space in plan["spaces"]:
            kept = set(space["keep"])
            rows += [(str(space["space"]), channel, int(channel in kept)) for channel in range(space["channels"])]
    except (KeyError, TypeError) as error:
        raise FileError(run.prune_json, "must list the channels of each space", fix=AGAIN) from error
    if rows:
        return Table("channels", ("layer", "output channel", "kept"), rows)
    return Missing("channels", "no channel is removed", command_line("prune", run, "--ratio 0.5 --redo"))


def sensitivity(run: RunDirectory) -> Table | None:
    """Outputs with one layer pruned at a time; None where that is not measured, which is not a part of every run."""
    record = run.config("sensitivity") or {}
    rows = [tuple(row) for row in record.get("rows") or ()]
    header = ("layer", "ratio", "kept", "channels", "agreement", "divergence_nats", "output_difference")
    if not rows or len(rows[0]) != len(header):
        return None
    by = (record.get("asked") or {}).get("criterion", "l1")
    note = f"by {by}, on {record.get('images', 0):,} held-out calibration images"
    return Table("sensitivity", header, rows, [note])
