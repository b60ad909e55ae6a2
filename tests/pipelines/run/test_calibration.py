"""The one split of the training images: drawn for freeze, fitted, held out."""

import pytest
import torch

from decomp.data.sources import open_source
from decomp.errors import UsageError
from decomp.pipelines.run.calibration import draw_images, fitted_images


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
