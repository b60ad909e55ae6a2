import dataclasses

import pytest
import torch
from layer_problems import make, output_metric, relative

from decomp.errors import DecompError, NumericalError
from decomp.problem.factors import Selection
from decomp.problem.layer_problem import matrix_to_weight, weight_to_matrix
from decomp.problem.moments import Moments


def test_a_narrowed_problem_is_that_of_the_narrowed_rows():
    rows = make(c=5, kernel=(2, 3))
    keep = Selection(torch.tensor([0, 2, 3]), 5)
    narrowed = rows.problem.narrowed(keep)
    wanted = Moments.of_rows(rows.X[:, keep.channels], rows.Y)
    assert torch.equal(narrowed.weight, rows.problem.weight[:, keep.channels])
    for name in ("K", "C", "S", "x_mean", "y_mean"):
        assert torch.allclose(getattr(narrowed.moments, name), getattr(wanted, name), atol=1e-10)
    got = [torch.cat(parts) for parts in zip(*narrowed.rows())]
    assert torch.equal(got[0], rows.X[:, keep.channels]) and torch.equal(got[1], rows.Y)
    again = [torch.cat(parts) for parts in zip(*narrowed.rows())]
    assert torch.equal(again[0], got[0]), "rows must start anew at each call"


def test_narrowing_without_rows_stays_without():
    assert make(with_rows=False).problem.narrowed(torch.tensor([1])).rows is None


def test_the_matrix_maps_flat_patches_as_the_convolution_does():
    rows = make(kernel=(2, 3), noise=0.0)
    assert torch.allclose(rows.flat @ rows.problem.matrix() + rows.problem.bias, rows.Y, atol=1e-12)
    columns = rows.problem.matrix_by_columns()
    for y, x in ((0, 2), (1, 1)):
        assert torch.equal(columns[3 * 2 + y, :, x], rows.problem.weight[:, 3, y, x])
    back = matrix_to_weight(weight_to_matrix(rows.problem.weight), rows.problem.weight, (2, 3))
    assert torch.equal(back, rows.problem.weight)


def test_the_error_counts_in_the_problems_metric():
    rows = make()
    F = output_metric(6)
    problem = dataclasses.replace(rows.problem, metric=F)
    other = rows.problem.weight * 0.7
    assert problem.error(other) == pytest.approx(relative(rows.Y, rows.flat @ other.flatten(1).T, F))
    assert rows.problem.error(other) == pytest.approx(relative(rows.Y, rows.flat @ other.flatten(1).T))


def test_shapes_that_do_not_fit_are_refused():
    problem = make().problem
    with pytest.raises(DecompError, match="conv: moments must be of 27 inputs and 6 responses"):
        dataclasses.replace(problem, weight=problem.weight[:, :3])
    with pytest.raises(DecompError, match="conv: the output metric must be 6 x 6"):
        dataclasses.replace(problem, metric=torch.eye(5))


@pytest.mark.parametrize(
    "field, words", [("weight", "the weights"), ("bias", "the bias"), ("metric", "the output metric")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_named_and_counted(field, words, value):
    problem = dataclasses.replace(make().problem, metric=torch.eye(6))
    tensor = getattr(problem, field).clone()
    tensor.view(-1)[:2] = value
    with pytest.raises(NumericalError, match=f"conv: {words} must be finite, got 2 of {tensor.numel()} entries"):
        dataclasses.replace(problem, **{field: tensor}).checked()
