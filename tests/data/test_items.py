"""Images and labels in batches and items of any form."""

import numpy as np
import pytest
import torch
from PIL import Image

from decomp.data.items import class_number, described, images_of, labels_of, leaves
from decomp.errors import UsageError

BATCH, ITEM, PICTURE = torch.zeros(5, 3, 8, 9), torch.zeros(3, 8, 9), Image.new("RGB", (9, 8))


@pytest.mark.parametrize(
    ("thing", "n_axes", "place"),
    [
        (BATCH, 4, ""),
        ((BATCH, torch.arange(5)), 4, "0"),
        ([torch.arange(5), BATCH], 4, "1"),
        ({"label": torch.arange(5), "photo": BATCH}, 4, "photo"),
        ({"mask": BATCH[:, :1], "image": BATCH}, 4, "image"),
        (({"depth": BATCH[:, :1]}, {"x": BATCH}), 4, "1.x"),
        ((ITEM, 3), 3, "0"),
        ((3, PICTURE), 3, "1"),
        ({"id": "a", "image": ITEM.numpy(), "label": 2}, 3, "image"),
        ((ITEM[0], 3), 3, "0"),
        ({"boxes": torch.zeros(7, 4), "picture": ITEM}, 3, "picture"),
    ],
)
def test_the_tensor_that_looks_like_images_is_taken(thing, n_axes, place):
    name, found = images_of(thing, n_axes, "mine")
    assert name == place and found is dict(leaves(thing))[place]


@pytest.mark.parametrize(
    ("thing", "n_axes", "words"),
    [
        (
            {"label": torch.arange(5), "image": ITEM},
            4,
            r"got label: int64 \(5,\), image: float32 \(3, 8, 9\); stack single images",
        ),
        (BATCH[None], 4, r"got float32 \(1, 5, 3, 8, 9\); give single images: frames"),
        ((BATCH, 1), 3, r"got 0: float32 \(5, 3, 8, 9\), 1: int 1; give single images"),
        ({}, 4, "got nothing"),
        ("a.png", 3, "got str a.png"),
    ],
)
def test_what_does_not_look_like_images_is_told_by_name_and_shape(thing, n_axes, words):
    with pytest.raises(UsageError, match=words):
        images_of(thing, n_axes, "mine")


def test_labels_are_those_named_so_or_else_what_stands_beside_the_images():
    assert labels_of({"id": 7, "label": 2, "image": ITEM}, "image") == 2
    assert labels_of((ITEM, 4, "a"), "0") == 4
    assert labels_of((9, ITEM), "1") == 9
    assert labels_of(ITEM, "") is None and labels_of((ITEM,), "0") is None


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3), torch.tensor([3]), np.array([[3]], np.uint8)])
def test_class_numbers_in_every_form(label):
    assert class_number(label) == 3


@pytest.mark.parametrize("label", [-1, 1.0, True, "3", None, torch.tensor(1.0), torch.tensor([1, 2]), np.array([])])
def test_what_is_no_class_number(label):
    assert class_number(label) is None


def test_a_description_names_kinds_and_shapes():
    thing = {"a": torch.zeros(2, 1), "b": [np.zeros(3, np.uint8), None], "c": "text", "d": PICTURE}
    assert described(thing) == "a: float32 (2, 1), b.0: uint8 (3,), b.1: nothing, c: str text, d: an Image"
