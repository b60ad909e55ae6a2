"""Options for the transforms of images: their texts, and values that do not go together."""

import numpy as np
import pytest

from decomp.data.image_options import ImageOptions, numbers, sides
from decomp.errors import UsageError


@pytest.mark.parametrize(
    "given", ["0.5,0.25", "0.5 0.25", "0.5, 0.25", (0.5, 0.25), [0.5, 0.25], np.array([0.5, 0.25])]
)
def test_numbers_come_as_text_or_sequence(given):
    assert numbers("--mean", given) == (0.5, 0.25)


@pytest.mark.parametrize("given", ["", "a", "0.5,b", "nan", "inf,1", [], True, None])
def test_what_is_no_number_is_one_line(given):
    with pytest.raises(UsageError, match="--std: must be one number, or one for each channel"):
        numbers("--std", given)


@pytest.mark.parametrize(
    ("given", "wanted"), [("256", (256,)), ("40x36", (40, 36)), ("40×36", (40, 36)), (32, (32,)), ([3, 4], (3, 4))]
)
def test_sides_come_as_text_or_numbers(given, wanted):
    assert sides("--crop", given) == wanted


@pytest.mark.parametrize("given", ["", "a", "0", "-3", "3x4x5", "3.5", 3.5, True, [], [3, True], None])
def test_what_is_no_size_is_one_line(given):
    with pytest.raises(UsageError, match="--crop: must be one or two positive whole numbers"):
        sides("--crop", given)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mean": (0.5,)}, "--mean: comes together with --std"),
        ({"std": (0.5,)}, "--std: comes together with --mean"),
        ({"mean": (0.5,), "std": (-0.1,)}, "--std: must be positive, got -0.1"),
        ({"mean": (0.5,), "std": (0.1, 0, 1)}, "--std: must be positive"),
        ({"mean": (0.5,) * 3, "std": (0.1, 0.2)}, "--std: must have one number, or 3 as --mean has, got 0.1,0.2"),
        ({"resize": (28,), "crop": (32,)}, "--crop: must fit into the resized image .--resize 28., got 32"),
        ({"resize": (40, 28), "crop": (30,)}, "--resize 40x28"),
        ({"transforms": "a.py:b", "crop": (30,)}, "--transforms: replaces all other .* got --crop beside it"),
        ({"transforms": "a.py:b", "flip": False}, "got --no-flip beside it"),
    ],
)
def test_values_that_do_not_go_together_are_one_line(values, words):
    with pytest.raises(UsageError, match=words) as caught:
        ImageOptions(**values)
    assert "\n" not in str(caught.value)


def test_the_size_after_resize_and_crop():
    assert ImageOptions().size is None
    assert ImageOptions(resize=(40,)).size == (40, 40)
    assert ImageOptions(resize=(40,), crop=(20, 30)).size == (20, 30)
    assert ImageOptions(mean=(0.0,), std=(1.0,), flip=False).given("mean", "crop", "flip") == ["--mean", "--no-flip"]
