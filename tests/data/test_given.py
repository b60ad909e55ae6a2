"""Images held in hands: every form gives the same tensor, and what cannot be meant is one line."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from decomp.data import given
from decomp.errors import DecompError, NumericalError

IMAGES = torch.randn(20, 2, 5, 4, generator=torch.Generator().manual_seed(0))
FORMS = {
    "tensor": IMAGES,
    "array": IMAGES.numpy(),
    "float64": IMAGES.double(),
    "not contiguous": IMAGES.to(memory_format=torch.channels_last),
    "loader with labels": DataLoader(TensorDataset(IMAGES, torch.arange(20)), batch_size=6),
    "list of arrays": [IMAGES[:7].numpy(), IMAGES[7:].numpy()],
    "dicts": [{"pixel_values": IMAGES[:7], "labels": None}, {"pixel_values": IMAGES[7:]}],
    "generator": (part for part in IMAGES.split(3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_images_as_they_are(form):
    source = given.source_of(FORMS[form], 20)
    assert torch.equal(source.train.images(torch.arange(20)), IMAGES)
    assert source.input_shape == (2, 5, 4) and source.test is None and not source.train.has_labels


def test_no_more_batches_are_read_than_are_needed():
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[:6]

    assert len(given.gather(endless(), 15)) == 15 and len(read) == 3


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("digits", "str"),
        (7, "int"),
        (IMAGES[0], r"\(N, C, H, W\), got \(2, 5, 4\)"),
        ((IMAGES * 10).to(torch.uint8), "floating point"),
        ([], "at least one batch"),
        ([["a", "b"]], "begin with a tensor"),
        ([IMAGES, IMAGES[..., :3]], "of one shape"),
    ],
)
def test_what_cannot_be_meant_is_one_line(images, words):
    with pytest.raises(DecompError, match=words) as caught:
        given.source_of(images, 100)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_counted():
    images = IMAGES.numpy().copy()
    images[3, 0, 0, 0], images[5, 1, 2, 2] = np.nan, np.inf
    with pytest.raises(NumericalError, match="2 images"):
        given.source_of(images, 20)
