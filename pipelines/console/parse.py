"""Values of options: each function checks a value, or the text of one, and returns it in its type.

Text from the command line and values from Python go through the same functions, so that a mistake ends in the same
line in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from decomp.errors import UsageError, check_choice, kind_of, near_miss
from decomp.runtimes.names import RUNTIMES

Number = TypeVar("Number", int, float)

#: In place of a value that a search finds.
AUTO = "auto"
PRECISIONS = (AUTO, "float32", "bfloat16")
#: Options of decompose that a plan decides.
IN_A_PLAN = ("speedup", "steps", "allocation", "cost", "multiple", "skip", "keep_first", "coupled", "leave_out")


def speedup(value: object) -> float:
    """``'4x'``, ``'4'`` or ``4.0`` as a number above 1: cost of the original over cost of the result.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, (str, bool)) and hasattr(value, "__float__"):
        value = float(value)
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*[x×]?\s*", str(value), re.IGNORECASE)
    ratio = float(match[1]) if match else math.nan
    if not 1 < ratio < math.inf:
        got = "none" if value is None else repr(value)
        raise UsageError("--speedup", "must be a number above 1", got=got, fix="give for example 4x")
    return ratio


def speedups(text: object) -> tuple[float, ...]:
    """``'2x,3x,4x'`` as a tuple of different numbers above 1, in the order given.

    Raises
    ------
    UsageError
    """
    ratios = [speedup(part) for part in str(text).split(",") if part.strip()]
    if not ratios or len(set(ratios)) < len(ratios):
        rule = "must be one number, or several different ones separated by commas"
        raise UsageError("--speedup", rule, got=repr(text), fix="give for example 4x, or 2x,3x,4x")
    return tuple(ratios)


def share_below_one(name: str) -> Callable[[object], float]:
    """A function that accepts a share in [0, 1), such as ``0.5`` or ``'50%'``, as the value of option `name`."""

    def parse(value: object) -> float:
        match = re.fullmatch(r"\s*(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*(%?)\s*", str(value))
        share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
        if isinstance(value, bool) or not 0 <= share < 1:
            # A number just above 1 is a mistake for a share of 0.1 or 1 more likely than for 1 %.
            fix = f"write {match[1]}%" if match and not match[2] and 5 <= share < 100 else "give for example 0.5 or 50%"
            raise UsageError(name, "must be a share from 0 to below 1", got=repr(value), fix=fix)
        return share

    return parse


def ratios(value: object) -> tuple[float, ...]:
    """``'0.1,0.5'``, or a sequence of shares in (0, 1), ascending and each once.

    Raises
    ------
    UsageError
    """
    given = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    shares = {share_below_one("--ratios")(part) for part in given if str(part).strip()} - {0.0}
    if not shares:
        raise UsageError(
            "--ratios", "must be shares above 0 and below 1", got=repr(value), fix="give for example 0.1,0.5"
        )
    return tuple(sorted(shares))


def loss_budget(value: object) -> float:
    """``'1%'``, ``'0.5 %'`` or ``0.01`` as a share between 0 and 1.

    Raises
    ------
    UsageError
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(value))
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if isinstance(value, bool) or not 0 < share < 1:
        fix = f"write {match[1]}%" if match and not match[2] and 1 <= share < 100 else "give for example 1% or 0.01"
        raise UsageError("--max-drop", "must be a loss above 0 % and below 100 %", got=repr(value), fix=fix)
    return share


def goal(value: object) -> float | str:
    """``'0.95'``, ``'95%'`` or ``0.95`` as an accuracy above 0 and at most 1; ``'independent'`` as it is.

    Raises
    ------
    UsageError
    """
    if value == "independent":
        return "independent"
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(value))
    share = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if isinstance(value, bool) or not 0 < share <= 1:
        fix = f"write {match[1]}%" if match and not match[2] and 10 <= share <= 100 else "give for example 0.95"
        rule = "must be an accuracy above 0 and at most 1, or independent"
        raise UsageError("--goal", rule, got="none" if value is None else repr(value), fix=fix)
    return share


def task_name(value: object) -> str:
    """The name of a task, which is part of a file's name.

    Raises
    ------
    UsageError
    """
    name = text("--name", value, "name the task")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or ".." in name:
        rule = "must be letters, digits, '-', '_' and '.', at most 64"
        raise UsageError("--name", rule, got=repr(name), fix="give for example letters-2")
    return name


def ladder(value: object) -> tuple[float, ...]:
    """``'0.1,0.5,0.9'`` or a sequence of increasing shares between 0 and 1, both excluded.

    Raises
    ------
    UsageError
    """
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, Iterable) else ()
    try:
        shares = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        shares = ()
    if not shares or not all(low < high < 1 for low, high in zip((0.0, *shares), shares)):
        rule = "must be increasing shares between 0 and 1, both excluded"
        raise UsageError("--ladder", rule, got=repr(value), fix="give for example 0.2,0.5,0.8")
    return shares


def several(name: str, value: object, possible: tuple[str, ...], fix: str, *, ordered: bool = True) -> tuple[str, ...]:
    """Entries of `possible`, from a text with commas or from a sequence, each once.

    Parameters
    ----------
    name : str
        Of the option.
    value : str or iterable of str
        Anything else is refused.
    possible : tuple of str
    fix : str
        Advice where nothing is given.
    ordered : bool
        In the order of `possible`; otherwise in the order given.

    Raises
    ------
    UsageError
    """
    given = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    words = [part.strip() if isinstance(part, str) else str(part) for part in given]
    words = [word for word in words if word != ""]
    unknown = [word for word in words if word not in possible]
    if unknown or not words:
        raise UsageError(
            name,
            f"must be one or more of {', '.join(possible)}, separated by commas",
            got=repr(value if isinstance(value, str) else ",".join(map(str, words))),
            fix=near_miss(unknown[0], possible) if unknown else fix,
        )
    return tuple(word for word in possible if word in words) if ordered else tuple(dict.fromkeys(words))


def runtimes(value: Any) -> tuple[str, ...]:
    """Runtimes of ``evaluate``, in the order given; 'all' stands for those that are installed.

    Raises
    ------
    UsageError
    """
    return several("--runtime", value, (*RUNTIMES, "all"), "leave it out for eager", ordered=False)


def dynamic(value: Any) -> tuple[str, ...]:
    """Sizes that an exported program leaves open: ``height``, ``width`` or both, or ``auto`` or ``none`` alone.

    Raises
    ------
    UsageError
    """
    words = several("--dynamic", value, ("height", "width", "auto", "none"), "leave it out for auto")
    if len(words) > 1 and words != ("height", "width"):
        rule = "must be auto, none, height, width, or height,width"
        raise UsageError("--dynamic", rule, got=repr(",".join(words)), fix="leave it out for auto")
    return words


def choice(name: str, possible: Iterable[str]) -> Callable[[object], str]:
    """A function that accepts one entry of `possible` as the value of option `name`."""
    return lambda value: check_choice(name, value, possible)


def memory(value: object) -> int:
    """``'4GiB'``, ``'4G'``, ``'512MiB'`` or ``'4GB'`` as bytes; without a unit, GiB.

    Raises
    ------
    UsageError
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?b?))?\s*", str(value), re.IGNORECASE)
    if not match or not 0 < float(match[1]) < math.inf:
        raise UsageError("--memory", "must be an amount of memory", got=repr(value), fix="say for example 4GiB")
    base = 1000 if (match[3] or "").lower() == "b" else 1024
    return int(float(match[1]) * base ** ("kmgt".index((match[2] or "g").lower()) + 1))


def memory_bytes(value: object) -> int:
    """A limit in bytes, or a text as for :func:`memory`, as bytes.

    Raises
    ------
    UsageError
    """
    return memory(value) if isinstance(value, str) else number("--memory", int, 1)(value)


def device(value: object) -> str:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    UsageError
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        raise UsageError(
            "--device",
            "must be auto, cpu, cuda or cuda:N",
            got=repr(value),
            fix=near_miss(value, ("auto", "cpu", "cuda")),
        )
    return str(value)


def number(
    name: str, kind: type[Number], least: float, above: bool = False, most: float = math.inf, word: str = ""
) -> Callable[[object], Any]:
    """A function that accepts a finite number, or the text of one, as the value of option `name`.

    Parameters
    ----------
    name : str
    kind : type
        int or float.
    least : float
    above : bool
        `least` itself is too small.
    most : float
        The largest number allowed.
    word : str
        Accepted too, as it is.
    """

    def parse(value: Any) -> Any:
        if word and isinstance(value, str) and value == word:
            return word
        try:
            parsed = kind(value)
            if isinstance(value, bool) or (not isinstance(value, str) and parsed != value):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            parsed = kind(-1) if least >= 0 else kind(least - 1)
        if not (least < parsed < math.inf or (parsed == least and not above)) or parsed > most:
            rule = f"must be {'a whole number' if kind is int else 'a number'} {'above' if above else 'from'} {least:g}"
            rule += f" and at most {most:g}" if most < math.inf else ""
            rule += f", or {word}" if word else ""
            raise UsageError(name, rule, got=repr(value))
        return parsed

    return parse


def names_or_auto(name: str, names: Callable[[object], tuple[str, ...]]) -> Callable[[object], tuple[str, ...]]:
    """A function that accepts what `names` does; `AUTO` is one of them only alone."""

    def parse(value: object) -> tuple[str, ...]:
        found = names(value)
        if AUTO in found and len(found) > 1:
            rule, fix = f"must be {AUTO} alone, or names", "leave one of them out"
            raise UsageError(name, rule, got=", ".join(found), fix=fix)
        return found

    return parse


def flag(name: str, value: object) -> bool:
    """True or False, also numpy's; anything else is refused, since most texts count as true in Python.

    Raises
    ------
    UsageError
    """
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's are named one or the other, by its version
        raise UsageError(name, "must be True or False", got=repr(value))
    return bool(value)


def text(name: str, value: object, fix: str | None = None) -> str:
    """A text that is not empty.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, str) or not value.strip():
        raise UsageError(name, "must be a text that is not empty", got=_described(value), fix=fix)
    return value


def _described(value: object) -> str:
    return repr(value) if isinstance(value, (str, int, float, type(None))) else kind_of(value)


#: Options of time measurements, with the names of their values and the values that stand for none given.
_OF_LATENCY = {
    "--runtime": ("runtime", None),
    "--layout": ("latency_layout", "contiguous"),
    "--batch-size": ("latency_batch", 64),
}


def refuse_without_latency(cost: str | None, choices: Mapping[str, Any]) -> None:
    """Refuse conditions of time measurements where no time is measured.

    Raises
    ------
    UsageError
        The cost is not latency, and a runtime, a layout or a batch size other than the default is given.
    """
    if cost == "latency":
        return
    for option, (name, default) in _OF_LATENCY.items():
        if (got := choices.get(name)) not in (None, default):
            fix = "give --cost latency too, or leave it out"
            raise UsageError(option, "decides only where the cost is latency", got=got, fix=fix)
