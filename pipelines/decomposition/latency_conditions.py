"""Conditions of a plan by latency: those under which it may be used, and what its measurement leaves uncertain."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from decomp.allocation.plan import Plan
from decomp.errors import TargetError
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import RUNTIMES, require_supported
from decomp.runtimes.timing import random_images

from ...data.formats.digests import digest_json
from ..console.options import DecomposeOptions
from ..console.reporter import Reporter
from ..measure import devices


def require_same_device(plan: Plan, device: torch.device, name: str, reporter: Reporter) -> None:
    """Refuse a plan by latency on another device than that of its measurement; warn of other conditions.

    Raises
    ------
    TargetError
        Naming both devices.
    """
    recorded = plan.latency
    name_here = devices.full_name(device)
    here = {"device": name_here, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if recorded["device"] != here["device"]:
        raise TargetError(
            name, f"was made for its latency on {recorded['device']}", got=here["device"],
            fix="use it there (see --device), or make one for this device with --cost latency --redo",
        )  # fmt: skip
    for key in ("threads", "torch"):
        if recorded[key] != here[key]:
            reporter.warn(f"{name}: latencies were measured with {key} {recorded[key]}, now {here[key]}")


def require_runs(options: DecomposeOptions, network: nn.Module, image: tuple[int, ...], device: torch.device) -> None:
    """Refuse a network that the runtime of a plan by measured time does not take, where it is exported for that.

    It takes seconds, and the survey in front of the first measurement may take an hour.

    Parameters
    ----------
    options : DecomposeOptions
    network : torch.nn.Module
    image : tuple of int
        ``(C, H, W)``.
    device : torch.device

    Raises
    ------
    DecompError
        Naming the operation that is not exported.
    """
    if options.cost != "latency" or options.runtime is None or not RUNTIMES[options.runtime].packages:
        return
    assert options.latency_layout is not None  # as cost is latency
    require_supported(options.runtime, options.latency_layout, device.type)
    made = runtime(options.runtime, options.latency_layout)
    made.prepare(network, random_images((options.latency_batch or 1, *image), device, made.layout))


def require_same_runtime(plan: Plan, asked: str, name: str) -> None:
    """Refuse a plan for another runtime than the one that is asked for.

    Raises
    ------
    TargetError
        Naming both.
    """
    made = plan.latency.get("runtime", "eager") if plan.latency else f"no runtime, but to reduce {plan.cost}"
    if made != asked:
        fix = f"leave --runtime out, or make a plan for it with --cost latency --runtime {asked}"
        raise TargetError(name, f"was made for {made}", got=f"the runtime {asked}", fix=fix)


def doubts(asked: float, latency: Mapping[str, Any]) -> list[str]:
    """What is to be said about the measurement of a plan: a target that was not met, a machine that was busy.

    Parameters
    ----------
    asked : float
        Speed-up.
    latency : dict
        Of the plan.
    """
    signs, found = latency["signs"], []
    if "slower" in latency:
        closest = f"{latency['slower']:.2f}x and {latency['faster']:.2f}x"
        found.append(
            f"{asked:g}x was not met: the closest measured are {closest}; the faster plan is taken"
            f"{'' if signs else ' (sizes between them are too coarse)'}"
        )
    if signs:
        found.append(
            f"the machine is busy ({'; '.join(signs)}), so that the measured speed-up is not certain; make the "
            "plan again when nothing else runs"
        )
    return found


def digest_of_sizes(plan: Plan, gone: Collection[str]) -> str:
    """Digest of all that decides the shape of the planned network.

    Parameters
    ----------
    plan : decomp.allocation.plan.Plan
    gone : collection of str
        Layers of blocks that are left out, whose sizes have no effect.
    """
    layers = [[item.layer, item.keep, *item.ranks] for item in plan.layers if item.layer not in gone]
    return digest_json({"layers": layers, "spaces": plan.spaces, "left_out": sorted(plan.left_out)})


def with_sizes_compared(plan: Plan, gone: Collection[str]) -> Plan:
    """A plan by latency whose record says whether its sizes are those that were measured: the plan may be edited.

    Of a record without a digest of its sizes nothing is said.

    Parameters
    ----------
    plan, gone
        As for :func:`digest_of_sizes`.
    """
    record = {key: value for key, value in plan.latency.items() if key != "other_sizes"}
    if record.get("sizes", measured := digest_of_sizes(plan, gone)) != measured:
        record["other_sizes"] = True
    return replace(plan, latency=record)
