"""Progress lines and bars of a running stage, and its log file log.jsonl."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TextIO

from tqdm import tqdm


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
    """

    def __init__(
        self,
        run_log_path: str | os.PathLike[str] | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        needs: str | os.PathLike[str] | None = None,
        command: str | None = None,
    ) -> None:
        self.log_path = None if run_log_path is None else Path(run_log_path)
        self.quiet = quiet
        self.stream: TextIO = sys.stderr if stream is None else stream
        self.command = command
        self._needs = None if needs is None else Path(needs)
        self._stage: str | None = None
        self._start = time.monotonic()
        self._waiting: list[str] = []
        self._bars = 0
        self._checked_last_line = False

    @classmethod
    def for_run(
        cls, run: LoggedRun, quiet: bool = False, stream: TextIO | None = None, command: str | None = None
    ) -> Reporter:
        """A reporter that logs into `run` as soon as that is a run directory."""
        return cls(run.log, quiet=quiet, stream=stream, needs=run.run_json, command=command)

    @property
    def seconds(self) -> float:
        """Seconds since the reporter was made."""
        return time.monotonic() - self._start

    def step(self, message: str, **fields: Any) -> None:
        """Print one step as a line; the log gets the line and `fields` (plain numbers and texts)."""
        self._show(message)
        self._log(message, fields)

    def warn(self, message: str, **fields: Any) -> None:
        """Print a warning; the work goes on."""
        self._show(f"warning: {message}")
        self._log(message, {"level": "warning", **fields})

    @contextmanager
    def stage(self, name: str) -> Iterator[Reporter]:
        """Log all steps of the block under stage `name`, and its duration and peak memory at the end.

        The memory is the peak of this process so far, in MiB.
        """
        outer, self._stage, start = self._stage, name, time.monotonic()
        self._log(f"{name} begins", {"event": "begin", "command": self.command})
        try:
            yield self
        except BaseException as error:
            seconds = round(time.monotonic() - start, 3)
            self._log(f"{name} stopped: {str(error) or type(error).__name__}", {"event": "stop", "took": seconds})
            raise
        else:
            seconds = round(time.monotonic() - start, 3)
            self._log(f"{name} ends", {"event": "end", "took": seconds, "peak_memory_mib": peak_memory_mib()})
        finally:
            self._stage = outer

    @contextmanager
    def progress(self, total: int | None, label: str, unit: str = "it") -> Iterator[Progress]:
        """Show the progress of a long step: a bar with rate and time left on a terminal, one line at the end elsewhere.

        Parameters
        ----------
        total : int or None
            Number of units to process.
        label, unit : str
            Name of the step, and of its units (``'images'``).

        Yields
        ------
        progress : Progress
            To be updated with ``.update(n)``.
        """
        terminal = not self.quiet and getattr(self.stream, "isatty", lambda: False)()
        bar = None
        if terminal:
            bar = tqdm(total=total, desc=label, unit=" " + unit, file=self.stream, leave=False, dynamic_ncols=True)
        progress = Progress(bar)
        self._bars += terminal
        start = time.monotonic()
        try:
            yield progress
        finally:
            self._bars -= terminal
            if bar is not None:
                bar.close()
        took = time.monotonic() - start
        message = f"{label}: {progress.done:,} {unit} in {format_seconds(took)}"
        if took >= 1 and progress.done > 9 * took:
            message += f", {progress.done / took:,.0f} {unit}/s"
        self.step(message, event="progress", done=progress.done, took=round(took, 3))

    def _show(self, message: str) -> None:
        if self.quiet:
            return
        if self._bars:
            tqdm.write(message, file=self.stream)
        else:
            self.stream.write(message + "\n")
            self.stream.flush()

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


class Progress:
    """Progress of one step; made by `Reporter.progress`."""

    def __init__(self, bar: Any = None) -> None:
        self.done = 0
        self._bar = bar

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)

    def note(self, **values: Any) -> None:
        """Show a few current values, such as a loss, beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)


def format_seconds(seconds: float) -> str:
    """A duration in words: ``'0.4 s'``, ``'12 s'``, ``'3 min 20 s'``, ``'2 h 5 min'``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def peak_memory_mib() -> float | None:
    """Peak memory of this process so far, in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
