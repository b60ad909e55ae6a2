"""Latency of a run's networks in several runtimes: interleaved rounds, the original in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from decomp.errors import DecompError
from decomp.runtimes.choice import runtime
from decomp.runtimes.names import RUNTIMES, install_command, lacking, require_installed, require_supported
from decomp.runtimes.runtime import conditions
from decomp.runtimes.timing import WARM_BELOW, latencies, random_images

from ..console.text_table import text_table
from ..console.words import counted
from .devices import full_name

#: Interquartile range over median above which a machine is too busy for latency measurements.
SPREAD = 0.3
#: Conditions under which times of different runtimes are compared.
COMPARABLE = ("device", "threads", "batch_size", "precision")


@dataclass(frozen=True)
class NetworkTime:
    """Time of one network in one runtime.

    Attributes
    ----------
    network : str
    latency_ms : float or None
        Median of the rounds; None where the runtime does not take the network.
    quartiles_ms : tuple of float or None
    speedup : float or None
        Median of the original in the same rounds over that of the network.
    reason : str
        Why there is no time.
    """

    network: str
    latency_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    speedup: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Measurement:
    """Times of the networks in one runtime and memory layout.

    Attributes
    ----------
    conditions : dict
        Those of :func:`decomp.runtimes.runtime.conditions`, and ``device``, ``batch_size``, ``rounds``, ``asked``.
    networks : dict of str to str
        Digest of each network.
    times : list of NetworkTime
    """

    conditions: dict[str, Any]
    networks: dict[str, str]
    times: list[NetworkTime]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Measurement:
        """The measurement of an entry of report.json."""
        times = [
            NetworkTime(**{**time, "quartiles_ms": time["quartiles_ms"] and tuple(time["quartiles_ms"])})
            for time in entry["times"]
        ]
        return cls(entry["conditions"], entry["networks"], times)

    def to_json(self) -> dict[str, Any]:
        """The measurement as plain data."""
        return {"conditions": self.conditions, "networks": self.networks, "times": [asdict(t) for t in self.times]}

    def matches(self, wanted: Mapping[str, Any], networks: Mapping[str, str]) -> bool:
        """Whether it was made under the same conditions, of the same networks."""
        return self.networks == networks and all(self.conditions.get(key) == value for key, value in wanted.items())

    def notes(self) -> list[str]:
        """Reasons for missing times, and the warning of a busy machine."""
        name = self.conditions["runtime"]
        notes = [f"no time of the {time.network} network in {time.reason}" for time in self.times if time.reason]
        spread = max((_spread(time) for time in self.times), default=0.0)
        if spread > SPREAD:
            where = "" if name == "eager" else f" in {name}"
            notes.append(
                f"unreliable latencies{where}: half the rounds of a network spread over {100 * spread:.0f} % of its "
                "median; measure again when nothing else runs"
            )
        return notes


def _spread(time: NetworkTime) -> float:
    if time.latency_ms is None or time.quartiles_ms is None:
        return 0.0
    return (time.quartiles_ms[1] - time.quartiles_ms[0]) / time.latency_ms


def chosen_runtimes(names: Sequence[str], device: torch.device, layout: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Runtimes with the layout that each is timed in, and what is to be said about them.

    Parameters
    ----------
    names : sequence of str
        Of :data:`decomp.runtimes.names.RUNTIMES`, or 'all' for those that are installed and run on the device.
    device : torch.device
    layout : str

    Raises
    ------
    DecompError
        A runtime that is named is not installed, or does not run on the device.
    """
    notes, kind = [], device.type
    if "all" in names:
        able = [name for name, needs in RUNTIMES.items() if kind in needs.devices]
        absent = [name for name in able if lacking(name)]
        notes += [f"not installed, so not timed: {name} ({install_command(name)})" for name in absent]
        names = [name for name in able if name not in absent]
    pairs = []
    for name in names:
        require_installed(name)
        taken = layout if layout in RUNTIMES[name].layouts else RUNTIMES[name].layouts[0]
        require_supported(name, taken, kind)
        if taken != layout:
            notes.append(f"{name} orders the numbers in memory itself: its images are {taken}")
        pairs.append((name, taken))
    return pairs, notes


def asked_conditions(name: str, layout: str, device: torch.device, batch_size: int, repeats: int) -> dict[str, Any]:
    """Conditions of a measurement that are known before it is made."""
    return {
        **conditions(runtime(name, layout), device.type), "device": full_name(device), "batch_size": batch_size,
        "asked": repeats,
    }  # fmt: skip


def measure_latency(
    networks: Mapping[str, nn.Module],
    digests: Mapping[str, str],
    shape: Sequence[int],
    device: torch.device,
    asked: Mapping[str, Any],
) -> Measurement:
    """Time networks in turn in one runtime.

    Parameters
    ----------
    networks : dict of str to Module
        The original first.
    digests : dict of str to str
    shape : sequence of int
        (C, H, W) of an image.
    device : torch.device
    asked : dict
        Of :func:`asked_conditions`.

    Returns
    -------
    Measurement
        A network that the runtime does not take has the reason in place of times.
    """
    made, layout = runtime(asked["runtime"], asked["layout"]), asked["layout"]
    batch = (asked["batch_size"], *shape)
    example = random_images(batch, device, layout)
    prepared, reasons = {}, {}
    for name, network in networks.items():
        try:
            prepared[name] = made.prepare(network, example)
        except DecompError as error:
            reasons[name] = f"{error.thing}: {error.rule}"
    times = dict[str, list[float]]()
    if prepared:
        times = latencies(prepared, batch, device, asked["asked"], layout=layout, warm_below=WARM_BELOW)
    medians = {name: statistics.median(values) for name, values in times.items()}
    found = [
        NetworkTime(
            name, medians[name], _quartiles(times[name]),
            medians["original"] / medians[name] if "original" in medians else None,
        )
        if name in medians
        else NetworkTime(name, reason=reasons[name])
        for name in networks
    ]  # fmt: skip
    rounds = max((len(values) for values in times.values()), default=0)
    return Measurement({**asked, "rounds": rounds}, dict(digests), found)


def measured_in_all(
    networks: Mapping[str, nn.Module],
    digests: Mapping[str, str],
    shape: Sequence[int],
    device: torch.device,
    asked: Sequence[Mapping[str, Any]],
    earlier: Sequence[Measurement],
    say: Callable[[str], object],
) -> tuple[list[Measurement], Measurement]:
    """Times under all conditions that are asked, measured where they are not known; the first that has all networks.

    Parameters
    ----------
    networks, digests, shape, device
        As for :func:`measure_latency`.
    asked : sequence of dict
    earlier : sequence of Measurement
        Taken where they are of the same networks, under the same conditions.
    say : callable
        Is told of each measurement before it is made.

    Raises
    ------
    DecompError
        No runtime takes all networks.
    """
    times = []
    for wanted in asked:
        known = [one for one in earlier if one.matches(wanted, digests)]
        if not known:
            where = f"{wanted['runtime']}, batch size {wanted['batch_size']}"
            say(f"measuring latency of {counted(len(networks), 'network')} in {where}")
        times.append(known[-1] if known else measure_latency(networks, digests, shape, device, wanted))
    complete = [one for one in times if not any(time.reason for time in one.times)]
    if not complete:
        reason = next(time.reason for one in times for time in one.times if time.reason)
        name, rule = reason.split(": ", 1)
        raise DecompError(name, rule, fix="name a runtime that takes all networks beside it, such as eager")
    return times, complete[0]


def comparable(measurements: Sequence[Measurement], last: Measurement) -> list[Measurement]:
    """The measurements of the same networks, or of some of them, on the same machine with the same batch size."""
    return [
        one
        for one in measurements
        if one.networks.items() <= last.networks.items()
        and all(one.conditions[key] == last.conditions[key] for key in COMPARABLE)
    ]


def latency_table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """A row for each runtime, layout and network; the header first."""
    rows = [["runtime", "layout", "network", "latency", "half of the rounds", "measured"]]
    for one in measurements:
        for time in one.times:
            cells = ["-", "-", "-"]
            if time.latency_ms is not None and time.quartiles_ms is not None:
                low, high = time.quartiles_ms
                faster = "-" if time.speedup is None else f"{time.speedup:.2f}x"
                cells = [f"{time.latency_ms:,.3g} ms", f"{low:,.3g}–{high:,.3g} ms", faster]
            rows.append([one.conditions["runtime"], one.conditions["layout"], time.network, *cells])
    return rows


def fastest_words(measurements: Sequence[Measurement]) -> str:
    """The fastest way to run each network, in one line; empty where there are no times."""
    best: dict[str, tuple[float, str]] = {}
    for one in measurements:
        where = f"{one.conditions['runtime']}, {one.conditions['layout']}"
        for time in one.times:
            if time.latency_ms is not None and time.latency_ms < best.get(time.network, (float("inf"), ""))[0]:
                best[time.network] = time.latency_ms, where
    words = [f"{network} in {where}, {milliseconds:,.3g} ms" for network, (milliseconds, where) in best.items()]
    return f"fastest of these: {'; '.join(words)}" if words else ""


def latency_lines(measurements: Sequence[Measurement]) -> list[str]:
    """Table of the runtimes and the fastest way to run each network; none for a single measurement."""
    if len(measurements) < 2:
        return []
    c = measurements[-1].conditions
    where = f"batch of {c['batch_size']}, {c['device']}, {counted(c['threads'], 'thread')}"
    note = f"each runtime and layout has rounds of its own; {where}; measured: the original's time over the network's"
    return [*text_table(latency_table(measurements), left=3).split("\n"), fastest_words(measurements), note]


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[0], quartiles[2]
