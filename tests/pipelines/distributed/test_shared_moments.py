import pytest


@pytest.fixture(scope="module")
def found(jobs):
    return jobs.call(3, "inside:moments_together")


def test_moments_of_all_processes_are_those_of_all_rows(found):
    assert all(max(one["distances"]) < 1e-13 for one in found)
    assert all(one["rows"] == 50 for one in found)


def test_all_processes_get_the_same_bits_symmetric_to_the_last(found):
    assert len({one["bits"] for one in found}) == 1 and all(one["symmetric"] for one in found)


def test_an_input_that_does_not_vary_has_no_variance_at_all(found):
    assert all(one["constant"] == [0.0, 0.0] for one in found)


def test_moments_for_an_owner_come_to_that_process_alone(found):
    assert [one["of the owner"] for one in found] == [None, None, True]


def test_about_half_of_a_symmetric_matrix_is_exchanged(found):
    # Blocks of 2 of 5 inputs: rows of 5, 3 and 1 entries; two responses in one block; C and the means.
    assert all(one["exchanged"] == 8 * (2 * 5 + 2 * 3 + 1 + 4 + 10 + 7 + 7) for one in found)


def test_holders_sum_tensors_of_any_shape_in_one_exchange_and_agree_on_the_first(found):
    for rank, one in enumerate(found):
        assert one["summed"] == [[[3.0, 3.0]], 3.0] and one["one exchange"] == 3 * 8
        assert one["agreed"] == [[1.0, 2.0], [3.0, 4.0]] and one["strides"] == [1, 2], rank


def test_moments_of_channels_are_those_of_the_rows_of_all_processes(jobs):
    found = jobs.call(3, "inside:channel_moments_together")
    assert all(max(one["distances"]) < 1e-13 and one["rows"] == 50 for one in found)
    assert all(one["constant"] == 0.0 for one in found) and len({one["bits"] for one in found}) == 1
