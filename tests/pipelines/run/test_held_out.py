"""Held-out images and mixtures of them: no part of a fitted image, the same ones for the same seed."""

from types import SimpleNamespace

import pytest
import torch

from decomp.pipelines.run import calibration
from decomp.pipelines.run.held_out import HeldOut, judged_words


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    monkeypatch.setattr(calibration, "RECORDED_IMAGES", 1000)
    monkeypatch.setattr(calibration, "JUDGED_IMAGES", 500)


def frozen(n_images, seed=0):
    """Frozen images of one number each, its place."""
    images = torch.arange(float(n_images))[:, None, None, None].expand(n_images, 1, 8, 8)
    return SimpleNamespace(n_images=n_images, meta={"seed": seed}, images=lambda start, stop: images[start:stop])


def test_ten_held_out_images_have_mixtures_of_them_alone_as_many_of_each():
    held_out = HeldOut(frozen(100), 1e6, mix=True, most=500)
    assert (held_out.n_images, held_out.n_mixtures, len(held_out)) == (10, 490, 500)
    images = held_out.images(0, 500)
    assert torch.equal(images[:10], frozen(100).images(90, 100))
    assert images.min() == 90 and images.max() == 99
    own = images == images[:10].repeat(50, 1, 1, 1)
    assert (own.flatten(1).float().mean(1)[10:] < 1).all() and own.float().mean() > 0.7
    assert all(len(image.unique()) == 2 for image in images[10:])


def test_any_stretch_of_them_is_the_same_as_of_all():
    held_out = HeldOut(frozen(100), 1e6, mix=True, most=500)
    whole = held_out.images(0, 500)
    for start, stop in ((0, 7), (4, 10), (7, 23), (10, 40), (390, 600)):
        assert torch.equal(held_out.images(start, stop), whole[start:stop])


def test_mixtures_follow_the_seed():
    first, again, other = (HeldOut(frozen(100, seed), 1e6, mix=True, most=500).images(10, 20) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("n_images, mix, most", [(5000, True, 500), (100, False, 500), (19, True, 500), (100, True, 1)])
def test_without_mixtures_there_are_the_held_out_images(n_images, mix, most):
    """Of many images, where the network must not see mixtures, and of a single image."""
    held_out = HeldOut(frozen(n_images), 1e6, mix=mix, most=most)
    first = calibration.fitted_images(n_images)
    assert held_out.n_mixtures == 0 and len(held_out) == min(most, n_images - first)
    assert torch.equal(held_out.images(0, 10**6), frozen(n_images).images(first, first + len(held_out)))
    values = torch.rand(len(held_out))
    assert held_out.of_each(values) is values


def test_values_are_averaged_over_each_image_and_its_mixtures():
    held_out = HeldOut(frozen(20), 1e9, mix=True, most=500)  # 100 mixtures for the work, 50 of each of two images
    assert held_out.n_mixtures == 100
    values = torch.arange(102.0)
    assert torch.equal(held_out.of_each(values), torch.stack([values[::2].mean(), values[1::2].mean()]))


def test_numbers_in_words():
    assert judged_words(1, 0) == "1 held-out image"
    assert judged_words(10, 490) == "10 held-out images and 490 mixtures of them"
