"""What a person sees while a stage works, and what log.jsonl keeps of it."""

import json
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm


class Reporter:
    """Tells each step in one line and keeps it in a log file.

    Parameters
    ----------
    run_log_path : str or Path, optional
        log.jsonl of a run. Steps told before its folder is there wait and are written once it is, so that a stage
        that is refused leaves nothing behind.
    quiet : bool
        Show nothing; the log is written all the same.
    stream : text stream, optional
        Where lines and progress bars go; standard error by default, so that results can be piped on.
    needs : str or Path, optional
        Write the log only once this file exists (a run's run.json), so that nothing lands in a folder that
        turns out to be no run directory.
    command : str, optional
        The command that was given, kept with the begin of each stage: what to give again when it is stopped.
    """

    def __init__(self, run_log_path=None, quiet=False, stream=None, needs=None, command=None):
        self.log_path = None if run_log_path is None else Path(run_log_path)
        self.quiet = quiet
        self.stream = sys.stderr if stream is None else stream
        self.command = command
        self._needs = None if needs is None else Path(needs)
        self._stage = None
        self._start = time.monotonic()
        self._waiting = []
        self._bars = 0
        self._checked_last_line = False

    @classmethod
    def for_run(cls, run, quiet=False, stream=None, command=None):
        """A reporter that logs into `run` (a RunDirectory) as soon as it is one."""
        return cls(run.log, quiet=quiet, stream=stream, needs=run.run_json, command=command)

    @property
    def seconds(self):
        """Seconds since the reporter was made."""
        return time.monotonic() - self._start

    def step(self, message, **fields):
        """Tell one step: a line for the person; the line and `fields` (plain numbers and texts) for the log."""
        self._show(message)
        self._keep(message, fields)

    def warn(self, message, **fields):
        """Tell what a person should look at, though the work goes on."""
        self._show(f"warning: {message}")
        self._keep(message, {"level": "warning", **fields})

    @contextmanager
    def stage(self, name):
        """Mark all steps of the block as those of stage `name`; the log gets its seconds and peak memory at the end.

        The memory is the most this process ever held, in MiB.
        """
        outer, self._stage, start = self._stage, name, time.monotonic()
        self._keep(f"{name} begins", {"event": "begin", "command": self.command})
        try:
            yield self
        except BaseException as error:
            seconds = round(time.monotonic() - start, 3)
            self._keep(f"{name} stopped: {str(error) or type(error).__name__}", {"event": "stop", "took": seconds})
            raise
        else:
            seconds = round(time.monotonic() - start, 3)
            self._keep(f"{name} ends", {"event": "end", "took": seconds, "peak_memory_mib": peak_memory_mib()})
        finally:
            self._stage = outer

    @contextmanager
    def progress(self, total, label, unit="it"):
        """Show how far one long step is: a bar with rate and time left on a terminal, one line at the end elsewhere.

        Parameters
        ----------
        total : int or None
            How many units there are to do.
        label, unit : str
            What is being done, to what (``'images'``).

        Yields
        ------
        progress : Progress
            To be told with ``.update(n)``.
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

    def _show(self, message):
        if self.quiet:
            return
        if self._bars:
            tqdm.write(message, file=self.stream)
        else:
            self.stream.write(message + "\n")
            self.stream.flush()

    def _keep(self, message, fields):
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
            self._append("".join(line + "\n" for line in self._waiting))
        except OSError as error:
            # The work is worth more than its log; what cannot be written at all, the next commit says as an error.
            self._show(f"warning: {self.log_path}: no further steps are logged ({error.strerror})")
            self.log_path = None
        self._waiting.clear()

    def _append(self, text):
        with open(self.log_path, "ab+") as file:
            if not self._checked_last_line and file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a killed process left half a line
                    text = "\n" + text
            file.write(text.encode("utf-8", errors="replace"))
        self._checked_last_line = True


class Progress:
    """How far one step is; made by `Reporter.progress`."""

    def __init__(self, bar=None):
        self.done = 0
        self._bar = bar

    def update(self, n=1):
        """`n` more units are done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)

    def note(self, **values):
        """Show a few current values (a loss) beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)


def format_seconds(seconds):
    """A duration as a person says it: ``'0.4 s'``, ``'12 s'``, ``'3 min 20 s'``, ``'2 h 5 min'``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def peak_memory_mib():
    """The most memory this process has held so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _plain(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
