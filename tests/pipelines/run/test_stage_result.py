"""Results of stages: the same three fields, equal when these are."""

from dataclasses import fields

import pytest

from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.stage_result import StageResult
from decomp.pipelines.stages.decompose import DecomposeResult
from decomp.pipelines.stages.freeze import FreezeResult
from decomp.pipelines.stages.prune import PruneResult


@pytest.mark.parametrize("kind", [FreezeResult, DecomposeResult, PruneResult])
def test_a_result_has_the_shared_fields_and_no_others_and_its_facts_are_left_out_of_its_text(kind):
    made = kind(RunDirectory("r"), True, {"macs_after": 12345})
    assert isinstance(made, StageResult) and [entry.name for entry in fields(made)] == ["run", "done_before", "facts"]
    assert "12345" not in repr(made) and kind(RunDirectory("r"), False).facts == {}
