import pytest


@pytest.fixture(scope="module")
def found(jobs):
    return jobs.call(3, "inside:moments_together")


def test_moments_of_all_processes_are_to_the_bit_those_of_one_that_has_their_tiles(found):
    assert all(one["same bits"] == [True] * 5 and one["rows"] == 50 for one in found)


def test_an_input_that_does_not_vary_has_no_variance_at_all(found):
    assert all(one["constant"] == [0.0, 0.0] for one in found)


def test_moments_for_an_owner_come_to_that_process_alone(found):
    assert [one["of the owner"] for one in found] == [None, None, True]


def test_about_half_of_a_symmetric_matrix_is_exchanged(found):
    # Blocks of 2 of 5 inputs have 10, 6 and 1 entries, C 10 and S 4: the first exchange has 17 of them, the second 14.
    # A third of each, two numbers an entry to each of three processes, and the result to all. Seven means and the
    # number of rows of a tile, which the second process has not.
    parts = 6 + 5
    assert [one["exchanged"] for one in found] == [8 * (7 * parts + 8), 8 * 7 * parts, 8 * (7 * parts + 8)]


def test_holders_sum_tensors_of_any_shape_in_one_exchange_and_agree_on_the_first(found):
    for rank, one in enumerate(found):
        assert one["summed"] == [[[3.0, 3.0]], 3.0] and one["one exchange"] == 7 * 8
        assert one["agreed"] == [[1.0, 2.0], [3.0, 4.0]] and one["strides"] == [1, 2], rank


def test_each_of_several_functions_is_called_by_one_process_and_all_get_the_results(found):
    for one, called in zip(found, ([0, 3], [1], [2])):
        assert one["each"] == [called, [0, 1, 4, 9], []]


def test_moments_of_channels_are_those_of_the_rows_of_all_processes(jobs):
    found = jobs.call(3, "inside:channel_moments_together")
    assert all(one["distances"] == [0.0] * 5 and one["rows"] == 50 and one["constant"] == 0.0 for one in found)


def test_moments_of_no_rows_are_zeros(jobs):
    assert jobs.call(2, "inside:no_moments") == [{"rows": 0, "K": [[0.0] * 3] * 3}] * 2


def test_rows_that_are_kept_give_all_processes_the_bits_of_one_that_has_all_of_them(jobs):
    found = jobs.call(3, "inside:rows_together")
    assert all(all(one["same bits"]) and one["rows"] == 50 for one in found)
    assert [one["of the owner"] for one in found] == [None, True, None]
