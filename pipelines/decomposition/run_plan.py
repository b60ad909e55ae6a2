"""Survey and plan of a run: made or read, recorded in run.json, and announced."""

from __future__ import annotations

from typing import Any

from torch import nn

from decomp.allocation.plan import Plan
from decomp.errors import DecompError

from ...data.formats.digests import digest_file
from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..distributed.process_group import number
from .latency_conditions import require_runs
from .layer_reports import announce
from .make_plan import make_plan, space_candidates
from .plan_search import blocks_to_leave_out, surveyed_run, with_blocks_left_out
from .rehearsal import rehearse
from .session import OpenedRun, SurveyedRun

SURVEY, PLAN = PHASES = ("survey of all sizes", "plan")


def plan_of_run(
    options: DecomposeOptions, given: Plan | None, opened: OpenedRun, reporter: Reporter, original: nn.Module | None
) -> tuple[SurveyedRun, Plan]:
    """Survey a run and plan it, or read its plan; both are recorded and announced.

    Parameters
    ----------
    options : DecomposeOptions
    given : Plan or None
        A plan that was given as a file.
    opened : OpenedRun
    reporter : Reporter
    original : torch.nn.Module or None
        An instance of the original class; None to build one by the name of the model.

    Returns
    -------
    surveyed : SurveyedRun
    plan : Plan

    Raises
    ------
    DecompError
        There is no such plan; an attempt that ends without one leaves no record.
    """
    run = opened.run
    before, is_new = run.config("decompose") or {}, not run.plan_json.is_file()
    record: dict[str, Any] = {"asked": options.to_json(), "limits": opened.memory.limits.to_json()}
    if command := reporter.command or before.get("command"):
        record["command"] = command
    if "plan_digest" in before and not is_new:
        record["plan_digest"] = before["plan_digest"]
    run.update_config("decompose", record)
    try:
        candidates = space_candidates(run, options, given, opened.graph)
        blocks_to_leave_out(run, options, given, opened.graph)  # a name without a block is refused before the work
        if is_new and number() == 0:
            require_runs(options, opened.graph.module, opened.graph.input_shape, opened.device)
        reporter.phase(SURVEY)
        if is_new and number() == 0:
            rehearsed = rehearse(opened, options, list(candidates.values())[-1], original=original)
            if rehearsed.into is False:
                reporter.warn(f"the result may be a traced network: one of random sizes {rehearsed.words()}")
        surveyed = surveyed_run(opened, candidates, options, reporter)
        reporter.phase(PLAN)
        surveyed = with_blocks_left_out(run, options, given, surveyed, reporter)
        plan = make_plan(run, options, surveyed, given=given if is_new else None, reporter=reporter)
    except DecompError:
        if not run.plan_json.is_file():
            run.update_config("decompose", None)
        raise
    if record.get("plan_digest") not in (None, digest_file(run.plan_json)):
        reporter.warn(f"{run.plan_json} was edited; the edited plan is used")
    # Digest of the plan as written here: another one later, or none, means that the plan was edited.
    record.setdefault("plan_digest", digest_file(run.plan_json) if is_new else "")
    record["n_fitted"] = sum(layer.recorded for layer in surveyed.graph.layers)
    run.update_config("decompose", record)
    announce(plan, surveyed.graph, reporter)
    return surveyed, plan
