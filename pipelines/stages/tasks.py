"""Stage ``tasks``: learn tasks one after another in one network, list, verify and export them.

The method is CPG (Hung et al., NeurIPS 2019). A task that was learned stays bit-identical for ever.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decomp.errors import DecompError, FileError, UsageError
from decomp.schemes.cpg_owners import MOST_TASKS

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from ...data.formats.task_file import TaskFile
from ...data.splits import ImageSource
from ..console.options import TaskOptions, TaskRunOptions
from ..console.options import formats as checked_formats
from ..console.reporter import Reporter
from ..continual import matrix, phases
from ..continual.cycle import learn
from ..continual.exports import export_task
from ..continual.guard import Guard
from ..continual.images import TaskImages, open_images, task_images
from ..continual.phases import Learning
from ..continual.results import AddedTask, ExportedTaskResult, TaskList, TaskReport, VerifyResult
from ..continual.store import STAGE, TaskStore, base_network
from ..continual.verification import verify as verified
from ..measure.devices import pick_device
from ..reporting.task_page import write_task_report
from ..run.directory import RunDirectory

KIND = "decomp unfinished task"


def add(
    run: str | os.PathLike[str] | RunDirectory, *, name: str, data: str | ImageSource, goal: float | str,
    model: str | None = None, weights: str | None = None, input_size: Any = None, seed: int | None = None,
    device: str = "auto", redo: bool = False, reporter: Reporter | None = None, **options: Any,
) -> AddedTask:  # fmt: skip
    """Learn a task beside those that the run holds, and commit it.

    An interrupted call goes on when it is repeated, and ends with the same bytes as one that was not.

    Parameters
    ----------
    run : path or RunDirectory
    name : str
        Of the task.
    data : str or ImageSource
        Labelled images, as :func:`decomp.data.sources.open_source` names them, or an open source.
    goal : float or 'independent'
        Accuracy on held-out images, in 0..1; or that of an independent network, which is trained first.
    model, weights, input_size, seed : optional
        Network of the run, for its first task: a name as in ``freeze``, random weights where no file is given. Later
        tasks need none of them; where they are given they must be those of the run.
    device : str
    redo : bool
        Begin an unfinished task again. Committed tasks stay.
    reporter : Reporter, optional
    **options
        Fields of :class:`decomp.pipelines.console.options.TaskOptions`.

    Returns
    -------
    AddedTask

    Raises
    ------
    UsageError
        Images or labels that do not fit, a name that is taken, options that are not those of the run.
    FileError
        The run is of something else, or a file of it is damaged.
    TraceError
        The network cannot be followed or cannot grow.
    """
    directory, reporter = RunDirectory(run), reporter or Reporter()
    described = data if isinstance(data, str) else data.name
    asked = TaskOptions(name=name, data=described, goal=goal, **options)
    base = _base_options(directory, model, weights, input_size, seed)
    chosen = pick_device(device)
    existing = TaskStore(directory) if _has_tasks(directory) else None
    source = open_images(data, None if existing is None else existing.input_shape)
    images = task_images(source, base.seed, asked.classes)
    grows, begun = asked.max_width > 1, None
    if existing is None:
        begun = base_network(base, source, images.n_classes, grows=grows)
        RunDirectory.create(directory, of_tasks=True)
    with directory.lock(), reporter.stage("tasks add"):
        if begun is not None and not _has_tasks(directory):
            TaskStore.create(directory, begun)
        store = TaskStore(directory)
        tasks = store.tasks()
        already = _already(store, tasks, asked, source)
        if already is None:
            _require_all(store)
            if grows:
                store.family(True)
            for sentence in images.warnings():
                reporter.warn(f"task {name}: {sentence}")
            identity = _identity(store, tasks, asked, images)
            _begin(store, asked, identity, redo)
            guard = Guard(store, tasks)
            learning = Learning(store, asked, images, len(tasks) + 1, guard, identity, chosen, reporter)
            store.commit(learn(learning, tasks), tasks)
        _drop_finished_work(store)
        matrix.measure(store, chosen, {asked.name: source})
        return AddedTask(store.run, TaskList.of(store), asked.name, already is not None)


def listed(run: str | os.PathLike[str] | RunDirectory) -> TaskList:
    """The tasks of a run: accuracies, owners, widths, sizes; of those before a damaged file, where there is one.

    Raises
    ------
    FileError
        The run holds no tasks, or another file of it is damaged.
    """
    return TaskList.of(TaskStore.open(run))


def verify(run: str | os.PathLike[str] | RunDirectory) -> VerifyResult:
    """Compare every task with what was committed, to the last bit.

    Raises
    ------
    FileError
        The run holds no tasks.
    """
    store = TaskStore.open(run)
    return VerifyResult(store.run, verified(store))


def export(
    run: str | os.PathLike[str] | RunDirectory, *, name: str, formats: str | Sequence[str] = ("pt2", "state-dict"),
    out: str | os.PathLike[str] | None = None, reporter: Reporter | None = None,
) -> ExportedTaskResult:  # fmt: skip
    """Write one task as an ordinary network, without the channels that it does not use.

    Raises
    ------
    UsageError
        There is no such task or format.
    DecompError
        A file gives other outputs than the network.
    """
    chosen, store = checked_formats(formats), TaskStore.open(run)
    store.number_of(name)
    reporter = reporter or Reporter()
    with store.run.lock(), reporter.stage("tasks export"):
        reporter.step(f"writing and checking {', '.join(chosen)}")
        folder = Path(out) if out is not None else store.run.export_dir
        files, sizes = export_task(store, name, chosen, folder)
        return ExportedTaskResult(name, files, sizes)


def report(run: str | os.PathLike[str] | RunDirectory, *, reporter: Reporter | None = None) -> TaskReport:
    """Write the page of a run of tasks: accuracy matrix, owners, ladders, with their numbers.

    Raises
    ------
    FileError
        The run holds no tasks, or none is committed yet.
    """
    store, reporter = TaskStore.open(run), reporter or Reporter()
    run = store.run
    with run.lock(), reporter.stage("tasks report"):
        store.tasks()  # a page of some tasks alone would pass for that of all
        matrix.measure(store, pick_device("cpu"))
        found = TaskList.of(store)
        if not found.tasks:
            raise FileError(run.path, "no task is committed yet", fix="repeat the command of tasks add")
        names = write_task_report(run.report_html, run.figures_dir, found.to_json(), run.figures_dir.name)
        return TaskReport(str(run.report_html), str(run.figures_dir), names)


# -- parts of `add` --------------------------------------------------------------------------------------------


def _has_tasks(run: RunDirectory) -> bool:
    """Whether there is a run of tasks; refuses a run of something else.

    Raises
    ------
    FileError
    """
    if not run.run_json.is_file():
        run.check_free()
        return False
    stages = run.read_config()["stages"]
    if stages and STAGE not in stages:
        rule, got = "tasks need a run directory of their own", f"one with {', '.join(stages)}"
        raise FileError(run.path, rule, got=got, fix="give another --run")
    return STAGE in stages


def _base_options(
    run: RunDirectory, model: str | None, weights: str | None, input_size: Any, seed: int | None
) -> TaskRunOptions:
    """Options of the run; those given must be the recorded ones."""
    given = {"model": model, "weights": weights, "input_size": input_size, "seed": seed}
    given = {key: value for key, value in given.items() if value is not None}
    if not _has_tasks(run):
        return TaskRunOptions(**{"model": None, **given})
    recorded = TaskRunOptions.from_json((run.config(STAGE) or {})["asked"])
    for key, value in given.items():
        before = getattr(recorded, key)
        if str(value) != str(before):
            fix = "leave it out: it is chosen with the first task"
            raise UsageError(run.path, f"began with {key.replace('_', ' ')} {before}", got=value, fix=fix)
    return recorded


def _already(
    store: TaskStore, tasks: Sequence[TaskFile], asked: TaskOptions, source: ImageSource
) -> TaskFile | None:  # fmt: skip
    """The committed task of this name, if it was learned in the same way."""
    found = next((task for task in tasks if task.name == asked.name), None)
    if found is None:
        if len(tasks) >= MOST_TASKS:
            raise UsageError(store.run.path, f"can hold {MOST_TASKS} tasks", fix="begin another run")
        return None
    differences = asked.differences(found.facts.get("options", {}))
    if differences or found.facts.get("data_digest") != source.digest("train"):
        got = ", ".join(f"{key} = {now} (was {before})" for key, before, now in differences) or "other images"
        rule = "is in the run already, and a task that is learned does not change"
        raise UsageError(f"task {asked.name}", rule, got=got, fix="give another name")
    return found


def _require_all(store: TaskStore) -> None:
    """Refuse to go on without a task that was committed, or with a broken matrix, before anything is trained."""
    if gone := matrix.lost(store):
        fix = "put a copy of its file back, or remove accuracy.json there to go on without it"
        raise FileError(store.run.tasks_dir, f"task {gone[0]} was committed, and its file is missing", fix=fix)


def _identity(store: TaskStore, tasks: Sequence[TaskFile], asked: TaskOptions, images: TaskImages) -> str:
    """Digest of all that decides the result."""
    parent = tasks[-1].content if tasks else store.first_parent
    return digest_json([parent, store.options.to_json(), asked.to_json(), images.source.digest("train")])


def _begin(store: TaskStore, asked: TaskOptions, identity: str, redo: bool) -> None:
    """Note which task is being learned; refuses another one while that is unfinished."""
    path = store.run.tasks_work / "asked.json"
    _drop_finished_work(store)
    if redo:
        phases.clear(store.run.tasks_work)
    if path.exists():
        record = read_json(path, kind=KIND, fix="add the task with --redo", sealed=True)
        if record.get("identity") == identity:
            return
        before = TaskOptions.from_json(record["options"])
        if before.name != asked.name:
            fix = "repeat its command to go on, or give --redo to drop it"
            raise UsageError(store.run.path, f"task {before.name} is not finished", got=f"task {asked.name}", fix=fix)
        differences = asked.differences(record["options"])
        got = ", ".join(f"{key} = {now} (was {old})" for key, old, now in differences) or "other images"
        fix = "give the same options to go on, or --redo to begin it again"
        raise UsageError(f"task {asked.name}", "was begun otherwise", got=got, fix=fix)
    write_json(path, {"identity": identity, "options": asked.to_json()}, kind=KIND, seal=True)


def _drop_finished_work(store: TaskStore) -> None:
    """Remove the files of a task that is committed."""
    path = store.run.tasks_work / "asked.json"
    if not path.exists():
        return
    try:
        record = read_json(path, kind=KIND, sealed=True)
    except DecompError:
        return
    if record.get("options", {}).get("name") in store.names():
        phases.clear(store.run.tasks_work)
