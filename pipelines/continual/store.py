"""Store of tasks in a run directory: base network, committed task files, and the networks they make up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from decomp.errors import FileError, MissingError, UsageError, near_miss
from decomp.graph.network_graph import NetworkGraph
from decomp.graph.tracing import trace
from decomp.schemes import cpg_owners
from decomp.schemes.cpg_growth import Family, grown, leading
from decomp.schemes.cpg_module import TaskState, effective_state

from ...data.formats import network_file, task_file
from ...data.formats.digests import digest_file
from ...data.formats.task_file import TaskFile
from ...data.models import load_model
from ...data.splits import ImageSource
from ..console.options import TaskRunOptions
from ..run.directory import RunDirectory

STAGE = "tasks"


@dataclass(frozen=True, eq=False)
class Base:
    """The network of a run before its first task, which nothing has written yet."""

    options: TaskRunOptions
    network: fx.GraphModule
    input_shape: tuple[int, int, int]
    weights: str


def base_network(options: TaskRunOptions, source: ImageSource, n_classes: int, *, grows: bool) -> Base:
    """Build the network that a run begins with; no file is written, so that one that is refused leaves nothing.

    Parameters
    ----------
    options : TaskRunOptions
    source : ImageSource
        Of the first task.
    n_classes : int
        Of the first task.
    grows : bool
        Whether the network may grow: one that cannot is refused before it is trained.

    Raises
    ------
    DecompError
        The network cannot be built, traced or grown, or takes other images.
    """
    size = options.input_size
    if size is None:
        size = source.input_shape if options.model.startswith("zoo:") else source.input_shape[1:]
    weights = "random" if options.weights is None else options.weights
    classes = n_classes if options.weights is None else None
    loaded = load_model(options.model, weights=weights, input_size=size, n_classes=classes, seed=options.seed)
    shape = loaded.input_shape
    if shape is None or tuple(shape) != tuple(source.input_shape):
        words = ["x".join(map(str, value or ())) for value in (shape, source.input_shape)]
        fix = "prepare the images in that form, or give another input size"
        raise UsageError(source.name, f"{options.model} takes images of {words[0]}", got=words[1], fix=fix)
    network = trace(loaded.module, options.model, shape=shape)
    Family.of(NetworkGraph(network, shape, options.model), options.model, grows=grows)
    return Base(options, network, shape, loaded.weights_digest)


class TaskStore:
    """The tasks of a run; every call reads what is committed, and checks it.

    Parameters
    ----------
    run : RunDirectory
        With a base network: made by :meth:`create`.

    Attributes
    ----------
    options : TaskRunOptions
    base : torch.fx.GraphModule
        The network at width 1, as the run began.
    input_shape : tuple of int
    """

    def __init__(self, run: RunDirectory) -> None:
        record = run.config(STAGE)
        if record is None:
            rule, fix = "holds no tasks", f"begin with tasks add --run {run.path} --model … --data … --name … --goal …"
            raise FileError(run.path, rule, fix=fix)
        self.run = run
        self.options = TaskRunOptions.from_json(record["asked"])
        try:
            structure = network_file.read_structure(run.tasks_base)
            network = network_file.load(run.tasks_base)
        except FileError as error:
            fix = "put a copy of it back: all tasks were made from it"
            raise FileError(error.thing, error.rule, error.got, fix) from error
        self.input_shape: tuple[int, ...] = tuple(structure["input_shape"])
        assert isinstance(network, fx.GraphModule)
        self.base = network
        self.first_parent = digest_file(run.tasks_base / "structure.json")
        self._families: dict[bool, Family] = {}

    @classmethod
    def open(cls, run: str | os.PathLike[str] | RunDirectory) -> TaskStore:
        """The tasks of an existing run.

        Raises
        ------
        FileError
            There is no such run, or it is a run of something else.
        """
        path = RunDirectory(run).path
        if not path.exists():
            fix = f"begin with tasks add --run {path} --model … --data … --name … --goal …"
            raise MissingError(path, "there is no such run directory", fix=fix)
        return cls(RunDirectory.open(run, of_tasks=True))

    @classmethod
    def create(cls, run: RunDirectory, base: Base) -> TaskStore:
        """Write the base network into a run that is locked and holds no tasks yet.

        Raises
        ------
        DecompError
            The network cannot be written as data.
        """
        origin = base.options.to_json()
        network_file.save(base.network, run.tasks_base, input_shape=base.input_shape, meta={"origin": origin})
        run.update_config(STAGE, {"asked": origin, "weights": base.weights})
        return cls(run)

    def family(self, grows: bool) -> Family:
        """The network at all widths; with `grows` only if its channels can grow."""
        if grows not in self._families:
            name = self.options.model
            graph = NetworkGraph(self.base, self.input_shape, name)
            self._families[grows] = Family.of(graph, name, grows=grows)
        return self._families[grows]

    def family_at(self, width: float) -> Family:
        """The family for networks of a width."""
        return self.family(width != 1.0)

    # -- committed tasks ---------------------------------------------------------------------------------------

    def paths(self) -> list[Path]:
        """Files of the committed tasks, in order."""
        return task_file.task_paths(self.run.tasks_dir)

    def names(self) -> list[str]:
        """Names of the committed tasks, in order."""
        return [path.stem.partition("_")[2] for path in self.paths()]

    def tasks(self, last: int | None = None) -> list[TaskFile]:
        """The committed tasks in order, up to a number where one is given.

        Raises
        ------
        FileError
            A file is damaged, or does not follow those before it.
        """
        parent, found = self.first_parent, []
        for number, path in enumerate(self.paths()[:last], start=1):
            found.append(_read(path, number, parent))
            parent = found[-1].content
        return found

    def readable(self) -> tuple[list[TaskFile], dict[str, str]]:
        """The committed tasks before the first damaged file, and what hides each of the others, by task."""
        parent, found, hidden = self.first_parent, list[TaskFile](), dict[str, str]()
        for number, (name, path) in enumerate(zip(self.names(), self.paths()), start=1):
            if hidden:
                hidden[name] = f"it was made after {next(iter(hidden))}"
                continue
            try:
                found.append(_read(path, number, parent))
            except FileError as error:
                hidden[name] = str(error).rstrip(".")
            else:
                parent = found[-1].content
        return found, hidden

    def number_of(self, name: str) -> int:
        """Number of the task with a name.

        Raises
        ------
        UsageError
            There is none.
        """
        names = self.names()
        if name in names:
            return names.index(name) + 1
        fix = near_miss(name, names) or f"its tasks are: {', '.join(names) or 'none yet'}"
        raise UsageError(name, "is no task of this run", fix=fix)

    def commit(self, task: TaskFile, before: Sequence[TaskFile]) -> Path:
        """Write the file of a new task behind those before it."""
        parent = before[-1].content if before else self.first_parent
        path = self.run.tasks_dir / task_file.file_name(task.number, task.name)
        task.content = task_file.write_task(path, task, parent)
        return path

    # -- networks ----------------------------------------------------------------------------------------------

    def committed(self, tasks: Sequence[TaskFile]) -> TaskState:
        """Shared weights and owners after some tasks, and the last one's own entries; the base before the first."""
        if not tasks:
            return base_state(self.base, self.family(False))
        weights, owners = assembled(tasks)
        return TaskState(tasks[-1].width, weights, owners, {}, dict(tasks[-1].private))

    def effective(self, tasks: Sequence[TaskFile]) -> dict[str, Tensor]:
        """State dict of the last of some tasks' ordinary network, at its own width."""
        state = self.committed(tasks)
        picked = {layer: used for layer, used in tasks[-1].used.items()}
        return {**state.private, **effective_state(state.weights, state.owners, tasks[-1].number, picked)}

    def network(self, name: str) -> fx.GraphModule:
        """A task as an ordinary network, in evaluation mode, at the width that it was committed with."""
        tasks = self.tasks(self.number_of(name))
        return self.built(tasks[-1], self.effective(tasks))

    def built(self, task: TaskFile, state: Mapping[str, Tensor]) -> fx.GraphModule:
        """The network of a task's width and classes with the values of a state dict."""
        network = self.family_at(task.width).build(task.width, task.n_classes)
        network.load_state_dict(state)
        return network


def _read(path: Path, number: int, parent: str) -> TaskFile:
    """A task from its file, which must have the task's name: commands find a task by the name of its file."""
    task = task_file.read_task(path, number, parent)
    name = task_file.file_name(number, task.name)
    if path.name != name:
        raise FileError(path, f"holds task {task.name}", got="another name", fix=f"give it its name back: {name}")
    return task


def base_state(base: fx.GraphModule, family: Family) -> TaskState:
    """The base network as the state before the first task: nothing is owned."""
    state = {name: value.detach().clone() for name, value in base.state_dict().items()}
    weights = {layer: state.pop(f"{layer}.weight") for layer in family.layers}
    owners = {layer: torch.zeros(weight.shape, dtype=torch.uint8) for layer, weight in weights.items()}
    return TaskState(1.0, weights, owners, {}, state)


def assembled(tasks: Sequence[TaskFile]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Shared weights and owners after some tasks, at the width of the last one; free weights are 0.

    Raises
    ------
    FileError
        A task's values do not fit its bits.
    """
    weights: dict[str, Tensor] = {}
    owners: dict[str, Tensor] = {}
    for task in tasks:
        for layer, used in task.used.items():
            owner, weight = torch.zeros(used.shape, dtype=torch.uint8), torch.zeros(used.shape)
            if layer in owners:
                owner, weight = grown(owners[layer], owner), grown(weights[layer], weight)
            own = used & (owner == cpg_owners.FREE)
            if int(own.sum()) != task.values[layer].numel():
                rule, got = f"must have {int(own.sum())} values of {layer}", task.values[layer].numel()
                raise FileError(f"task {task.name}", rule, got=got, fix=task_file.FIX)
            owner[own] = task.number
            weight[own] = task.values[layer]
            owners[layer], weights[layer] = owner, weight
    return weights, owners


def at_width_of(task: TaskFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leading slices of shared tensors at a task's own width."""
    return {layer: leading(tensors[layer], shape) for layer, shape in task.shapes.items()}
