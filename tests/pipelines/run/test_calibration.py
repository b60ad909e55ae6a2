"""The one split of the training images: drawn for freeze, fitted, held out."""

import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.run import calibration
from decomp.pipelines.run.calibration import Mixtures, any_mixtures, draw_images, draw_mixtures, fitted_images


def test_one_image_in_ten_is_held_out_and_at_least_one():
    sizes = {10: 9, 11: 10, 19: 18, 20: 18, 5000: 4500}
    assert {n_images: fitted_images(n_images) for n_images in sizes} == sizes


def test_more_images_are_the_same_ones_and_others_behind_them():
    source = open_source("digits")
    some, all_of_them = draw_images(source, 50, 3), draw_images(source, 10**6, 3)
    assert torch.equal(all_of_them[:50], some)
    assert all_of_them.sort().values.tolist() == list(range(len(source.train)))
    assert not torch.equal(draw_images(source, 50, 4), some)


def test_nine_images_are_too_few():
    source = open_source("digits")
    source.train._pixels = source.train._pixels[:9]
    with pytest.raises(UsageError, match="at least 10 training images are needed, got 9"):
        draw_images(source, 50, 0)
    assert len(draw_images(source, 50, 0, least=9)) == 9


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 1000)
    monkeypatch.setattr(calibration, "JUDGED_IMAGES", 500)


def test_mixtures_make_up_for_few_images_and_none_are_drawn_where_there_are_enough(recorded):
    counts = {n: draw_mixtures(n, 0) for n in (4, 10, 100, 600, 999, 1000, 5000)}
    assert {n: None if drawn is None else len(drawn) for n, drawn in counts.items()} == {
        4: None, 10: 81, 100: 810, 600: 400, 999: 1, 1000: None, 5000: None,
    }  # fmt: skip


def test_mixtures_of_a_large_network_keep_a_pass_within_the_work(recorded, monkeypatch):
    monkeypatch.setattr(calibration, "MIXED_WORK", 4e11)
    macs = {0: 0.0, 1: 0.39e9, 2: 5e9, 3: 20e9}
    counts = {place: calibration.mixtures_within(60, one) for place, one in macs.items()}
    assert counts == {0: 486, 1: 486, 2: 20, 3: 0}
    assert calibration.mixtures_within(2000, 1e3) == 0 == calibration.mixtures_within(4, 1e3)
    assert [len(draw_mixtures(60, 0, most=20)), draw_mixtures(60, 0, most=0)] == [20, None]
    first = draw_mixtures(60, 0, most=20).first
    assert first.tolist() == [i * 54 // 10 for i in range(10)] * 2  # all over the images still


def test_fewer_mixtures_are_told_with_the_work_that_is_why(recorded, monkeypatch):
    monkeypatch.setattr(calibration, "MIXED_WORK", 4e11)
    assert calibration.fewer_words(60, 1e8) == calibration.fewer_words(5000, 1e12) == ""
    words = calibration.fewer_words(60, 5.04e9)
    assert words.startswith(
        "mixtures: 19 of 486, so that images and mixtures take at most 400 G multiply-accumulates a"
    )
    assert "(5 G for each)" in words
    assert calibration.fewer_words(60, 16e9).startswith("mixtures: none of 486, ")


def test_a_mixture_is_of_two_different_fitted_images_first_of_one_half_then_of_both(recorded):
    drawn = draw_mixtures(30, 4)
    assert not (drawn.first == drawn.second).any()
    # The last three of thirty are held out.
    assert set(drawn.first.tolist()) == set(drawn.second.tolist()) == set(range(27))
    assert torch.equal((drawn.first < 13) == (drawn.second < 13), torch.arange(243) < 121)
    again, other = draw_mixtures(30, 4), draw_mixtures(30, 5)
    assert torch.equal(drawn.area, again.area) and not torch.equal(drawn.area, other.area)


def test_a_mixture_has_a_rectangle_of_the_second_image_of_the_drawn_area_and_place():
    first, second = torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    drawn = Mixtures(
        torch.zeros(3).long(), torch.ones(3).long(), torch.tensor([0.25, 1e-6, 0.5]),
        torch.tensor([[0.0, 1.0], [0.5, 0.0], [1.0, 1.0]]),
    )  # fmt: skip
    made = drawn.images(first, second, slice(0, 3))
    expected = torch.zeros(3, 1, 8, 8)
    expected[0, :, :4, 4:] = 1
    expected[1, :, 4, 0] = 1
    expected[2, :, 2:, 2:] = 1
    assert torch.equal(made, expected)
    assert torch.equal(drawn.images(first[1:], second[1:], slice(1, 3)), expected[1:])


def test_any_mixtures_are_of_two_images_and_each_image_is_the_first_one_as_often_as_the_others():
    images = torch.arange(1.0, 8)[:, None, None, None].expand(7, 1, 16, 16)
    made = any_mixtures(images, 700, torch.Generator().manual_seed(0))
    own = made == images[torch.arange(700) % 7]
    share = 1 - own.float().mean((1, 2, 3))
    assert share.min() > 0 and share.max() < 0.56 and abs(share.mean() - 0.25) < 0.02
    others = [set(made[i][~own[i]].tolist()) for i in range(700)]
    assert all(len(other) == 1 for other in others)
    assert set.union(*others[::7]) == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0}


def test_no_mixture_has_more_than_half_of_the_second_image(recorded):
    drawn = draw_mixtures(100, 0)
    share = drawn.images(torch.zeros(810, 1, 32, 32), torch.ones(810, 1, 32, 32), slice(0, 810)).mean((1, 2, 3))
    assert share.max() < 0.54 and share.min() > 0
    assert abs(share.mean() - 0.25) < 0.02


def test_further_mixtures_for_training_make_up_for_few_images_within_the_work(recorded):
    counts = {n: calibration.mixtures_for_training(n, n + 810 * (n == 100), 1e6) for n in (10, 100, 1500, 2221, 2222)}
    assert counts == {10: 4491, 100: 3600, 1500: 3150, 2221: 2501, 2222: 0}  # 2,000 fitted ones are enough
    assert calibration.mixtures_for_training(100, 910, 4e8) == 2500  # 10^12 multiply-accumulates
    assert calibration.mixtures_for_training(100, 910, 1e10) == 2 * 910


def test_mixtures_for_judging_are_as_many_of_each_held_out_image_within_the_work(recorded):
    counts = {n: calibration.mixtures_for_judging(n, 1e6) for n in (19, 20, 70, 100, 999, 1000, 5000)}
    assert counts == {19: 0, 20: 498, 70: 490, 100: 490, 999: 396, 1000: 0, 5000: 0}
    # 10^11 multiply-accumulates are a pass of 250 images of 0.4 G, and of 4 of 20 G.
    assert [calibration.mixtures_for_judging(100, macs) for macs in (4e8, 2e10)] == [250, 0]
