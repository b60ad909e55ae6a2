"""Typed options of the stages: frozen dataclasses, checked when they are made.

One object is the argument of a stage, its record in run.json (``to_json``), and what a repeated call is compared with
(``differences``). The command line and the Python API both build it, so a mistake ends in the same line in both.
Nothing here imports torch: ``--help`` reads its defaults from these classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from decomp.allocation.plan import ALLOCATIONS, COSTS, STEPS
from decomp.criteria.names import AS_SELECTORS
from decomp.errors import UsageError
from decomp.runtimes.names import LAYOUTS as LAYOUTS
from decomp.runtimes.names import RUNTIMES
from decomp.schemes.repr_settings import METHODS, NEXT_SLICES, ORDERS, SCALES, ReprSettings
from decomp.solvers.selectors import SELECTORS

from ...data import image_options
from ...data.image_options import ImageOptions
from . import parse

FORMATS = ("pt2", "onnx", "torchscript", "state-dict", "safetensors")
#: With the one that is calibrated on the images of a run.
RUN_FORMATS = (*FORMATS, "onnx-int8")
SCHEDULES = ("cosine", "constant")
TRAIN_SCHEDULES = (*SCHEDULES, "milestones")
OUTPUTS = ("scores", "values")
#: Values that a new task finds in weights that earlier tasks have released.
FREE_WEIGHTS = ("zero", "kaiming")
TRAINING_SCHEMES = ("standard", "repr")
#: Settings of the scheme repr: the option of the command line by the field of the settings.
REPR_OPTIONS = {
    "s1": "--s1", "s2": "--s2", "drop": "--drop", "cycles": "--cycles", "min_keep": "--min-keep", "first": "--first",
    "coupled": "--coupled", "order": "--order", "method": "--reinit", "scale": "--scale", "next_slice": "--next",
}  # fmt: skip
#: Fewer images or points cannot be fitted.
LEAST_IMAGES, LEAST_POINTS = 10, 1

Options = TypeVar("Options", bound="StageOptions")


def checked_field(check: Callable[[object], Any], default: Any = None, optional: bool = False) -> Any:
    """A field of options with its check; None passes unchecked where the field is optional."""

    def checked(value: object) -> Any:
        return None if optional and value is None else check(value)

    return field(default=default, metadata={"check": checked})


def _needed(check: Callable[[object], Any]) -> Any:
    return field(metadata={"check": check})


def flag_field(name: str, default: bool) -> Any:
    return checked_field(lambda value: parse.flag(name, value), default)


@dataclass(frozen=True)
class StageOptions:
    """Base of the options of one stage: every field is checked and converted when the object is made."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            if "check" in entry.metadata and entry.name not in self._taken_as_given():
                object.__setattr__(self, entry.name, entry.metadata["check"](getattr(self, entry.name)))

    def _taken_as_given(self) -> tuple[str, ...]:
        """Names of fields that were checked elsewhere."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """The options as plain data, as run.json keeps them under ``asked``."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls: type[Options], record: Mapping[str, Any]) -> Options:
        """Options out of a record; what an earlier version did not write takes its default."""
        known = {entry.name for entry in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})

    def differences(self, record: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """(name, recorded value, value now) of each option that is not as in an earlier record.

        An option that the record lacks counts as its default, and values that mean the same count as equal.
        """
        now = self.to_json()
        try:
            record = type(self).from_json(record).to_json()
        except (TypeError, AttributeError, UsageError):
            pass  # of another form: every value that is not the same is told
        return [(name, record.get(name), value) for name, value in now.items() if record.get(name) != value]


def name_list(name: str) -> Callable[[object], tuple[str, ...]]:
    """Check of a field that holds several names; a text is one."""

    def check(value: object) -> tuple[str, ...]:
        names: Iterable[object] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
        names = sorted(names, key=str) if isinstance(names, (set, frozenset)) else names
        return tuple(parse.text(name, entry) for entry in names)

    return check


_MODEL = "give a name such as zoo:vgg-digits; decomp.compress(model, images) takes a module in memory"


@dataclass(frozen=True)
class FreezeOptions(StageOptions):
    """Options of ``freeze``.

    Attributes
    ----------
    model, weights, data : str
        As :func:`decomp.data.models.load_model` and :func:`decomp.data.sources.open_source` read them.
    input_size : str or sequence of int, optional
    n_images, n_points : int
        Calibration images, and sampled output positions per image.
    mix : bool
        Record mixtures of two images too, where there are few.
    seed : int
    skip_bad : bool
        Leave out images that cannot be read.
    part : str, optional
        Path of the submodule that is treated.
    leaves : tuple of str
        Paths of modules that are not traced.
    mean, std, resize, crop, flip, transforms
        Transforms of the images, see :class:`decomp.data.image_options.ImageOptions`.
    outputs : {'scores', 'values'}, optional
        Meaning of outputs of two axes.
    """

    model: str = _needed(lambda value: parse.text("--model", value, _MODEL))
    weights: str | None = checked_field(lambda value: parse.text("--weights", value), None, optional=True)
    data: str = checked_field(lambda value: parse.text("--data", value, "give for example digits or imagefolder:DIR"))
    input_size: Any = None
    n_images: int = checked_field(parse.number("--images", int, LEAST_IMAGES), 5000)
    n_points: int = checked_field(parse.number("--points", int, LEAST_POINTS), 10)
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)
    skip_bad: bool = flag_field("--skip-bad", False)
    part: str | None = checked_field(lambda value: parse.text("--module", value), None, optional=True)
    leaves: tuple[str, ...] = checked_field(name_list("--leaf"), ())
    outputs: str | None = checked_field(parse.choice("--outputs", OUTPUTS), None, optional=True)
    mean: tuple[float, ...] | None = checked_field(lambda v: image_options.numbers("--mean", v), None, optional=True)
    std: tuple[float, ...] | None = checked_field(lambda v: image_options.numbers("--std", v), None, optional=True)
    resize: tuple[int, ...] | None = checked_field(lambda v: image_options.sides("--resize", v), None, optional=True)
    crop: tuple[int, ...] | None = checked_field(lambda v: image_options.sides("--crop", v), None, optional=True)
    flip: bool = flag_field("flip", True)
    transforms: str | None = checked_field(lambda v: parse.text("--transforms", v), None, optional=True)
    mix: bool = flag_field("mix", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.image_options

    @property
    def image_options(self) -> ImageOptions:
        """The transforms of the images; checked together."""
        return ImageOptions(self.mean, self.std, self.resize, self.crop, self.flip, self.transforms)


class _Measured(Protocol):
    """Options of a stage that may measure latency."""

    @property
    def runtime(self) -> str | None: ...

    @property
    def latency_layout(self) -> str | None: ...


def settle_latency(options: _Measured, measured: bool) -> None:
    """Settings of the measurement, where the options lead to one; otherwise None, so that no record differs by them."""
    if not measured:
        for name in ("latency_batch", "latency_layout", "runtime"):
            object.__setattr__(options, name, None)
        return
    object.__setattr__(options, "runtime", options.runtime or "eager")
    assert options.runtime is not None and options.latency_layout is not None
    parse.choice("--layout", RUNTIMES[options.runtime].layouts)(options.latency_layout)


@dataclass(frozen=True)
class DecomposeOptions(StageOptions):
    """Options of ``decompose`` that decide its result; see :func:`decomp.pipelines.stages.decompose.decompose`.

    ``plan`` is the digest of a plan that was given as a file; speed-up, steps, allocation, cost and multiple are then
    those of the plan. ``latency_batch``, ``latency_layout`` and ``runtime`` are None unless ``cost`` is 'latency'.
    """

    speedup: float = _needed(parse.speedup)
    steps: tuple[str, ...] = checked_field(
        lambda value: parse.several("--steps", value, STEPS, "leave it out to use all three"), STEPS
    )
    selector: str = checked_field(parse.choice("--selector", (*SELECTORS, *AS_SELECTORS)), "best")
    allocation: str = checked_field(parse.choice("--allocation", ALLOCATIONS), "joint")
    cost: str = checked_field(parse.choice("--cost", COSTS), "macs")
    multiple: int = checked_field(parse.number("--multiple", int, 1), 8)
    skip: tuple[str, ...] = checked_field(name_list("--skip"), ())
    keep_first: bool = flag_field("--keep-first", False)
    max_layer_speedup: float | None = checked_field(parse.number("--max-layer-speedup", float, 1), None, optional=True)
    latency_batch: int | None = checked_field(parse.number("--batch-size", int, 1), 64, optional=True)
    latency_layout: str | None = checked_field(parse.choice("--layout", LAYOUTS), "contiguous", optional=True)
    runtime: str | None = checked_field(parse.choice("--runtime", tuple(RUNTIMES)), None, optional=True)
    plan: str | None = None
    activation_aware: bool = flag_field("activation_aware", True)
    refine: bool = flag_field("refine", True)
    recovery: bool = flag_field("recovery", True)
    sampler: bool = flag_field("sampler", True)
    refine_blocks: bool = flag_field("--refine-blocks", True)
    coupled: float | str | None = checked_field(
        parse.number("--coupled", float, 0, above=True, most=1, word=parse.AUTO), None, optional=True
    )
    leave_out: tuple[str, ...] = checked_field(parse.names_or_auto("--leave-out", name_list("--leave-out")), ())

    def _taken_as_given(self) -> tuple[str, ...]:
        # Those of a plan from a file, which is checked where it is read.
        return () if self.plan is None else ("speedup", "steps", "allocation", "multiple")

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_latency(self, self.cost == "latency" and self.plan is None)


@dataclass(frozen=True)
class TrainOptions(StageOptions):
    """Options of ``train``; where a number is None, the zoo's recipe of the network, or the stage's default, holds."""

    model: str = _needed(lambda value: parse.text("--model", value))
    data: str | None = checked_field(lambda value: parse.text("--data", value), None, optional=True)
    epochs: int | None = checked_field(parse.number("--epochs", int, 1), None, optional=True)
    learning_rate: float | None = checked_field(parse.number("--lr", float, 0, above=True), None, optional=True)
    batch_size: int | None = checked_field(parse.number("--batch-size", int, 1), None, optional=True)
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)
    schedule: str | None = checked_field(parse.choice("--schedule", TRAIN_SCHEDULES), None, optional=True)
    sparsity: float | None = checked_field(parse.number("--sparsity", float, 0, above=True), None, optional=True)
    proximal: bool = flag_field("--proximal", False)
    scheme: str = checked_field(parse.choice("--scheme", TRAINING_SCHEMES), "standard")
    s1: int | None = checked_field(parse.number("--s1", int, 1), None, optional=True)
    s2: int | None = checked_field(parse.number("--s2", int, 1), None, optional=True)
    drop: float | None = checked_field(parse.number("--drop", float, 0, above=True), None, optional=True)
    cycles: int | None = checked_field(parse.number("--cycles", int, 1), None, optional=True)
    min_keep: float | None = checked_field(parse.number("--min-keep", float, 0), None, optional=True)
    first: bool | None = checked_field(lambda value: parse.flag("--first", value), None, optional=True)
    coupled: bool | None = checked_field(lambda value: parse.flag("--coupled", value), None, optional=True)
    order: str | None = checked_field(parse.choice("--order", ORDERS), None, optional=True)
    method: str | None = checked_field(parse.choice("--reinit", METHODS), None, optional=True)
    scale: str | None = checked_field(parse.choice("--scale", SCALES), None, optional=True)
    next_slice: str | None = checked_field(parse.choice("--next", NEXT_SLICES), None, optional=True)
    precision: str = checked_field(parse.choice("--precision", parse.PRECISIONS), "auto")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proximal and self.sparsity is None:
            raise UsageError("--proximal", "is a way to apply a sparsity", got="none", fix="give --sparsity 1e-4")
        if self.sparsity is not None and self.scheme != "standard":
            rule = "is a training of its own"
            raise UsageError("--sparsity", rule, got=f"the scheme {self.scheme} beside it", fix="leave one of them out")
        if self.scheme != "repr":
            for name, option in REPR_OPTIONS.items():
                if getattr(self, name) is not None:
                    rule = f"has no effect with the scheme {self.scheme}"
                    raise UsageError(option, rule, fix="leave it out, or give --scheme repr")

    def repr_settings(self) -> ReprSettings | None:
        """Settings of the scheme repr, for options whose epochs are known; None for another scheme.

        Raises
        ------
        UsageError
            A value is out of its range, or not even one cycle fits into the epochs.
        """
        if self.scheme != "repr":
            return None
        given = {name: getattr(self, name) for name in REPR_OPTIONS if getattr(self, name) is not None}
        assert self.epochs is not None
        try:
            return ReprSettings(epochs=self.epochs, seed=self.seed, **given)
        except UsageError as error:
            option = REPR_OPTIONS.get(error.thing, f"--{error.thing}")
            raise UsageError(option, error.rule, error.got, error.fix) from error


@dataclass(frozen=True)
class EvaluateOptions(StageOptions):
    """Options of ``evaluate``; None where :func:`decomp.pipelines.measure.planned.settled` decides."""

    batch_size: int | None = checked_field(parse.number("--batch-size", int, 1), None, optional=True)
    runtime: tuple[str, ...] | None = checked_field(parse.runtimes, None, optional=True)
    layout: str | None = checked_field(parse.choice("--layout", LAYOUTS), None, optional=True)
    repeats: int = checked_field(parse.number("--repeats", int, 1), 30)


@dataclass(frozen=True)
class TaskRunOptions(StageOptions):
    """Options of a run that learns tasks, given with its first task."""

    model: str = _needed(lambda value: parse.text("--model", value, "give a name such as zoo:vgg-tasks"))
    weights: str | None = checked_field(lambda value: parse.text("--weights", value), None, optional=True)
    input_size: Any = None
    seed: int = checked_field(parse.number("--seed", int, -(2**63)), 0)


@dataclass(frozen=True)
class TaskOptions(StageOptions):
    """Options of ``tasks add`` for one task; see :func:`decomp.pipelines.stages.tasks.add`."""

    name: str = _needed(parse.task_name)
    data: str = _needed(lambda value: parse.text("--data", value, "give for example npz:task.npz"))
    goal: float | str = _needed(parse.goal)
    classes: int | None = checked_field(parse.number("--classes", int, 2), None, optional=True)
    epochs: int = checked_field(parse.number("--epochs", int, 1), 100)
    prune_epochs: int = checked_field(parse.number("--prune-epochs", int, 1), 20)
    retrain_epochs: int = checked_field(parse.number("--retrain-epochs", int, 1), 30)
    batch_size: int = checked_field(parse.number("--batch-size", int, 1), 32)
    learning_rate: float = checked_field(parse.number("--lr", float, 0, above=True), 0.01)
    prune_learning_rate: float = checked_field(parse.number("--prune-lr", float, 0, above=True), 0.001)
    weight_decay: float = checked_field(parse.number("--weight-decay", float, 0), 4e-5)
    width_step: float = checked_field(parse.number("--width-step", float, 0, above=True), 0.5)
    max_width: float = checked_field(parse.number("--max-width", float, 1, most=100), 1.5)
    planned: int | None = checked_field(parse.number("--planned", int, 1, most=255), None, optional=True)
    strict: bool = flag_field("--strict", False)
    train_gate: float = checked_field(parse.number("--train-gate", float, 0, most=1), 0.0)
    ladder: tuple[float, ...] = checked_field(parse.ladder, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))
    free_weights: str = checked_field(parse.choice("--free-weights", FREE_WEIGHTS), "zero")
    picking: bool = flag_field("--picking", True)


def formats(value: str | Sequence[str]) -> tuple[str, ...]:
    """Formats of ``export``, in the order given.

    Raises
    ------
    UsageError
    """
    return parse.several("--format", value, FORMATS, "leave it out for pt2 and state-dict", ordered=False)


def run_formats(value: str | Sequence[str]) -> tuple[str, ...]:
    """Formats of ``export`` for a network of a run, in the order given.

    Raises
    ------
    UsageError
    """
    return parse.several("--format", value, RUN_FORMATS, "leave it out for pt2 and state-dict", ordered=False)
