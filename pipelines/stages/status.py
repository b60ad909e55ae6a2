"""Stage ``status``: progress of a run, the next command, and its files. Only reads, and does not import torch."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decomp.errors import FileError

from ...data.formats.digests import digest_file
from ...data.formats.json_files import read_json
from ..console.words import counted
from ..run.begun import begun_command
from ..run.conditions import label_options, pruned_words
from ..run.directory import RunDirectory
from ..run.networks import compressed, existing
from ..run.record import last_saved_epoch, read_log
from ..run.target import promise, target_words

#: The end of the message of a fine-tuning that was stopped, as stages/finetune.py writes it.
AGAIN = re.compile(r"begin again with (--lr \S+ --redo)")
DONE, PARTLY, OPEN = "done", "partly", "not yet"
NO_EPOCH = "no epoch yet"


@dataclass(frozen=True)
class StageStatus:
    """Progress of one stage: ``state`` is 'done', 'partly' or 'not yet'; ``detail`` describes it."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class StatusResult:
    """Result of the stage.

    Attributes
    ----------
    run : str
    stages : list of StageStatus
        In execution order.
    next : str or None
        The next command; None when all is done.
    files : list of (str, str)
        Path and description of each file.
    owner : dict
        Process that holds the run's lock (pid, host, since, command); empty when none does.
    """

    run: str
    stages: list[StageStatus] = field(repr=False)
    next: str | None
    files: list[tuple[str, str]] = field(repr=False)
    owner: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """Human-readable summary lines."""
        yield self.run
        for stage in self.stages:
            yield f"  {stage.name:<10} {stage.state:<8} {stage.detail}".rstrip()
        if self.owner:
            yield "now: pid {pid} on {host} has been working on it since {since} ({command})".format(**self.owner)
        yield f"next: {self.next}" if self.next else "next: nothing, all stages are done"
        if self.files:
            yield "files:"
            width = max(len(path) for path, _ in self.files)
            for path, what in self.files:
                yield f"  {path:<{width}}  {what}"

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)


def status(run: str | os.PathLike[str] | RunDirectory, *, program: str = "decomp") -> StatusResult:
    """Read the progress of a run.

    Parameters
    ----------
    run : path or RunDirectory
    program : str
        First words of the next command.

    Returns
    -------
    StatusResult

    Raises
    ------
    FileError
        There is no such run directory.
    """
    run = RunDirectory.open(run, of_tasks=True)
    config = run.read_config()["stages"]
    if "tasks" in config:
        stages, following = _tasks(run, config["tasks"], program)
        return StatusResult(str(run), stages, following, _files(run), run.current_owner())
    stages = [
        *_train(run, config.get("train")),
        _freeze(run, config.get("freeze")),
        *([_prune(run, config["prune"])] if "prune" in config else [_decompose(run, config.get("decompose"))]),
        _finetune(run, config.get("finetune")),
        _evaluate(run),
        _report(run),
        _export(run),
    ]
    return StatusResult(str(run), stages, _next(run, stages, program), _files(run), run.current_owner())


def _tasks(run: RunDirectory, config: dict[str, Any], program: str) -> tuple[list[StageStatus], str]:
    """The tasks of a run that learns tasks, and the next command."""
    names = [path.stem.partition("_")[2] for path in sorted(run.tasks_dir.glob("[0-9][0-9][0-9]_*.safetensors"))]
    place = shlex.quote(str(run))
    asked = run.tasks_work / "asked.json"
    stages = [StageStatus(f"task {name}", DONE) for name in names]
    if asked.is_file():
        fix = "begin the unfinished task again with tasks add --redo"
        options = read_json(asked, fix=fix, sealed=True).get("options", {})
        if options.get("name") not in names:
            stages.append(
                StageStatus(f"task {options.get('name')}", PARTLY, "repeat its command of tasks add to go on")
            )
    model = config.get("asked", {}).get("model", "a network")
    first = StageStatus("tasks", DONE if names else PARTLY, f"{len(names)} in {model}")
    return [first, *stages], f"{program} tasks {'verify' if names else 'list'} --run {place}"


def _train(run: RunDirectory, config: dict[str, Any] | None) -> list[StageStatus]:
    """The training of a run; nothing for a run without one."""
    if config is not None:
        if not run.trained_weights.is_file():
            return [StageStatus("train", PARTLY, f"{run.trained_weights} is missing; --redo trains again")]
        asked, facts = config.get("asked", {}), config.get("facts", {})
        detail = f"{asked.get('model', 'a network')} on {asked.get('data', 'images')}, {_epochs(asked.get('epochs'))}"
        for name, value in facts.get("accuracy", {}).items():
            detail += f"; {100 * value:.1f} % of the {name} images"
        return [StageStatus("train", DONE, detail)]
    begun = run.trained_weights.parent.is_dir()
    return [StageStatus("train", PARTLY, last_saved_epoch(run.log, "train") or NO_EPOCH)] if begun else []


def _freeze(run: RunDirectory, config: dict[str, Any] | None) -> StageStatus:
    if config is None or not run.frozen.is_file():
        return _unfinished_freeze(run)
    asked, facts = config.get("asked", {}), config.get("facts", {})
    detail = f"{asked.get('model', 'a network')} on {asked.get('data', 'images')}"
    if "n_images" in facts and "n_points" in facts:
        detail += f": {counted(facts['n_images'], 'image')}, {counted(facts['n_points'], 'point')} each"
    return StageStatus("freeze", DONE, detail)


def _unfinished_freeze(run: RunDirectory) -> StageStatus:
    events = [event for event in read_log(run.log) if event.get("stage") == "freeze"]
    if not events:
        return StageStatus("freeze", OPEN)
    why = events[-1].get("message") if events[-1].get("event") == "stop" else "freeze stopped before its end"
    return StageStatus("freeze", PARTLY, str(why))


def _decompose(run: RunDirectory, config: dict[str, Any] | None) -> StageStatus:
    if config is None:
        return StageStatus("decompose", OPEN)
    target, planned = target_words(config), promise(config)
    if planned:
        time = (
            f"{planned['speedup']:.2f}x when it was planned" if planned["speedup"] else "of edited sizes: not measured"
        )
        target += f" ({time})"
    target += f" by {', '.join(config.get('asked', {}).get('steps', []))}"
    if "macs_after" in config and (run.model_dir / "structure.json").is_file():
        reached = config["macs_before"] / config["macs_after"]
        millions = f"{config['macs_before'] / 1e6:,.2f} M to {config['macs_after'] / 1e6:,.2f} M multiply-accumulates"
        return StageStatus("decompose", DONE, f"{reached:.2f}x ({millions}); target {target}")
    if not run.plan_json.is_file():
        return StageStatus("decompose", PARTLY, f"{target}: no plan yet")
    committed = len(list(run.layers_dir.glob("*.safetensors"))) if run.layers_dir.is_dir() else 0
    if not committed:
        return StageStatus("decompose", PARTLY, f"{target}: plan.json is written, and can be edited; no layer yet")
    of_all = f" of {config['n_fitted']}" if "n_fitted" in config else ""  # in runs of versions that did not count them
    return StageStatus("decompose", PARTLY, f"{target}: {committed}{of_all} layers")


def _prune(run: RunDirectory, config: dict[str, Any]) -> StageStatus:
    if "macs_after" not in config:
        return StageStatus("prune", PARTLY, f"{pruned_words(config)}: stopped before its end")
    reached = config["macs_before"] / max(config["macs_after"], 1)
    millions = f"{config['macs_before'] / 1e6:,.2f} M to {config['macs_after'] / 1e6:,.2f} M multiply-accumulates"
    state = DONE if (run.pruned_dir / "structure.json").is_file() else PARTLY
    return StageStatus("prune", state, f"{reached:.2f}x ({millions}) {pruned_words(config)}")


def _finetune(run: RunDirectory, config: dict[str, Any] | None) -> StageStatus:
    done = (run.finetune_dir / "best" / "structure.json").is_file()
    if config is not None and done:
        source = compressed(run)
        if source is None or config.get("network") != _digest(source.path(run)):
            label = "compressed" if source is None else source.label
            return StageStatus("finetune", PARTLY, f"made from an earlier {label} network; --redo tunes this one")
        asked, facts = config.get("asked", {}), config.get("facts", {})
        kind = "without labels" if asked.get("labels") == "none" else "with labels"
        detail = f"{_epochs(facts.get('epochs', asked.get('epochs')))} {kind}"
        if isinstance(facts.get("before"), float) and isinstance(facts.get("after"), float):
            percent = str(facts.get("metric")).endswith("accuracy")
            before, after = (f"{100 * x:.1f} %" if percent else f"{x:.3g}" for x in (facts["before"], facts["after"]))
            then = "no epoch better" if facts.get("best_epoch") == 0 else f"{after} after"
            detail += f"; {facts.get('metric', 'score')} {before} before, {then}"
        return StageStatus("finetune", DONE, detail)
    if stopped := _diverged(run):
        return StageStatus("finetune", PARTLY, stopped)
    if not run.finetune_dir.is_dir():
        return StageStatus("finetune", OPEN)
    return StageStatus("finetune", PARTLY, last_saved_epoch(run.log, "finetune") or NO_EPOCH)


def _epochs(n: object) -> str:
    return counted(n, "epoch") if isinstance(n, int) else "epochs"


def _diverged(run: RunDirectory) -> str | None:
    """Why the last fine-tuning was stopped, where that ends with the options to begin it again with."""
    events = [event for event in read_log(run.log) if event.get("stage") == "finetune"]
    why = str(events[-1].get("message")).removeprefix("finetune stopped: ") if events else ""
    again = AGAIN.search(why)
    return f"{why.split(';')[0]}; {again[0]}" if again else None


def _evaluate(run: RunDirectory) -> StageStatus:
    if not run.report_json.is_file():
        return StageStatus("evaluate", OPEN)
    now = {network.label: _digest(network.path(run)) for network in existing(run)}
    try:
        measured = read_json(run.report_json)["identity"]["networks"]
    except (FileError, KeyError, TypeError):
        return StageStatus("evaluate", PARTLY, "report.json cannot be read")
    left = [name for name in now if measured.get(name) != now[name]]
    if left:
        return StageStatus("evaluate", PARTLY, f"not measured as it is now: {', '.join(left)}")
    return StageStatus("evaluate", DONE, ", ".join(measured))


def _report(run: RunDirectory) -> StageStatus:
    if not run.report_html.is_file():
        return StageStatus("report", OPEN)
    made = run.report_html.stat().st_mtime_ns
    sources = [network.path(run) / "structure.json" for network in existing(run)] + [run.report_json]
    if any(path.is_file() and path.stat().st_mtime_ns > made for path in sources):
        return StageStatus("report", PARTLY, "older than the results")
    return StageStatus("report", DONE, str(run.report_html))


def _export(run: RunDirectory) -> StageStatus:
    files = sorted(run.export_dir.glob("*")) if run.export_dir.is_dir() else []
    if not files:
        return StageStatus("export", OPEN)
    names, oldest = ", ".join(path.name for path in files), min(path.stat().st_mtime_ns for path in files)
    networks = existing(run)
    if any((network.path(run) / "structure.json").stat().st_mtime_ns > oldest for network in networks):
        return StageStatus("export", PARTLY, f"older than the networks: {names}")
    if networks and not any(path.name.startswith(f"{networks[-1].name}.") for path in files):
        return StageStatus("export", PARTLY, f"{names}; not the {networks[-1].label} network")
    return StageStatus("export", DONE, names)


def _digest(network: Path) -> str | None:
    structure = network / "structure.json"
    return digest_file(structure) if structure.is_file() else None


def _next(run: RunDirectory, stages: Sequence[StageStatus], program: str) -> str | None:
    """Command of the first stage that is not done: as it was begun, or with the options that are required."""
    stage = next((stage for stage in stages if stage.state != DONE), None)
    if stage is None:
        return None
    if again := AGAIN.search(stage.detail):
        return f"{program} finetune --run {shlex.quote(str(run))} {again[1]}"
    if stage.state == PARTLY and (command := begun_command(run, stage.name)) and "--which" not in command:
        redo = " --redo" if "--redo" in stage.detail and "--redo" not in command else ""
        return f"{program} {command}{redo}"
    inputs = "" if any(done.name == "train" for done in stages) else " --model … --data …"
    options = {"freeze": inputs, "decompose": " --speedup 4x"}.get(stage.name, "")
    if stage.name == "finetune" and (labels := label_options(run)):
        options = f" {labels}"
    return f"{program} {stage.name} --run {shlex.quote(str(run))}{options}"


def _files(run: RunDirectory) -> list[tuple[str, str]]:
    known = [
        (run.trained_weights, "the trained weights"),
        (run.frozen, "calibration images and recorded outputs"),
        (run.original_dir, "the original network"),
        (run.plan_json, "sizes of each layer"),
        (run.model_dir, "the decomposed network"),
        (run.prune_json, "channels that stay in the pruned network"),
        (run.pruned_dir, "the pruned network"),
        (run.path / "sensitivity.png", "closeness to the original with one layer pruned at a time"),
        (run.finetune_dir / "best", "the fine-tuned network"),
        (run.report_json, "the table of evaluate"),
        (run.report_html, "the report; open it in a browser"),
        (run.export_dir, "the network for use without this package"),
        (run.tasks_dir, "the tasks"),
        (run.log, "log of all steps"),
    ]
    # An export that was refused leaves an empty folder.
    there = [(path, what) for path, what in known if path.is_file() or path.is_dir() and any(path.iterdir())]
    return [(str(path), f"{what}{_size(path)}") for path, what in there]


def _size(path: Path) -> str:
    parts = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    size = sum(part.stat().st_size for part in parts)
    return f" ({size / 2**20:,.1f} MiB)" if size >= 2**18 else f" ({size / 2**10:,.0f} KiB)"
