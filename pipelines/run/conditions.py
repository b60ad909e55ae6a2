"""Conditions of a finished stage: its recorded options compared with those of a new call.

One rule for all stages: the same options mean that nothing is to be done, other options are refused in one line.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from decomp.errors import FileError, UsageError

from ...data.image_options import IN_MEMORY
from ..console.option_words import option_words
from ..console.options import FreezeOptions, Options, StageOptions
from ..console.program import command_line, program
from .begun import compressing_command
from .directory import RunDirectory


def recorded_options(run: RunDirectory, stage: str, kind: type[Options]) -> Options | None:
    """The options that a stage of a run was called with; None where it was not called yet.

    Parameters
    ----------
    run : RunDirectory
    stage : str
        Such as ``'freeze'``.
    kind : type
        Class of the stage's options.

    Raises
    ------
    FileError
        The record is not one of such options.
    """
    record = (run.config(stage) or {}).get("asked")
    if record is None:
        return None
    try:
        return kind.from_json(record)
    except (TypeError, AttributeError, UsageError) as error:
        fix = "start a new run directory with freeze"
        raise FileError(run.run_json, f"the options of {stage} cannot be read", got=str(error), fix=fix) from error


def freeze_options(run: RunDirectory) -> FreezeOptions:
    """The options of ``freeze`` in a run that is frozen.

    Raises
    ------
    UsageError
        It is not.
    """
    options = recorded_options(run, "freeze", FreezeOptions)
    if options is None:
        raise UsageError(run.path, "holds no frozen points", fix=f"run freeze --run {run.path} first")
    return options


def label_options(run: RunDirectory) -> str:
    """Options without which ``finetune`` is refused in a run: ``'--labels none'`` where labels cannot be used, or none.

    Labels are used where the source of the images has some, can be opened again, and the network's only output is
    class scores.
    """
    record = run.config("freeze") or {}
    labelled = (record.get("source") or {}).get("labelled", True)
    in_memory = str((record.get("asked") or {}).get("data")) == IN_MEMORY
    kinds = [entry.get("kind") for entry in record.get("outputs") or [{"kind": "scores"}]]
    return "" if labelled and not in_memory and kinds == ["scores"] else "--labels none"


def pruned_words(record: Mapping[str, Any]) -> str:
    """Words for the target of a pruning, such as ``'by l1 at 2x'``, and for the share that went where it was less."""
    asked, share = record["asked"], record.get("share")
    if asked.get("keep"):
        return "by a given plan"
    if asked.get("speedup"):
        return f"by {asked['criterion']} at {asked['speedup']:g}x"
    ratio, how = asked.get("ratio") or 0, f"by {asked['criterion']}"
    if share is not None and share < ratio - 0.01:
        return f"{how}, {100 * share:.0f} % of the channels ({100 * ratio:g} % asked for)"
    return f"{how}, {100 * ratio:g} % of the channels"


def require_not_decomposed(run: RunDirectory) -> None:
    """Refuse to prune a run that is decomposed: a run holds one network that is made from the original.

    Raises
    ------
    UsageError
    """
    if run.config("decompose") is not None:
        rule = "is decomposed already, and a run is either decomposed or pruned"
        fix = f"prune in another run: {prune_elsewhere(run)}"
        if _in_memory(run):
            fix = "call decomp.prune(model, images, speedup=2) with the network in memory"
        raise UsageError(run.path, rule, fix=fix)


def prune_elsewhere(run: RunDirectory) -> str:
    """The command that prunes the original of a run in another run."""
    return _with_names(run, f"{program()} prune --model MODEL --data DATA --run OTHER --speedup 2x")


def require_not_pruned(run: RunDirectory) -> None:
    """Refuse to decompose a run that is pruned.

    Raises
    ------
    UsageError
    """
    if run.config("prune") is not None:
        command = f"{program()} freeze --model {run.pruned_dir} --data DATA --run OTHER"
        rule = "is pruned already, and a run is either decomposed or pruned"
        fix = f"to decompose what pruning left, begin with {_with_names(run, command)}"
        if _in_memory(run):
            fix = f"to decompose what pruning left, call decomp.compress(decomp.load({str(run.pruned_dir)!r}), images)"
        fix += f"; to decompose the original, give --run OTHER --from {run.path}"
        raise UsageError(run.path, rule, fix=fix)


def _in_memory(run: RunDirectory) -> bool:
    """Whether the images of a run, and so its network, were given in Python: no command can name them."""
    return freeze_options(run).data == IN_MEMORY


def _with_names(run: RunDirectory, command: str) -> str:
    """A command with the model and the images of a run in it, and the options that they were frozen with."""
    asked = freeze_options(run)
    inside = asked.weights is not None and (run.path / asked.weights).is_file()  # trained in the run itself
    model = shlex.quote(asked.model)
    if asked.weights is not None:
        model += f" --weights {shlex.quote(str(run.path / asked.weights if inside else asked.weights))}"
    options = [*_image_words(asked), *(_part_words(asked) if " MODEL" in command else [])]
    data = " ".join([shlex.quote(asked.data), *options])
    return command.replace(" MODEL", f" {model}").replace(" DATA", f" {data}")


def _image_words(asked: FreezeOptions) -> Iterator[str]:
    """Options of the images that are not the defaults: other images or transforms would change what is measured."""
    for name, option, joint in (
        ("input_size", "--input-size", "x"), ("mean", "--mean", ","), ("std", "--std", ","),
        ("resize", "--resize", "x"), ("crop", "--crop", "x"), ("transforms", "--transforms", ""),
        ("outputs", "--outputs", ""), ("n_images", "--images", ""), ("n_points", "--points", ""),
        ("seed", "--seed", ""),
    ):  # fmt: skip
        value = getattr(asked, name)
        if value != getattr(FreezeOptions, name):
            word = joint.join(f"{part:g}" for part in value) if isinstance(value, (tuple, list)) else str(value)
            yield f"{option} {shlex.quote(word)}"
    yield from ["--no-flip"] if not asked.flip else []
    yield from ["--skip-bad"] if asked.skip_bad else []


def _part_words(asked: FreezeOptions) -> Iterator[str]:
    if asked.part is not None:
        yield f"--module {shlex.quote(asked.part)}"
    yield from (f"--leaf {shlex.quote(leaf)}" for leaf in asked.leaves)


def no_compressed_network(run: RunDirectory) -> FileError:
    """The error for a run without a decomposed or pruned network, with the command that makes one or continues."""
    for stage, words in {"decompose": "decomposition", "prune": "pruning"}.items():
        if run.config(stage) is not None:
            return FileError(run.path, f"the {words} is not finished", fix=f"go on with `{compressing_command(run)}`")
    fix = f"run `{compressing_command(run)}`, or `{command_line('prune', run, '--speedup 2x')}`"
    return FileError(run.path, "there is no decomposed network yet", fix=fix)


def require_same_options(
    run: RunDirectory,
    done: str,
    options: StageOptions,
    record: Mapping[str, Any],
    fix: str,
    shown: Callable[[str, Any], Any] | None = None,
) -> None:
    """Refuse options that are not those of an earlier call, with the values of both.

    Parameters
    ----------
    run : RunDirectory
    done : str
        Past participle for the message, such as ``'decomposed'``.
    options : StageOptions
        Of the new call.
    record : mapping
        What run.json keeps of the earlier call under ``asked``.
    fix : str
        How to have both, or to replace the earlier result.
    shown : callable, optional
        ``shown(name, value)`` gives the value as the message shows it.

    Raises
    ------
    UsageError
    """
    differences = options.differences(record)
    if not differences:
        return
    show = shown or (lambda name, value: value)
    then = ", ".join(option_words(name, show(name, before)) for name, before, _ in differences)
    now = ", ".join(option_words(name, show(name, value)) for name, _, value in differences)
    raise UsageError(run.path, f"was {done} with {then}", got=now, fix=fix)
