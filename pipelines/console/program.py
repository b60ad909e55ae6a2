"""Name of the command as it was typed, for messages that name the next command."""

import os
import sys


def program() -> str:
    """``'python cli.py'`` in a checkout without an installation, otherwise ``'decomp'``."""
    return "python cli.py" if os.path.basename(sys.argv[0] or "") == "cli.py" else "decomp"
