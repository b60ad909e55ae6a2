"""Prune a network by its name: the run is frozen first where it is not, then its original is pruned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from decomp.errors import UsageError

from ...data.models import LoadedModel
from ...data.splits import ImageSource
from ..console.reporter import Reporter
from ..measure.devices import pick_device
from ..pruning.measured import require_runtime
from ..pruning.plan_file import prune_options, read_plan
from ..pruning.removal import rehearse
from ..pruning.unfolded import Unfolded, unfolded
from ..run.directory import RunDirectory
from ..run.trained import inputs
from ..stages.freeze import freeze
from ..stages.prune import PruneResult, prune


def prune_run(
    run: str | os.PathLike[str] | RunDirectory, *, model: str | None = None, data: str | None = None,
    device: str = "auto", reporter: Reporter | None = None, frozen: dict[str, Any] | None = None, **options: Any,
) -> PruneResult:  # fmt: skip
    """Freeze a network where the run is not frozen yet, and prune it.

    Parameters
    ----------
    run : path or RunDirectory
        Created where it does not exist.
    model, data : str, optional
        Network and images, as for :func:`decomp.pipelines.stages.freeze.freeze`; needed where the run is not frozen and
        nothing was trained in it, and otherwise those that it was frozen with.
    device : str
    reporter : Reporter, optional
    frozen : dict, optional
        Other options of freeze.
    **options
        Of :func:`decomp.pipelines.stages.prune.prune`.

    Returns
    -------
    PruneResult

    Raises
    ------
    DecompError
        Of either stage; UsageError where the run is not frozen and no network is named.
    """
    directory, reporter = RunDirectory(run), reporter or Reporter()
    # Before the images are recorded: a mistake in these must not cost that.
    plan = None if options.get("keep") is None else read_plan(options["keep"])
    own = {name: value for name, value in options.items() if name not in ("keep", "redo", "original")}
    chosen, others = prune_options(plan, **own), dict(frozen or {})
    require_runtime(chosen, pick_device(device))
    is_frozen = directory.run_json.is_file() and directory.config("freeze") is not None
    if is_frozen and (model is None) != (data is None):
        given, other = ("--model", "--data") if data is None else ("--data", "--model")
        raise UsageError(given, f"goes with {other}", fix=f"give both or none: {directory} is frozen already")
    # No layer is fitted to recorded outputs here; a run that has mixtures keeps them.
    record = (directory.config("freeze") or {}).get("asked", {}) if is_frozen else {"mix": False}
    others.setdefault("mix", record.get("mix", True))
    if not is_frozen:
        inputs(directory, model, data, others.get("weights"))
        reporter.step(f"{directory} is frozen first: evaluate, finetune and report need its recorded outputs")
        others["check"] = lambda loaded, source: rehearse(_traced(loaded, source, others), chosen, plan)
    if not is_frozen or model is not None:
        freeze(directory, model=model, data=data, device=device, reporter=reporter, **others)
    return prune(directory, device=device, reporter=reporter, **options)


def _traced(loaded: LoadedModel, source: ImageSource, frozen: Mapping[str, Any]) -> Unfolded:
    part, leaves = frozen.get("part"), frozen.get("leaves") or ()
    return unfolded(loaded.module, loaded.name, source.input_shape, part=part, leaves=leaves)
