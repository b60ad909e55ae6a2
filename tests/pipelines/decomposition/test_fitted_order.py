"""Order of the fitted images: halves with their mixtures, then the held-out ones."""

from types import SimpleNamespace

import pytest
import torch

from decomp.pipelines.decomposition.fitted_order import FittedOrder, Halves
from decomp.pipelines.run import calibration
from decomp.pipelines.run.calibration import draw_mixtures, fitted_images
from decomp.problem.moments import Moments


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 1000)


def frozen_numbers(n_images, n_mixtures=0):
    """A file whose images, responses and positions are their numbers."""
    numbers = torch.arange(n_images + n_mixtures)
    return SimpleNamespace(
        n_images=n_images, n_recorded=len(numbers), images=lambda a, b: numbers[a:b],
        responses=lambda key, a, b: numbers[a:b], positions=lambda grid: numbers,
    )  # fmt: skip


@pytest.mark.parametrize("n_images", [10, 31, 100, 999])
def test_either_half_is_followed_by_the_mixtures_of_its_images(n_images):
    drawn, n_fit = draw_mixtures(n_images, 0), fitted_images(n_images)
    order = FittedOrder(frozen_numbers(n_images, len(drawn)))
    places = order.images(0, order.n).tolist()
    # Which halves the image, or both images of the mixture, at each place are of.
    half = n_fit // 2
    pairs = list(zip((drawn.first >= half).tolist(), (drawn.second >= half).tolist()))
    of = [(place >= half,) * 2 if place < n_images else pairs[place - n_images] for place in places]
    first, second = order.halves
    assert (order.n_fit, order.n) == (n_fit + len(drawn), n_images + len(drawn))
    assert sorted(places) == list(range(order.n)) and places[order.n_fit :] == list(range(n_fit, n_images))
    assert set(of[:first]) == {(False, False)} and set(of[first : first + second]) == {(True, True)}
    assert all(one != other for one, other in of[first + second : order.n_fit])
    assert first + second == n_fit + len(drawn) // 2


def test_parts_are_cut_out_of_the_whole_order():
    order = FittedOrder(frozen_numbers(20, 37))
    whole = order.positions("8x8")
    for start, stop in ((0, 5), (7, 40), (50, 57), (9, 9)):
        assert torch.equal(order.responses("layer", start, stop), whole[start:stop])


def test_enough_images_are_in_the_order_of_the_file_and_not_halved():
    order = FittedOrder(frozen_numbers(1000))
    assert (order.halves, order.n_fit, order.n) == (None, 900, 1000)
    assert torch.equal(order.images(0, 1000), torch.arange(1000))


def test_few_images_without_mixtures_are_halved_in_the_order_of_the_file():
    order = FittedOrder(frozen_numbers(31))
    assert (order.halves, order.n_fit) == ((14, 14), 28) and torch.equal(order.images(0, 31), torch.arange(31))


def test_rows_go_to_the_half_of_their_image_or_to_the_rest():
    order, points = FittedOrder(frozen_numbers(20, 37)), 2
    X, Y = torch.randn(order.n_fit * points, 3).double(), torch.randn(order.n_fit * points, 2).double()
    halves = Halves(order, points, (3, 2))
    for start in range(0, len(X), 17):
        halves.add(X[start : start + 17], Y[start : start + 17])
    first, second = (points * size for size in order.halves)
    shares = slice(first), slice(first, first + second), slice(first + second, None)
    for half, own in zip(halves.sums, shares, strict=True):
        assert torch.allclose(half.total().C, Moments.of_rows(X[own], Y[own]).C)
    assert torch.allclose(halves.whole().total().K, Moments.of_rows(X, Y).K)
    assert halves.whole().total().n_rows == len(X) > first + second


def test_a_process_that_begins_at_a_later_row_adds_to_the_halves_of_its_rows():
    order, points = FittedOrder(frozen_numbers(20, 37)), 2
    X, Y = torch.randn(order.n_fit * points, 3).double(), torch.randn(order.n_fit * points, 2).double()
    begin = points * order.halves[0] + 5
    halves = Halves(order, points, (3, 2), begin)
    halves.add(X[begin:], Y[begin:])
    end = points * sum(order.halves)
    assert halves.sums[0].total().n_rows == 0 and halves.sums[2].total().n_rows == len(X) - end
    assert torch.allclose(halves.sums[1].total().C, Moments.of_rows(X[begin:end], Y[begin:end]).C)


def test_rows_of_enough_images_have_one_sum():
    order = FittedOrder(frozen_numbers(1000))
    halves = Halves(order, 1, (3, 2))
    X, Y = torch.randn(900, 3), torch.randn(900, 2)
    halves.add(X, Y)
    assert len(halves.sums) == 1 and torch.equal(halves.whole().total().K, Moments.of_rows(X, Y).K)


def test_some_of_enough_images_are_the_first_fitted_and_as_large_a_share_of_the_held_out_ones():
    order = FittedOrder(frozen_numbers(3000), most=1000)
    assert (order.halves, order.n_fit, order.n) == (None, 1000, 1112)
    assert torch.equal(order.images(0, order.n), torch.cat([torch.arange(1000), torch.arange(2700, 2812)]))
    assert torch.equal(order.positions("8x8")[998:1003], torch.tensor([998, 999, 2700, 2701, 2702]))
    assert FittedOrder(frozen_numbers(3000), most=2700).n == 3000 and FittedOrder(frozen_numbers(31), most=5).n == 31
