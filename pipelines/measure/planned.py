"""Conditions of evaluate that were not given: those of a plan by measured time, or the usual ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from decomp.runtimes.names import RUNTIMES, lacking

from ..console.options import EvaluateOptions
from .devices import full_name

#: Where neither the call nor a plan says them.
USUAL: dict[str, Any] = {"runtime": ("eager",), "batch_size": 64, "layout": "contiguous"}


def settled(options: EvaluateOptions, plan: Mapping[str, Any], device: torch.device) -> tuple[EvaluateOptions, str]:
    """Options with runtime, batch size and layout, and a line about those that a plan decided.

    Parameters
    ----------
    options : EvaluateOptions
        What is None was not given.
    plan : mapping
        Of :func:`decomp.pipelines.run.target.promise`; empty for a network that was not planned by time.
    device : torch.device

    Returns
    -------
    options : EvaluateOptions
        A plan for another device, or for a runtime that is not installed, decides nothing.
    line : str
        Empty where no plan has a say.
    """
    usual = {name: value for name, value in USUAL.items() if getattr(options, name) is None}
    if not plan or not usual:
        return replace(options, **usual), ""
    runtime = plan["runtime"]
    for_it = "the network was planned for its time"
    if plan["device"] not in (None, full_name(device)) or device.type not in RUNTIMES[runtime].devices:
        where = plan["device"] or " or ".join(RUNTIMES[runtime].devices)
        return replace(options, **usual), f"{for_it} on {where}; here {_words(usual)}"
    if options.runtime is None and lacking(runtime):
        return replace(options, **usual), f"{for_it} in {runtime}, which is not installed; here {_words(usual)}"
    found = {"runtime": (runtime,), "batch_size": plan["batch_size"], "layout": plan["layout"]}
    taken = {name: found[name] for name in usual}
    return replace(options, **taken), f"{for_it}: measured with the conditions of the plan, {_words(taken)}"


def _words(taken: Mapping[str, Any]) -> str:
    """The conditions as a list, such as ``'runtime eager, batch size 64'``."""
    values = {**taken, **({"runtime": ", ".join(taken["runtime"])} if "runtime" in taken else {})}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
