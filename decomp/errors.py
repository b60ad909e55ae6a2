"""Exception classes with one-line messages, and near-miss suggestions for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

Choice = TypeVar("Choice", bound=str)


class DecompError(Exception):
    """A mistake or a limit, in one line.

    Parameters
    ----------
    thing : object
        Name of the layer, file or option.
    rule : str
        The rule that is broken, as a statement (``"rank must be in 1..384 (c·kh)"``).
    got : object, optional
        The value given.
    fix : str, optional
        How to repair it.

    Examples
    --------
    >>> str(DecompError("conv3_1", "rank must be in 1..384 (c·kh)", got=512, fix="lower it in plan.json"))
    'conv3_1: rank must be in 1..384 (c·kh), got 512; lower it in plan.json.'
    """

    exit_code = 1

    def __init__(self, thing: object, rule: object, got: object = None, fix: str | None = None) -> None:
        self.thing, self.rule, self.got, self.fix = str(thing), str(rule), got, fix
        line = f"{thing}: {rule}"
        if got is not None:
            line += f", got {got}"
        if fix is not None:
            line += f"; {fix}"
        super().__init__(" ".join(line.split()) + ".")

    def reword(self, change: Callable[[str], str]) -> None:
        """Apply a function of texts to the parts of the message, in place."""
        got = None if self.got is None else change(str(self.got))
        fix = None if self.fix is None else change(self.fix)
        DecompError.__init__(self, change(self.thing), change(self.rule), got, fix)


class UsageError(DecompError):
    """A command, option or argument that is not valid (exit code 2)."""

    exit_code = 2


class NumericalError(DecompError):
    """A layer problem without a solution: NaN or Inf, or no factorisation at any allowed ridge."""


class TraceError(DecompError):
    """A network that cannot be traced or whose structure is not supported."""


class FileError(DecompError):
    """A file that is missing, broken, foreign, of a newer format, or made from other inputs."""


class MissingError(FileError):
    """A file or folder that was named and does not exist (exit code 2, as for any name that cannot be meant)."""

    exit_code = 2


class WeightsError(DecompError):
    """Weights that do not fit the model."""


class TargetError(DecompError):
    """A speed-up, cost or plan that cannot be reached or does not fit the model."""


def kind_of(value: object) -> str:
    """The kind of a value in words: ``'a whole number'``, ``'a list'``, ``'an OrderedDict'``."""
    named = {"int": "a whole number", "float": "a number", "NoneType": "None"}
    name = type(value).__name__
    return named.get(name, f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}")


def near_miss(word: object, possible: Iterable[str]) -> str | None:
    """``'did you mean X'`` for the entry closest to `word`, or None when no entry is close.

    An entry with which the word begins (``l1`` of ``L1norm``) comes before entries that only share letters with it, and
    behind those that are nearly the word (``skip_bad`` for ``skipbad``, not ``skip``).
    """
    entries, text = list(possible), str(word)
    begins = [entry for entry in entries if len(entry) > 1 and text.lower().startswith(entry.lower())]
    close = difflib.get_close_matches(text, entries, n=1, cutoff=0.5)
    if begins and not difflib.get_close_matches(text, close, cutoff=0.8):
        close = [max(begins, key=len)]
    return f"did you mean {close[0]}" if close else None


def check_choice(thing: str, value: object, possible: Iterable[Choice]) -> Choice:
    """The entry of `possible` that equals `value`.

    Raises
    ------
    UsageError
        There is none; lists the entries and suggests the closest one.
    """
    entries = list(possible)
    for entry in entries:
        if value == entry:
            return entry
    raise UsageError(
        thing, f"must be one of {', '.join(entries)}", got=repr(value), fix=near_miss(str(value).lower(), entries)
    )
