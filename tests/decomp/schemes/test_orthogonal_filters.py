import math

import pytest
import torch

from decomp.schemes.orthogonal_filters import largest_cosine, random_null_directions, reinitialise, row_space


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(j, d, seed=0):
    return torch.randn(j, d, generator=generator(seed), dtype=torch.float64)


def mutual(rows):
    cosines = torch.nn.functional.normalize(rows.double()) @ torch.nn.functional.normalize(rows.double()).T
    return float(cosines.fill_diagonal_(0).abs().max())


def test_new_filters_are_orthogonal_to_the_kept_ones_to_their_old_values_and_among_themselves():
    rows, dropped = layer(32, 288), list(range(3, 30, 3))
    made = reinitialise(rows, dropped, generator())
    assert made.rows.shape == (9, 288) and made.n_default == 0 and len(made.constraints) == 32
    assert largest_cosine(made.rows, rows) < 1e-12
    assert mutual(made.rows) < 1e-12
    assert largest_cosine(made.rows.float(), rows.float()) < 1e-5


def test_clipping_destroys_the_orthogonality_that_one_factor_per_filter_keeps():
    rows, dropped = layer(32, 288), list(range(9))
    clipped = reinitialise(rows, dropped, generator(), scale="clip").rows
    assert largest_cosine(clipped, rows) > 0.01 and mutual(clipped) > 0.01
    assert float(clipped.abs().max()) == pytest.approx(1 / math.sqrt(288))
    assert largest_cosine(reinitialise(rows, dropped, generator()).rows, rows) < 1e-12


def test_every_new_filter_has_the_median_norm_of_the_kept_ones():
    rows = layer(8, 40) * torch.arange(1, 9)[:, None]
    kept = rows[[0, 1, 2, 4, 6]].norm(dim=1)
    made = reinitialise(rows, [3, 5, 7], generator()).rows
    assert torch.allclose(made.norm(dim=1), kept.median().expand(3))
    dead = rows.clone()
    dead[[0, 1, 2, 4, 6]] = 0
    assert torch.allclose(
        reinitialise(dead, [3, 5, 7], generator()).rows.norm(dim=1), torch.tensor(3.0).double() ** -0.5
    )


def test_the_rank_is_found_with_a_relative_tolerance_in_double_precision():
    rows = layer(32, 288).float()
    rows[10:20] = rows[:10]
    for factor in (1e-20, 1.0, 1e20):
        assert len(row_space(rows.double() * factor)) == 22
    # A short filter is a constraint like any other, and an empty one is none.
    rows[31] *= 1e-16
    rows[30] = 0
    assert len(row_space(rows)) == 21
    made = reinitialise(rows, list(range(10)), generator())
    assert largest_cosine(made.rows, rows[31:]) < 1e-12


def test_filters_that_differ_at_all_are_two_constraints_and_equal_ones_are_one():
    first, other = layer(2, 288)
    for difference, rank in ((1e-8, 2), (1e-11, 2), (0.0, 1)):
        near = first + difference * other
        assert len(row_space(torch.stack([first, near, 3 * first, -near]))) == rank


def test_directions_are_random_in_the_null_space_and_not_of_one_sign():
    constraints = layer(4, 6)
    drawn = torch.cat([random_null_directions(constraints, 1, generator(seed)) for seed in range(400)])
    assert (drawn.mean(0).abs() < 0.15).all() and (drawn @ constraints.T).abs().max() < 1e-12
    # Their mean square is the projector on the null space over its dimension.
    projector = torch.eye(6, dtype=torch.float64) - row_space(constraints).T @ row_space(constraints)
    assert torch.allclose(drawn.T @ drawn / 400, projector / 2, atol=0.08)


def test_without_room_the_old_values_and_the_most_overlapping_kept_filters_stay_constraints():
    rows, dropped = layer(32, 27), list(range(23, 32))
    rows[4] = rows[5] + 0.01 * rows[4]
    made = reinitialise(rows, dropped, generator())
    assert made.n_default == 0 and len(made.constraints) == 27 - 9
    assert largest_cosine(made.rows, made.constraints) < 1e-12 and mutual(made.rows) < 1e-12
    assert largest_cosine(made.rows, rows[dropped]) < 1e-12
    assert largest_cosine(made.rows, rows[4:6]) < 1e-12
    assert largest_cosine(made.rows, rows[:23]) > 0.01


def test_more_new_filters_than_weights_in_one_are_filled_up_by_the_default_initialisation():
    rows, dropped = layer(16, 9), list(range(12))
    made = reinitialise(rows, dropped, generator())
    assert made.n_default == 3 and len(made.constraints) == 0
    assert mutual(made.rows[:9]) < 1e-12
    assert 0.2 < float(made.rows[9:].abs().max()) <= 1 / 3
    assert reinitialise(rows, list(range(9)), generator()).n_default == 0


def test_the_published_qr_is_orthogonal_to_earlier_filters_and_not_to_later_ones():
    rows = layer(8, 40)
    made = reinitialise(rows, [4], generator(), method="qr").rows
    assert largest_cosine(made, rows[:4]) < 1e-12
    assert largest_cosine(made, rows[5:]) > 0.01
    assert largest_cosine(made, rows[4:5]) > 0.5
    assert reinitialise(layer(16, 9), [2, 12, 13], generator(), method="qr").n_default == 2


def test_random_directions_have_the_scale_and_no_constraint():
    rows = layer(8, 40)
    made = reinitialise(rows, [1, 2], generator(), method="random")
    assert torch.allclose(made.rows.norm(dim=1), rows[[0, 3, 4, 5, 6, 7]].norm(dim=1).quantile(0.5).expand(2))
    assert largest_cosine(made.rows, rows) > 0.1 and len(made.constraints) == 0


def test_the_generator_alone_decides_the_draw():
    rows = layer(8, 40)
    first, again, other = (reinitialise(rows, [1, 2], generator(seed)).rows for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_the_largest_cosine_of_nothing_is_zero():
    assert largest_cosine(torch.zeros(0, 3), torch.ones(2, 3)) == 0.0
    assert largest_cosine(torch.zeros(1, 3), torch.ones(2, 3)) == 0.0
    assert largest_cosine(torch.tensor([[0.0, -2.0]]), torch.tensor([[0.0, 5.0]])) == pytest.approx(1.0)
