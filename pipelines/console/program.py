"""Name of the command as it was typed, for messages that name the next command."""

import os
import shlex
import sys


def program() -> str:
    """``'python cli.py'`` in a checkout without an installation, otherwise ``'decomp'``."""
    return "python cli.py" if os.path.basename(sys.argv[0] or "") == "cli.py" else "decomp"


def command_line(command: str, run: object, options: str = "") -> str:
    """A command on a run as it can be typed: ``'decomp finetune --run runs/vgg --labels none'``."""
    return f"{program()} {command} --run {shlex.quote(str(run))} {options}".rstrip()
