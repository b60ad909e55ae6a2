"""Progress lines and bars of a running stage, and its log file log.jsonl.

Whatever a stage does, a line is written at least every half minute: a thread repeats the state of the current step
where nothing else was said.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from decomp.errors import DecompError, UsageError
from decomp.time_spent import TimeSpent

from .progress import Progress, Work, format_seconds, in_notebook, make_bar, rough_time

#: Longest silence of a running stage, in seconds.
SILENCE = 30.0


class LoggedRun(Protocol):
    """Paths of a run directory that a reporter needs."""

    @property
    def log(self) -> Path:
        """The log file."""

    @property
    def run_json(self) -> Path:
        """The file that makes a folder a run directory."""


class Reporter:
    """Prints each step as one line and appends it to a log file.

    Parameters
    ----------
    run_log_path : str or Path, optional
        log.jsonl of a run. Steps before its folder exists are kept and written once it does, so that a stage that is
        refused leaves nothing behind.
    quiet : bool
        Print nothing; the log is written all the same.
    stream : text stream, optional
        Stream for lines and progress bars; standard error by default, so that results can be piped.
    needs : str or Path, optional
        Write the log only once this file exists (a run's run.json), so that nothing is written into a folder that
        is no run directory.
    command : str, optional
        The command line, recorded at the begin of each stage, for resuming a stage that was stopped.
    verbose : bool
        Print details too, such as a line for each layer; the log has them in any case.
    """

    def __init__(
        self,
        run_log_path: str | os.PathLike[str] | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        needs: str | os.PathLike[str] | None = None,
        command: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.log_path = None if run_log_path is None else Path(run_log_path)
        self.quiet = quiet
        self.stream: TextIO = sys.stderr if stream is None else stream
        self.command = command
        self.verbose = verbose
        self._needs = None if needs is None else Path(needs)
        self._stage: str | None = None
        self._start = time.monotonic()
        self._waiting: list[str] = []
        self._bars = 0
        self._checked_last_line = False
        self._phases: tuple[str, ...] = ()
        self._phase: str | None = None
        self._work: Work | None = None
        self._spent = TimeSpent()
        self._steps: list[Progress] = []
        self._shown = self._start
        self._writing = threading.RLock()

    @classmethod
    def for_run(
        cls,
        run: LoggedRun,
        quiet: bool = False,
        stream: TextIO | None = None,
        command: str | None = None,
        verbose: bool = False,
    ) -> Reporter:
        """A reporter that logs into `run` as soon as that is a run directory."""
        return cls(run.log, quiet=quiet, stream=stream, needs=run.run_json, command=command, verbose=verbose)

    def into(self, run: LoggedRun) -> Reporter:
        """A reporter that shows what this one would, and logs into another run."""
        return Reporter.for_run(run, self.quiet, self.stream, self.command, self.verbose)

    @property
    def seconds(self) -> float:
        """Seconds since the reporter was made."""
        return time.monotonic() - self._start

    def step(self, message: str, **fields: Any) -> None:
        """Print one step as a line; the log gets the line and `fields` (plain numbers and texts)."""
        self._show(message)
        self._log(message, fields)

    def detail(self, message: str, **fields: Any) -> None:
        """The same, printed only with ``--verbose``."""
        if self.verbose:
            self._show(message)
        self._log(message, fields)

    def warn(self, message: str, **fields: Any) -> None:
        """Print a warning; the work goes on."""
        self._show(f"warning: {message}")
        self._log(message, {"level": "warning", **fields})

    @contextmanager
    def stage(self, name: str, phases: Sequence[str] = ()) -> Iterator[Reporter]:
        """Log all steps of the block under stage `name`, and its duration and peak memory at the end.

        The memory is the peak of this process so far, in MiB.

        Parameters
        ----------
        name : str
        phases : sequence of str
            The parts of the stage, in order; :meth:`phase` begins one.
        """
        outer, self._stage, start = self._stage, name, time.monotonic()
        outer_phases, self._phases, self._phase, self._work = self._phases, tuple(phases), None, None
        outer_spent, self._spent = self._spent, TimeSpent()
        self._log(f"{name} begins", {"event": "begin", "command": self.command})
        self._shown, ended = time.monotonic(), threading.Event()
        speaker = threading.Thread(target=self._break_silence, args=(ended, start), daemon=True)
        if outer is None and not self.quiet:
            speaker.start()
        try:
            with self._spent.recording():
                yield self
        except BaseException as error:
            seconds = round(time.monotonic() - start, 3)
            stopped_with = {"took": seconds, "times": self._spent.rows(), **_refused(error)}
            self._log(f"{name} stopped: {str(error) or type(error).__name__}", {"event": "stop", **stopped_with})
            raise
        else:
            seconds = round(time.monotonic() - start, 3)
            ended_with = {"took": seconds, "peak_memory_mib": peak_memory_mib(), "times": self._spent.rows()}
            self._log(f"{name} ends", {"event": "end", **ended_with})
        finally:
            self._stage, self._phases, self._phase, self._work = outer, outer_phases, None, None
            self._spent = outer_spent
            ended.set()
            if speaker.is_alive():
                speaker.join()

    def phase(self, name: str) -> None:
        """Begin a part of the stage: a line with its number, and the time left of all parts where that is known."""
        self._phase = name
        self._spent.phase(name)
        left = self.time_left()
        number = f" {self._phases.index(name) + 1} of {len(self._phases)}" if name in self._phases else ""
        self.step(f"{self._stage}{number}: {name}{left}", event="phase")

    def times(self) -> list[dict[str, Any]]:
        """Time spent in the stage so far, by phase and part; see :meth:`decomp.time_spent.TimeSpent.rows`."""
        return self._spent.rows()

    def expect(self, work: Mapping[str, float]) -> None:
        """Name the long steps that follow, by the labels of their progress, with their weights.

        The time left that is shown is that of all of them.
        """
        self._work = Work(work)

    def time_left(self) -> str:
        """The time left of all expected steps as ``', about 3 min left'``; empty where it is short or not known."""
        left = None if self._work is None else self._work.seconds_left()
        return "" if left is None or left < SILENCE else f", {rough_time(left)} left"

    @contextmanager
    def progress(
        self,
        total: int | None,
        label: str,
        unit: str = "units",
        *,
        work: Sequence[float] | None = None,
        summary: bool = True,
    ) -> Iterator[Progress]:
        """Show the progress of a long step: a bar with pace and time left on a terminal and in a notebook.

        Elsewhere there is a line every half minute. At the end there is one in any case.

        Parameters
        ----------
        total : int or None
            Number of units to process.
        label, unit : str
            Name of the step, and of its units in the plural (``'images'``).
        work : sequence of float, optional
            Relative work of each unit, where it differs.
        summary : bool
            Whether a line at the end says what was done.

        Yields
        ------
        progress : Progress
            To be updated with ``.update(n)``.
        """
        progress = Progress(label, total, unit, work)
        drawn = not self.quiet and (in_notebook() or getattr(self.stream, "isatty", lambda: False)())
        if self._work is not None:
            self._work.begin(progress)
        if drawn:
            progress.draw(make_bar(progress, self._work, self.stream))
        self._bars += drawn
        self._steps.append(progress)
        try:
            yield progress
        finally:
            self._steps.remove(progress)
            self._bars -= drawn
            progress.close()
        if self._work is not None:
            self._work.end(progress)
        if not summary:
            return
        took = time.monotonic() - progress.start
        message = f"{label}: {progress.done:,} {unit} in {format_seconds(took)}"
        if took >= 1 and progress.done > 9 * took:
            message += f", {progress.done / took:,.0f} {unit}/s"
        self.step(message, event="progress", done=progress.done, took=round(took, 3))

    def _show(self, message: str) -> None:
        if self.quiet:
            return
        with self._writing:
            self._shown = time.monotonic()
            if self._bars:
                tqdm.write(message, file=self.stream)
            else:
                self.stream.write(message + "\n")
                self.stream.flush()

    def _break_silence(self, ended: threading.Event, start: float) -> None:
        """Repeat the state of the stage after each :data:`SILENCE`, until it has ended; of a bar, draw it again."""
        while not ended.wait(max(0.01, self._shown + SILENCE - time.monotonic())):
            if self._bars:
                for step in list(self._steps):
                    step.refresh()
                self._shown = time.monotonic()
            elif time.monotonic() - self._shown >= SILENCE:
                self._show(self._state(start))

    def _state(self, start: float) -> str:
        steps = list(self._steps)
        if steps:
            return steps[-1].words(self._spent.now) + self.time_left()
        phase = "" if self._phase is None else f", {self._phase}"
        return f"{self._stage}{phase}: {format_seconds(time.monotonic() - start)} so far{self.time_left()}"

    def _log(self, message: str, fields: dict[str, Any]) -> None:
        if self.log_path is None:
            return
        event = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 3),
            "stage": self._stage,
            "message": message,
            **fields,
        }
        self._waiting.append(json.dumps(event, ensure_ascii=False, default=_plain))
        if not self.log_path.parent.is_dir() or (self._needs is not None and not self._needs.exists()):
            return
        try:
            self._append(self.log_path, "".join(line + "\n" for line in self._waiting))
        except OSError as error:
            # The work goes on without its log; a disk that is full or read-only is an error of the next commit.
            self._show(f"warning: {self.log_path}: no further steps are logged ({error.strerror})")
            self.log_path = None
        self._waiting.clear()

    def _append(self, path: Path, text: str) -> None:
        with open(path, "ab+") as file:
            if not self._checked_last_line and file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # left by a killed process
                    text = "\n" + text
            file.write(text.encode("utf-8", errors="replace"))
        self._checked_last_line = True


def peak_memory_mib() -> float | None:
    """Peak memory of this process so far, in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _refused(error: BaseException) -> dict[str, bool]:
    """Marks the end of a stage that did not take its options, so that nothing advises the same command again."""
    return {"refused": True} if isinstance(error, DecompError) and error.exit_code == UsageError.exit_code else {}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
