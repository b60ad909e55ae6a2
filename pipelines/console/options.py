"""What the texts of options mean: each function turns one text into a value or says what is possible instead."""

import dataclasses
import difflib
import json
import math
import os
import re
import sys

from decomp.errors import UsageError

STEPS = ("spatial", "channel", "prune")
SELECTORS = ("best", "lasso", "backward", "l1", "max-response", "first-k", "random")
ALLOCATIONS = ("joint", "energy", "uniform")
COSTS = ("macs", "params", "latency")
#: Those of decomp.cost.latency_model, which takes PyTorch to import.
LAYOUTS = ("contiguous", "channels-last")
FORMATS = ("pt2", "onnx", "torchscript", "state-dict", "safetensors")
NETWORKS = ("finetuned", "decomposed", "original")


def program():
    """What a person typed to come here, for lines that name a command."""
    return "python cli.py" if os.path.basename(sys.argv[0] or "") == "cli.py" else "decomp"


def speedup(text):
    """``'4x'``, ``'4'`` or ``'2.5x'`` as a number above 1: how many times fewer multiply-accumulates."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*[x×]?\s*", str(text), re.IGNORECASE)
    number = float(match[1]) if match else math.nan
    if not 1 < number < math.inf:
        fix = "say how many times cheaper, such as 4x"
        raise UsageError("--speedup", "must be a number above 1", got=repr(text), fix=fix)
    return number


def speedups(text):
    """``'2x,3x,4x'`` as a tuple of different numbers above 1, in this order."""
    found = [speedup(part) for part in str(text).split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        fix = "give for example 4x, or 2x,3x,4x"
        raise UsageError("--speedup", "must be one number, or several different ones with commas", repr(text), fix)
    return tuple(found)


def steps(text):
    """``'prune,spatial'`` as a tuple of steps in the order in which they are taken."""
    return _several("--steps", text, STEPS, "leave it out to use all three")


def formats(text):
    """``'pt2,onnx'`` as a tuple of formats."""
    return _several("--format", text, FORMATS, "leave it out for pt2 and state-dict")


def _several(name, text, possible, fix):
    """The words of a list with commas between, each once, in the order of `possible`."""
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [word for word in asked if word not in possible]
    if unknown or not asked:
        raise UsageError(
            name,
            f"must be one or more of {', '.join(possible)}, with commas between",
            got=repr(text),
            fix=guess(unknown[0], possible) if unknown else fix,
        )
    return tuple(word for word in possible if word in asked)


def memory(text):
    """``'4GiB'``, ``'4G'``, ``'512MiB'`` or ``'4GB'`` as bytes; without a unit, GiB."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?b?))?\s*", str(text), re.IGNORECASE)
    if not match or not 0 < float(match[1]) < math.inf:
        raise UsageError("--memory", "must be an amount of memory", got=repr(text), fix="say for example 4GiB")
    base = 1000 if (match[3] or "").lower() == "b" else 1024
    return int(float(match[1]) * base ** ("kmgt".index((match[2] or "g").lower()) + 1))


def device(text):
    """``auto``, ``cpu``, ``cuda`` or ``cuda:1``, as it is."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise UsageError("--device", "must be auto, cpu, cuda or cuda:N", got=repr(text))
    return text


def number(name, kind, least, above=False, most=math.inf):
    """A function that turns the text of option `name` into a finite `kind` (int or float), `least` or more.

    Parameters
    ----------
    name : str
    kind : type
    least : int
    above : bool
        `least` itself is too little.
    most : float
        Numbers up to this one.
    """

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least < value < math.inf or (value == least and not above)) or value > most:
            rule = f"must be {'a whole number' if kind is int else 'a number'} {'above' if above else 'from'} {least}"
            rule += f" and at most {most}" if most < math.inf else ""
            raise UsageError(name, rule, got=repr(text))
        return value

    return parse


# The options of decompose but for those that other commands share, as the keywords of click.option; cli.py makes them.
# ``choices`` are texts of which one is given.
DECOMPOSE = {
    "--speedup": dict(
        type=speedups, metavar="TIMES", help="How many times cheaper: 4x, 4 or 2.5x; or several, such as 2x,3x,4x: "
        "a run directory for each is made beside --run, all from the frozen points in it.",
    ),
    "--cost": dict(choices=COSTS, default="macs", help="What is to shrink: multiply-accumulates, parameters, or the "
                   "time measured on this device."),
    "--batch-size": dict(
        type=number("--batch-size", int, 1), dest="latency_batch", default=64, metavar="N", help="For --cost latency."
    ),
    "--layout": dict(
        choices=LAYOUTS, dest="latency_layout", default="contiguous", help="Of images and weights in memory, "
        "for --cost latency.",
    ),
    "--allocation": dict(choices=ALLOCATIONS, default="joint", help="How the cost is shared among the layers."),
    "--steps": dict(type=steps, metavar="LIST", default=",".join(STEPS), help="Any of these."),
    "--multiple": dict(
        type=number("--multiple", int, 1), default=8, metavar="N",
        help="Widths and ranks are multiples of N in layers of 8 N channels or more, of N/2 from 4 N, and so on.",
    ),
    "--skip": dict(
        multiple=True, metavar="LAYER", help="A layer that keeps its shape, or several by * and ?; can be given again."
    ),
    "--keep-first": dict(is_flag=True, help="The first convolution keeps its shape."),
    "--max-layer-speedup": dict(
        type=number("--max-layer-speedup", float, 1), metavar="X", help="No layer becomes cheaper by more than that."
    ),
    "--selector": dict(
        choices=SELECTORS, default="best",
        help="How the channels to keep are chosen; best takes lasso or backward, whichever fits better.",
    ),
    "--linear": dict(is_flag=True, help="Fit all layers linearly, not behind their activation."),
    "--no-refine": dict(is_flag=True, help="Leave out the joint refinement of each layer's factors."),
    "--no-recovery": dict(is_flag=True, help="Let no layer make up for the errors of what it is added to."),
    "--no-sampler": dict(is_flag=True, help="Let no layer read a subset of channels that others need too."),
    "--coupled": dict(
        type=number("--coupled", float, 0, above=True, most=1), metavar="SHARE",
        help="Keep only this share, such as 0.75, of the channels in residual streams and other spaces that several "
        "layers write or read; left whole where not given.",
    ),
    "--plan-only": dict(is_flag=True, help="Write plan.json, which can be edited, and stop there."),
    "--plan": dict(metavar="FILE", help="Use this plan; it says speed-up, steps, allocation and cost."),
    "--from": dict(dest="source_run", metavar="DIR", help="Use the frozen points of another run."),
}  # fmt: skip


def guess(word, possible):
    """``'perhaps X is meant'``, or None when nothing in `possible` is close to `word`."""
    close = difflib.get_close_matches(word, possible, n=1, cutoff=0.5)
    return f"perhaps {close[0]} is meant" if close else None


def as_json(result):
    """A stage's result as JSON text: its own plain data where it has a ``to_json``, otherwise its fields by name."""

    def plain(value):
        if hasattr(value, "to_json"):
            return value.to_json()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return value.tolist() if hasattr(value, "tolist") else str(value)

    return json.dumps(result, indent=2, ensure_ascii=False, default=plain)
