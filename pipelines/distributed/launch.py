"""Variables of torchrun in the environment, read without importing torch."""

from __future__ import annotations

import os

from decomp.errors import UsageError

#: Commands that share their work among processes.
COMMANDS = ("freeze", "decompose", "finetune", "evaluate", "train")


def n_started() -> int:
    """Number of processes that torchrun has started for this command; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def own_number() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if n_started() > 1 else 0


def n_on_this_machine() -> int:
    """Number of these processes on one machine, which share its memory and disk."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if n_started() > 1 else 1


def require_shared(command: str | None) -> None:
    """Refuse a command that every process would run alone.

    Raises
    ------
    UsageError
    """
    if n_started() > 1 and command not in COMMANDS:
        rule = f"of several processes there are {', '.join(COMMANDS)}"
        got = f"{n_started()} processes of torchrun"
        raise UsageError(command or "decomp", rule, got=got, fix="start it without torchrun")
