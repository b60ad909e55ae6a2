"""Result of a stage that changes a run: the run, whether it was so before, and the record of the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .directory import RunDirectory


@dataclass(frozen=True)
class StageResult:
    """Fields that the results of freeze, decompose and prune share.

    Attributes
    ----------
    run : RunDirectory
    done_before : bool
        Whether the run had been through the stage with these options before.
    facts : dict
        The record of the stage in run.json.
    """

    run: RunDirectory
    done_before: bool
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
