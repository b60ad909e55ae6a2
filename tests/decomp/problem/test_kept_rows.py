import dataclasses

import pytest
import torch
from layer_problems import make, output_metric

from decomp.errors import DecompError
from decomp.problem.kept_rows import KeptRows, sum_of_rows
from decomp.problem.layer_problem import columns_of
from decomp.problem.moments import Moments, MomentSum
from decomp.solvers import lasso
from decomp.solvers.elimination import eliminate
from decomp.solvers.linalg import least_squares
from decomp.solvers.spatial import column_covariance


def kept(X, Y, tiles=(1000,)):
    rows = KeptRows(X.flatten(1).shape[1], Y.shape[1])
    for part in zip(X.split(tiles), Y.split(tiles)) if len(tiles) > 1 else [(X, Y)]:
        rows.add(*part)
    return rows.total()


def few_rows(dtype=torch.float64):
    return make(n_rows=60, n=5, c=32, kernel=(3, 3), noise=0.3, dtype=dtype)


def few_problem(rows, moments):
    return dataclasses.replace(rows.problem, moments=moments, metric=output_metric(5))


def test_moments_of_kept_rows_are_those_of_their_products():
    rows = few_rows()
    found, expected = kept(rows.X, rows.Y), Moments.of_rows(rows.X, rows.Y)
    for name in ("K", "C", "S", "x_mean", "y_mean"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-11)
    assert found.n_rows == expected.n_rows == 60
    assert torch.equal(found.K, found.K.T)
    assert found.mean_diagonal() == pytest.approx(expected.mean_diagonal(), rel=1e-12)


def test_float32_rows_are_multiplied_in_float64():
    rows = few_rows(torch.float32)
    exact = Moments.of_rows(rows.X.double(), rows.Y.double())
    torch.testing.assert_close(kept(rows.X, rows.Y).K, exact.K, rtol=1e-12, atol=1e-10)


def test_rows_give_the_same_bits_in_whatever_tiles_they_come():
    rows = few_rows(torch.float32)
    whole, parts = kept(rows.X, rows.Y), kept(rows.X, rows.Y, (7, 30, 23))
    merged = KeptRows(288, 5)
    for X, Y in zip(rows.X.split([20, 40]), rows.Y.split([20, 40])):
        own = KeptRows(288, 5)
        own.add(X, Y)
        merged.merge(own)
    for other in (parts, merged.total()):
        assert torch.equal(whole.root, other.root) and torch.equal(whole.C, other.C) and torch.equal(whole.S, other.S)


def test_an_input_that_does_not_vary_has_exactly_no_moments():
    rows = few_rows(torch.float32)
    X = rows.X.flatten(1).clone()
    X[:, 3] = 0.1
    found = kept(X, rows.Y)
    assert float(found.K[3].abs().max()) == 0 == float(found.C[3].abs().max())


def test_the_matrix_of_the_inputs_is_formed_only_where_it_is_asked_for():
    rows = few_rows()
    moments = kept(rows.X, rows.Y)
    chosen = moments.take_inputs(columns_of(torch.arange(31), (3, 3)))
    fit, other = least_squares(moments, ridge="evidence"), moments.map_outputs(output_metric(5))
    moments.error(fit.weight, output_metric(5))
    column_covariance(moments, (3, 3))
    moments.check("conv")
    eliminate(few_problem(rows, moments))
    lasso.select(few_problem(rows, moments), 7)
    targets = moments.with_responses(moments.C, moments.S, moments.y_mean)
    assert all(one._K is None for one in (moments, chosen, other, targets))
    assert chosen.root.shape == (60, 279)


def test_of_fewer_inputs_the_matrix_takes_the_place_of_the_rows():
    rows = few_rows()
    narrow = kept(rows.X, rows.Y).take_inputs(torch.arange(100))
    assert narrow.root is None
    torch.testing.assert_close(narrow.K, Moments.of_rows(rows.flat[:, :100], rows.Y).K, rtol=1e-12, atol=1e-11)


def test_some_rows_of_the_matrix_of_the_inputs_are_those_of_the_whole():
    rows = few_rows()
    moments = kept(rows.X, rows.Y)
    some = moments.rows_of_K(slice(20, 50))
    torch.testing.assert_close(some, moments.K[20:50], rtol=1e-12, atol=1e-11)
    index = torch.tensor([7, 280, 3])
    torch.testing.assert_close(kept(rows.X, rows.Y).K_among(index), moments.K[index][:, index], rtol=1e-12, atol=1e-11)
    assert torch.equal(Moments.of_rows(rows.X, rows.Y).rows_of_K(slice(2, 4)), Moments.of_rows(rows.X, rows.Y).K[2:4])


def test_the_covariance_of_a_column_is_that_of_the_products():
    rows = few_rows()
    expected = column_covariance(Moments.of_rows(rows.flat[:, :90], rows.Y), (3, 3))
    found = column_covariance(kept(rows.X, rows.Y), (3, 3))
    torch.testing.assert_close(found[:30, :30], expected, rtol=1e-12, atol=1e-11)


def test_no_rows_are_no_moments():
    moments = KeptRows(288, 5).total()
    assert moments.n_rows == 0 and moments.K.shape == (288, 288) and float(moments.K.abs().max()) == 0


def test_rows_of_other_sizes_are_refused():
    with pytest.raises(DecompError, match=r"moments: rows must be \(m, 288\) and \(m, 5\), got \(4, 288\), \(4, 6\)"):
        KeptRows(288, 5).add(torch.zeros(4, 288), torch.zeros(4, 6))


@pytest.mark.parametrize("p, n_rows, kind", [(288, 144, KeptRows), (288, 145, MomentSum), (255, 10, MomentSum)])
def test_rows_are_kept_where_there_are_two_inputs_or_more_for_each(p, n_rows, kind):
    assert type(sum_of_rows(p, 5, n_rows)) is kind


def test_rows_that_are_not_finite_are_refused_in_words_about_the_inputs():
    rows = few_rows()
    X = rows.X.clone()
    X[3, 2, 1, 1] = float("nan")
    with pytest.raises(DecompError, match="inputs and responses must be finite over its 60 rows, got 60 of .* K NaN"):
        kept(X, rows.Y).check("conv")
