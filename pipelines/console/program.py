"""Name of the command as it was typed, for messages that name the next command."""

import os
import shlex
import sys


def program() -> str:
    """``'python cli.py'``, with the path that was typed, without an installation, otherwise ``'decomp'``."""
    started = sys.argv[0] or ""
    return f"python {shlex.quote(started)}" if os.path.basename(started) == "cli.py" else "decomp"


def command_line(command: str, run: object, options: str = "") -> str:
    """A command on a run as it can be typed: ``'decomp finetune --run runs/vgg --labels none'``."""
    return f"{program()} {command} --run {shlex.quote(str(run))} {options}".rstrip()
