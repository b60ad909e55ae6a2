"""Commands in several processes: one of them says why a job ended, whichever of them ends first."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from decomp.errors import DecompError

from ..distributed.launch import own_number
from .going_on import REDO, going_on

LOST = "error: processes: another one of this job has ended; {}."
STOPPED = "stopped; {}."
_OWN_COPY = f"{__name__.rsplit('.', 2)[0]}.distributed.own_copy"
#: Errors of torch.distributed where another process has gone; they are of no class of their own.
_CONNECTION = re.compile(r"gloo|nccl|connection|broken pipe|socket|peer", re.IGNORECASE)


def said_once(line: str | None, error: BaseException, args: Sequence[str], since: float) -> str | None:
    """The line to print for an error of this process; None where another process has printed its own already.

    Parameters
    ----------
    line : str or None
        Without regard to other processes.
    error : BaseException
    args : sequence of str
        The command line, for the advice on how to resume.
    since : float
        Seconds since the epoch at which the command began.
    """
    if line is None or "torch" not in sys.modules:  # not connected yet: all processes stumble over the same mistake
        return line if own_number() == 0 else None
    from ..distributed.own_copy import as_given
    from ..distributed.process_group import first_to_say

    if isinstance(error, RuntimeError) and not isinstance(error, DecompError) and _CONNECTION.search(str(error)):
        line = LOST.format(_way_on(args, since))
    elif isinstance(error, KeyboardInterrupt):
        line = STOPPED.format(_way_on(args, since))
    return as_given(line) if first_to_say() else None


def said_while_busy(args: Sequence[str], since: float) -> str | None:
    """The line of the first process after Ctrl-C while a library does not return; None in the others.

    These cannot be asked who has said it already: that exchange may be what does not return.
    """
    return STOPPED.format(_way_on(args, since)) if own_number() == 0 else None


def leave_no_copy() -> None:
    """Remove the copy of a run that this process works in, if any, before an end at once."""
    if _OWN_COPY in sys.modules:  # an import might wait for one that the interrupted thread has begun
        from ..distributed.own_copy import remove_copies

        remove_copies()


def _way_on(args: Sequence[str], since: float) -> str:
    without = "" if going_on(args, since) == list(args) else f" without {REDO}"
    return f"start the same torchrun command again{without} to go on"


def end_with_others(args: Sequence[str]) -> None:
    """Let this process end in one line when torchrun ends it, because another one has ended.

    Parameters
    ----------
    args : sequence of str
        The command line, for the advice on how to resume.
    """
    since = time.time()

    def ended(number: int, frame: FrameType | None) -> None:
        from ..distributed.process_group import first_to_say

        if first_to_say():
            sys.stderr.write(f"{LOST.format(_way_on(args, since))}\n")
            sys.stderr.flush()
        leave_no_copy()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, ended)
