"""Outputs that are kept as rows of numbers."""

import torch

from decomp.execution.output_change import Outputs
from decomp.execution.output_kinds import Output
from decomp.pipelines.training.targets import as_rows, entries, from_rows

OUTPUTS = Outputs(
    (Output("b", "values", (2, 3), variance=1.0), Output("a", "scores", (4,), variance=1.0),
     Output("c", "values", (), variance=1.0))
)  # fmt: skip


def test_rows_have_all_outputs_in_their_order_and_give_them_back():
    values = {
        "a": torch.arange(8.0).reshape(2, 4), "c": torch.tensor([50.0, 60.0]),
        "b": torch.arange(12.0).reshape(2, 2, 3) + 100,
    }  # fmt: skip
    rows = as_rows(values, OUTPUTS)
    assert entries(OUTPUTS) == 11
    assert rows[1].tolist() == [106, 107, 108, 109, 110, 111, 4, 5, 6, 7, 60]
    found = from_rows(rows, OUTPUTS)
    assert list(found) == ["b", "a", "c"]
    for name, value in values.items():
        assert torch.equal(found[name], value) and found[name].shape == value.shape


def test_rows_are_kept_in_float32():
    values = {"a": torch.ones(1, 4).bfloat16(), "b": torch.ones(1, 2, 3).double(), "c": torch.ones(1)}
    assert as_rows(values, OUTPUTS).dtype == torch.float32
