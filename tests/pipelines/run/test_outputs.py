from types import SimpleNamespace

import pytest
import torch
from torch import nn

from decomp.errors import FileError
from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import run_outputs
from decomp.pipelines.run.outputs import frozen_outputs, measured_outputs

OUTPUTS = Outputs((Output("a", "values", (3, 4), variance=0.5), Output("b", "scores", (7,), "as asked")))


def test_the_outputs_of_a_run_are_those_that_freeze_wrote(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    run.update_config("freeze", {"outputs": OUTPUTS.to_json()})
    assert run_outputs(run) == OUTPUTS
    assert frozen_outputs(SimpleNamespace(meta={"outputs": OUTPUTS.to_json()})) == OUTPUTS


class Frozen:
    n_images = 250

    def __init__(self):
        self.pixels = torch.randn(250, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def images(self, start, stop):
        return self.pixels[start:stop]


def test_without_a_description_rows_are_class_scores_as_in_earlier_versions():
    frozen, network = Frozen(), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    (output,) = measured_outputs(network, frozen).each
    with torch.no_grad():
        scores = network(frozen.pixels).double()
    assert (output.name, output.kind, output.shape) == ("output", "scores", (3,))
    assert output.variance == pytest.approx(float(scores.var(0, correction=0).mean()), rel=1e-6)


def test_without_a_description_maps_and_several_outputs_are_values():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": 3 * x, "b": x.flatten(1)}

    frozen = Frozen()
    a, b = measured_outputs(Two(), frozen).each
    assert (a.name, a.kind, b.name, b.kind) == ("a", "values", "b", "values")
    assert a.variance == pytest.approx(9 * b.variance, rel=1e-6)


@pytest.mark.parametrize("record", [3, [], [{"name": "a"}], ["a"], [{**OUTPUTS.to_json()[0], "kind": "x"}]])
def test_a_broken_description_is_refused_in_one_line(record):
    with pytest.raises(FileError, match="the frozen points: the description of the outputs is broken .*; run"):
        frozen_outputs(SimpleNamespace(meta={"outputs": record}))
