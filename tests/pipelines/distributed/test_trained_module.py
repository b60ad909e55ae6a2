import pytest
import torch
from pytest import approx

from decomp.errors import UsageError
from decomp.pipelines.distributed import trained_module


def test_gradients_and_statistics_of_unequal_shares_are_those_of_one_process(jobs):
    for found in jobs.call(2, "inside:gradients"):
        assert found["gradients"] < 1e-12
        assert found["statistics"] == [approx(0, abs=1e-12), approx(0, abs=1e-12), 1]
        assert found["as before"]


def test_a_module_gets_the_parameters_and_buffers_of_the_first_process(jobs):
    first, second = jobs.call(2, "inside:states")
    assert first == second and first[1] == 0


def test_every_place_of_a_batch_belongs_to_one_process(jobs):
    one, other = (found["places"] for found in jobs.call(2, "inside:gradients"))
    assert one == [[0, 1, 5, 6], 2] and other == [[2, 3, 4, 7, 8, 9], 3]


def test_a_smaller_batch_is_cut_at_the_same_places():
    order, size = trained_module.places_of(torch.arange(4), 10, slice(1, 3))
    assert order.tolist() == [1, 2] and size == 2


def test_a_batch_with_fewer_images_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(trained_module, "count", lambda: 3)
    with pytest.raises(UsageError, match="2 for 3 processes"):
        trained_module.own_places(2)


def test_processes_share_the_images_that_the_original_answers_for_and_all_have_all_answers(jobs):
    first, second = jobs.call(2, "inside:kept_answers")
    assert first["answers"] == second["answers"] == [[22 - n, n - 22] for n in range(23)]
    assert first["seen"] == list(range(22, 12, -1)) and second["seen"] == list(range(12, -1, -1))
