from types import SimpleNamespace

import pytest

from decomp.errors import FileError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.outputs import frozen_outputs, run_outputs

OUTPUTS = Outputs((Output("a", "values", (3, 4), variance=0.5), Output("b", "scores", (7,), "as asked")))


def test_the_outputs_of_a_run_are_those_that_freeze_wrote(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    with pytest.raises(FileError, match="must describe the network's outputs, got a file of an earlier version; run"):
        run_outputs(run)
    run.update_config("freeze", {"outputs": OUTPUTS.to_json()})
    assert run_outputs(run) == OUTPUTS
    assert frozen_outputs(SimpleNamespace(meta={"outputs": OUTPUTS.to_json()})) == OUTPUTS


@pytest.mark.parametrize("record", [3, [], [{"name": "a"}], ["a"], [{**OUTPUTS.to_json()[0], "kind": "x"}]])
def test_a_broken_description_is_refused_in_one_line(record):
    with pytest.raises(FileError, match="the frozen points: the description of the outputs is broken .*; run"):
        frozen_outputs(SimpleNamespace(meta={"outputs": record}))
