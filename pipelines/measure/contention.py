"""Contention for the processors: the time for which the threads of this process were ready to run and had to wait.

Linux counts it for each thread. It stays near zero on a machine with free processors, and grows with whatever else
runs, so that a busy machine is recognised also where all rounds of a measurement are slowed down alike.
"""

from __future__ import annotations

import time
from pathlib import Path

#: Share of the elapsed time, all threads together, above which a measurement is disturbed.
MOST_WAITED = 0.1
_TASKS = Path("/proc/self/task")


def waited_seconds(tasks: Path = _TASKS) -> float | None:
    """Seconds for which the threads that live now have waited for a processor so far; None where it is not counted.

    Parameters
    ----------
    tasks : Path
        Folder with a folder for each thread; the second number of its ``schedstat`` are nanoseconds.
    """
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return None
    waited = 0.0
    for thread in threads:
        try:
            waited += int((thread / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            continue  # the thread has ended meanwhile, or the system does not count
    return waited


class Contention:
    """Time waited for processors over elapsed time, since it was made."""

    def __init__(self) -> None:
        self._waited, self._start = waited_seconds(), time.perf_counter()

    def share(self) -> float:
        """Of the time since then, all threads together; 0 where the system does not count it."""
        waited, elapsed = waited_seconds(), time.perf_counter() - self._start
        if waited is None or self._waited is None:
            return 0.0
        return max(0.0, waited - self._waited) / max(elapsed, 1e-9)
