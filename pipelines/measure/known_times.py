"""Shortest times of networks, kept between runs in the user's cache: against them a slow machine is recognised.

A virtual machine can have more than one speed. A first plan that is measured wholly in the slow one cannot know it by
itself, but by what was measured before, perhaps in another run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from torch import fx, nn

from decomp.errors import DecompError, FileError
from decomp.graph.serialise import describe_graph

from ...data.formats.digests import digest_json
from ...data.formats.json_files import read_json, write_json
from ...data.standard import cache_folder
from ..console.reporter import Reporter

KIND = "decomp known times"
#: Environment variable with the path of the file, or :data:`OFF`: nothing is read and nothing kept.
VARIABLE, OFF = "DECOMP_KNOWN_TIMES", "off"
#: Largest ratio of two median times of one network on a machine in the same state.
SAME = 1.08
#: Days after which a time that was not reached again is forgotten: the machine may have changed for good.
DAYS = 30


def known_times_path() -> Path | None:
    """The file; None where the user wants none."""
    given = os.environ.get(VARIABLE, "")
    if given == OFF:
        return None
    return Path(given).expanduser() if given else cache_folder() / "known_times.json"


def key_of(network: nn.Module, shape: Sequence[int], conditions: Mapping[str, Any]) -> str | None:
    """Digest of all that a time depends on: structure of the network (not its weights), images, conditions, processors.

    Parameters
    ----------
    network : torch.nn.Module
    shape : sequence of int
        ``(batch_size, C, H, W)``.
    conditions : dict
        Device, runtime with version, threads, layout, precision; in which kind of process.

    Returns
    -------
    str or None
        None where the structure cannot be described: nothing is kept of such a network.
    """
    if not isinstance(network, fx.GraphModule):
        return None
    try:
        graph = describe_graph(network)
    except DecompError:
        return None
    return digest_json(
        {"graph": graph, "shape": list(shape), "conditions": dict(conditions), "processors": os.cpu_count()}
    )


class KnownTimes:
    """Shortest times by key, of the user's cache and of this process.

    A file that cannot be read is said and not used; the next :meth:`save` replaces it.

    Parameters
    ----------
    reporter : decomp.pipelines.console.reporter.Reporter
    today : datetime.date, optional
    """

    def __init__(self, reporter: Reporter, today: date | None = None) -> None:
        self.path, self.reporter, self.today = known_times_path(), reporter, today or date.today()
        self._entries = self._read()
        self._new: dict[str, float] = {}

    def shortest(self, key: str | None) -> float | None:
        """Milliseconds; None where nothing is known."""
        known = [entries[key] for entries in (self._new, self._of_file()) if key in entries]
        return min(known, default=None)

    def note(self, key: str | None, milliseconds: float) -> None:
        """Keep a time if it is the shortest of this process."""
        if key is not None:
            self._new[key] = min(milliseconds, self._new.get(key, math.inf))

    def save(self) -> None:
        """Write what is new into the file, beside what other processes have written meanwhile."""
        if self.path is None or not self._new:
            return
        self._entries = self._read(quiet=True)
        before = self._of_file()
        for key, time in self._new.items():
            if time <= SAME * before.get(key, math.inf):  # seen again
                shortest = round(min(time, before.get(key, math.inf)), 5)
                self._entries[key] = {"milliseconds": shortest, "seen": self.today.isoformat()}
        try:
            write_json(self.path, {"entries": self._entries}, kind=KIND)
        except (DecompError, OSError) as error:
            self.reporter.detail(f"times of networks are not kept for other runs: {error}")

    def _of_file(self) -> dict[str, float]:
        return {key: entry["milliseconds"] for key, entry in self._entries.items()}

    def _read(self, quiet: bool = False) -> dict[str, dict[str, Any]]:
        """The entries of the file that are young enough."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            entries = read_json(self.path, kind=KIND).get("entries")
            if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
                raise FileError(self.path, "must hold times with their days", got="something else")
        except FileError as error:
            if not quiet:
                self.reporter.warn(f"known times of networks are not used: {error}")
            return {}
        age = {key: abs((self.today - date.fromisoformat(entry["seen"])).days) for key, entry in entries.items()}
        return {key: entry for key, entry in entries.items() if age[key] <= DAYS}


def _is_entry(entry: Any) -> bool:
    with suppress(KeyError, TypeError, ValueError):
        date.fromisoformat(entry["seen"])
        time = entry["milliseconds"]
        return isinstance(time, (int, float)) and not isinstance(time, bool) and time > 0
    return False
