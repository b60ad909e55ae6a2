"""Entry point of the command line: the group with all of its commands."""

from . import (
    decompose_command,
    prune_commands,
    recipe_commands,
    result_commands,
    slim_commands,
    stage_commands,
    task_commands,
)
from .group import main

__all__ = [
    "decompose_command",
    "main",
    "prune_commands",
    "recipe_commands",
    "result_commands",
    "slim_commands",
    "stage_commands",
    "task_commands",
]
