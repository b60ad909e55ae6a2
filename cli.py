"""The command line: ``python cli.py`` in a checkout, ``decomp`` where it is installed.

The commands are declared in pipelines/commands/. Nothing heavy is imported before a command is known, so that
``decomp --help`` answers at once.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import decomp

if __name__ == "__main__":
    # Run as a file, this folder is first on the path, where its data/ and pipelines/ would hide a user's own.
    _folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _folder]

if TYPE_CHECKING:
    from .pipelines.commands.main import main
else:
    main = import_module(f"{decomp.__name__}.pipelines.commands.main").main

__all__ = ["main"]

if __name__ == "__main__":
    main()
