"""Network of a decomposed run: written, compared with the original, and recorded in run.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from decomp.allocation.plan import Plan
from decomp.cost.count import Cost
from decomp.errors import DecompError
from decomp.time_spent import part

from ...data.formats import network_file
from ..console.reporter import Reporter
from ..console.time_table import time_lines
from ..distributed.process_group import count, exchanged_bytes, total
from ..measure import fidelity
from ..run.calibration import fitted_images
from ..run.outputs import frozen_outputs
from .emission import checked_cost, emit, unused_work
from .layer_loop import SolvedLayers
from .layer_reports import more_images
from .session import SurveyedRun


def finished(
    plan: Plan, surveyed: SurveyedRun, solved: SolvedLayers, reporter: Reporter, original: nn.Module | None
) -> dict[str, Any]:
    """Write the network of a run whose layers are solved, check it, and put the result down in run.json.

    None of the checks may lose the layers: each says what it found, and the work is recorded.

    Parameters
    ----------
    plan : Plan
    surveyed : SurveyedRun
        With the layers applied.
    solved : SolvedLayers
    reporter : Reporter
    original : torch.nn.Module or None
        An instance of the original class; None to build one by the name of the model.

    Returns
    -------
    dict
        The facts as run.json keeps them under ``decompose``.

    Raises
    ------
    DecompError
        The network cannot be written.
    """
    after = checked_cost(plan, surveyed.graph, reporter)
    verified = _emit(plan, surveyed, solved, after, reporter, original)
    close = _compare(surveyed, reporter)
    return _record(plan, surveyed, solved, after, close, verified, reporter)


@part("files")
def _emit(
    plan: Plan, surveyed: SurveyedRun, solved: SolvedLayers, after: Cost, reporter: Reporter, original: nn.Module | None
) -> network_file.Verified:
    """Write the compressed network, and try whether the class of the original takes it where it is at hand."""
    opened = surveyed.opened
    meta = {"model": opened.frozen.meta["model"], "plan": plan.to_json(), "macs": after.macs}
    verified = emit(
        opened, surveyed.graph.module.cpu(), opened.run.model_dir,
        edited=[*surveyed.narrowed.edited, *solved.edited], meta={**meta, "macs_before": opened.cost.macs},
        original=original,
    )  # fmt: skip
    say = reporter.warn if verified.into is False else reporter.step
    say(f"network read back from its files: {verified.words()}")
    return verified


@part("comparison with the original")
def _compare(surveyed: SurveyedRun, reporter: Reporter) -> dict[str, Any]:
    """Closeness of the outputs to the original's on the held-out images; empty where it cannot be told."""
    opened = surveyed.opened
    try:
        close = fidelity.compare(
            opened.original.to(opened.device), surveyed.graph.module.to(opened.device), opened.frozen,
            fitted_images(opened.frozen.n_images), opened.memory.limits.batch_size, opened.device,
            frozen_outputs(opened.frozen),
        )  # fmt: skip
    except DecompError as error:
        reporter.warn(f"the network is written, but its outputs cannot be compared with the original's: {error}")
        return {}
    opened.memory.count_passes(2 * (close["images"] + close["fitted"]["images"]) / count())
    return close


def _record(
    plan: Plan, surveyed: SurveyedRun, solved: SolvedLayers, after: Cost, close: Mapping[str, Any],
    verified: network_file.Verified, reporter: Reporter,
) -> dict[str, Any]:  # fmt: skip
    """Put the result down in run.json."""
    opened, run = surveyed.opened, surveyed.opened.run
    unused = "" if verified.network is None else unused_work(verified.network, run.model_dir)
    facts = {
        **(run.config("decompose") or {}), "macs_before": opened.cost.macs, "macs_after": after.macs,
        "params_before": opened.cost.params, "params_after": after.params, "layers": solved.reports,
        **({"block_refinement": solved.blocks} if solved.blocks else {}),
        "more_images": more_images(solved.reports, fitted_images(opened.frozen.n_images), close.get("words", "")),
        "into": {"verified": verified.into, "reason": verified.reason, "unused": unused}, "fidelity": close,
        "latency": plan.latency, "part": opened.frozen.meta.get("part"),
        "passes": round(total(opened.memory.forward_images) / opened.frozen.n_recorded, 2),
        "spilled_bytes": opened.memory.most_on_disk, "times": reporter.times(),
        "left_alone": {layer.name: dict(layer.left_alone) for layer in surveyed.graph.layers if layer.left_alone},
    }  # fmt: skip
    run.update_config("decompose", facts)
    for line in time_lines(facts["times"]):
        reporter.step(line)
    if count() > 1:
        reporter.step(f"{count()} processes, each gave {exchanged_bytes() / 2**20:,.1f} MiB of tensors to exchanges")
    return facts
