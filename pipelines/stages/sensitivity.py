"""Stage ``sensitivity``: each layer is pruned alone at several ratios, and nothing is trained."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decomp.criteria.choose import by_layer
from decomp.modules.copies import deep_copy
from decomp.runtimes.precision import exact_float32
from decomp.surgery.narrow_network import shrink

from ...data.formats.atomic import commit
from ...data.formats.digests import digest_file
from ..console.program import command_line
from ..console.prune_options import SensitivityOptions
from ..console.reporter import Reporter
from ..console.text_table import text_table
from ..measure.closeness import compared, percent
from ..measure.devices import pick_device
from ..measure.shares import images_at_a_time
from ..pruning.choice import Images, score_spaces
from ..pruning.images import batched
from ..pruning.plan_file import prune_options
from ..pruning.removal import nothing_to_prune
from ..pruning.selection import with_selections
from ..pruning.unfolded import unfolded_of_run
from ..reporting import figures
from ..reporting.tables import Table
from ..run import loading
from ..run.calibration import fitted_images
from ..run.conditions import prune_elsewhere
from ..run.directory import RunDirectory
from ..run.outputs import frozen_outputs

#: Columns of the table, in the file and in the report.
COLUMNS = ("layer", "ratio", "kept", "channels", "agreement", "divergence_nats", "output_difference")
#: Most held-out images that are looked at for each layer and ratio.
MOST_IMAGES = 500


@dataclass(frozen=True)
class SensitivityResult:
    """Result of the stage.

    Attributes
    ----------
    run : RunDirectory
    done_before : bool
    facts : dict
        The record of the stage in run.json; ``rows`` has a row of :data:`COLUMNS` for each layer and ratio.
    """

    run: RunDirectory
    done_before: bool
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        f = self.facts
        rows = [dict(zip(COLUMNS, row)) for row in f["rows"]]
        ratios = list(dict.fromkeys(row["ratio"] for row in rows))
        table = [["layer", "channels", *(f"{100 * ratio:g} % go" for ratio in ratios)]]
        for layer in dict.fromkeys(row["layer"] for row in rows):
            own = [row for row in rows if row["layer"] == layer]
            table.append([layer, str(own[0]["channels"]), *map(_shown, own)])
        yield from text_table(table).split("\n")
        what = "same first class as the original" if rows[0]["agreement"] is not None else "change of the outputs"
        yield (
            f"{what} on {f['images']:,} held-out calibration images, one layer pruned at a time by "
            f"{f['asked']['criterion']}, nothing trained"
        )
        if self.done_before:
            yield "measured earlier; use --redo to measure again"
        yield f"{sensitivity_csv(self.run)}, {sensitivity_png(self.run)}"
        skip = f"--skip {shlex.quote(_most_sensitive(rows))}"
        if self.run.config("decompose") is not None:
            yield f"next: {prune_elsewhere(self.run)} {skip}"
            return
        redo = " --redo" if self.run.config("prune") is not None else ""
        yield f"next: {command_line('prune', self.run.path, f'--speedup 2x {skip}{redo}')}"


def _most_sensitive(rows: Sequence[Mapping[str, Any]]) -> str:
    """The layer whose outputs suffer most on the average of all ratios."""
    total: dict[str, float] = {}
    for row in rows:
        total[row["layer"]] = total.get(row["layer"], 0.0) + row["output_difference"]
    return max(total, key=total.__getitem__)


def _shown(row: Mapping[str, Any]) -> str:
    if row["agreement"] is None:
        return percent(row["output_difference"])
    return f"{100 * row['agreement']:.1f} %"


def sensitivity_csv(run: RunDirectory) -> Path:
    """The curves as a table."""
    return run.path / "sensitivity.csv"


def sensitivity_png(run: RunDirectory) -> Path:
    """The curves as a picture."""
    return run.path / "sensitivity.png"


@exact_float32()
def sensitivity(
    run: str | os.PathLike[str] | RunDirectory,
    *,
    criterion: str = "l1",
    ratios: Sequence[float] | str = SensitivityOptions.ratios,
    coupled: bool = False,
    seed: int = 0,
    device: str = "auto",
    redo: bool = False,
    reporter: Reporter | None = None,
) -> SensitivityResult:
    """Measure how much the outputs suffer when one layer alone loses channels (Li et al. 2017, section 3.2).

    Parameters
    ----------
    run : path or RunDirectory
        Frozen; what else was made in it does not matter.
    criterion : str
        One of :data:`decomp.criteria.names.CRITERIA`.
    ratios : sequence of float, or str such as ``'0.1,0.5'``
        Shares of a layer's channels that go, in (0, 1).
    coupled : bool
        Also residual streams, each as a whole.
    seed : int
        Of the criteria 'random' and 'taylor'.
    device : {'auto', 'cpu', 'cuda'}
    redo : bool
        Measure again.
    reporter : Reporter, optional

    Returns
    -------
    SensitivityResult
        Also written to sensitivity.csv and sensitivity.png in the run.

    Raises
    ------
    UsageError, TargetError
        An option is not allowed, or no layer can be pruned.
    """
    options = SensitivityOptions(criterion=criterion, ratios=ratios, coupled=coupled, seed=seed)  # type: ignore[arg-type]
    reporter, directory, target = reporter or Reporter(), RunDirectory.open(run), pick_device(device)
    with directory.lock(), reporter.stage("sensitivity"):
        frozen, original = loading.open_frozen(directory)
        with frozen:
            identity = {"network": digest_file(directory.original_dir / "structure.json"), "frozen": frozen.content}
            before = directory.config("sensitivity") or {}
            if not redo and before.get("of") == identity and not options.differences(before.get("asked") or {}):
                if sensitivity_csv(directory).is_file() and sensitivity_png(directory).is_file():
                    return SensitivityResult(directory, True, before)
            outputs, (channels, height, width) = frozen_outputs(frozen), frozen.meta["input_shape"]
            size = images_at_a_time(outputs, (channels, height, width))
            held_out = min(frozen.n_images - fitted_images(frozen.n_images), MOST_IMAGES)
            images = batched(
                frozen.images, frozen.n_images - held_out, frozen.n_images, size, target, outputs, options.seed
            )  # fmt: skip
            rows = _rows(directory, options, images, original.to(target), target, reporter)
        facts = {"asked": options.to_json(), "of": identity, "images": held_out, "rows": rows}
        _write(directory, rows)
        directory.update_config("sensitivity", facts)
        return SensitivityResult(directory, False, facts)


@torch.no_grad()
def _rows(
    run: RunDirectory, options: SensitivityOptions, images: Images, original: nn.Module, device: torch.device,
    reporter: Reporter,
) -> list[list[Any]]:  # fmt: skip
    """A row for each layer and ratio."""
    source = unfolded_of_run(run)
    source.network.to(device)
    chosen = prune_options(criterion=options.criterion, ratio=0.5, coupled=options.coupled, seed=options.seed)
    source, _ = with_selections(source, chosen, None)
    with torch.enable_grad():
        scored = score_spaces(source, chosen, images)
    if not scored.scores:
        raise nothing_to_prune(source.graph, scored.left_alone, options.criterion)
    rows: list[list[Any]] = []
    with reporter.progress(len(scored.scores) * len(options.ratios), "sensitivity", "networks") as progress:
        for name, values in scored.scores.items():
            for ratio in options.ratios:
                keep = by_layer({name: values}, ratio).keep
                network = deep_copy(source.network)
                shrink(network, source.graph.spaces, keep)
                found = compared(original, network, images.held_out(), images.outputs).result()
                rows.append([
                    name, ratio, len(keep[name]), len(values), found.get("agreement"), found.get("kl"),
                    found["relative"],
                ])  # fmt: skip
                progress.update(1)
    return rows


def _write(run: RunDirectory, rows: Sequence[Sequence[Any]]) -> None:
    with commit(sensitivity_csv(run)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    with commit(sensitivity_png(run)) as part:
        figures.draw(Table("sensitivity", COLUMNS, [tuple(row) for row in rows]), part)
