import torch

from decomp.problem.row_factor import pivoted_cholesky, responses_by_rows, spectrum


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_spectrum_has_the_directions_with_energy_alone():
    root = normal(6, 20)
    root[5] = root[0] - 2 * root[1]  # as the centred rows, of which one is given by the others
    values, vectors = spectrum(root)
    assert values.shape == (5,) and bool((values.diff() > 0).all()) and float(values[0]) > 1e-3
    torch.testing.assert_close(vectors * values @ vectors.T, root @ root.T)


def test_the_factor_of_a_matrix_of_few_rows_has_its_rank_and_its_products():
    K = (root := normal(7, 40)).T @ root
    R = pivoted_cholesky(K, 30)
    assert R.shape == (7, 40)
    torch.testing.assert_close(R.T @ R, K)


def test_a_right_hand_side_in_the_span_of_few_rows_is_known_by_them():
    root = torch.randn(6, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(responses_by_rows(root, root.T @ wanted), wanted, rtol=1e-9, atol=1e-10)
