"""Images held in hands: every form gives the same tensor, and what cannot be meant is one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

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
    "label first": [{"label": torch.arange(7), "image": IMAGES[:7]}, (torch.arange(13), IMAGES[7:])],
    "nested": [{"meta": {"id": [1, 2]}, "inputs": {"masks": IMAGES[:, 0], "pixels": IMAGES}}],
    "mask beside": [{"mask": IMAGES[:, :1], "sample": {"img": IMAGES}}],
    "one dict": {"image": IMAGES, "id": 7},
    "images and labels": (IMAGES, torch.arange(20)),
    "generator": (part for part in IMAGES.split(3)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_images_as_they_are(form):
    source = given.source_of(FORMS[form], 20)
    assert torch.equal(source.train.images(torch.arange(20)), IMAGES)
    assert source.input_shape == (2, 5, 4) and source.test is None
    assert source.train.has_labels == (form in ("loader with labels", "label first", "images and labels"))


COLOURS = torch.randn(12, 3, 5, 4, generator=torch.Generator().manual_seed(1))
SINGLE = {
    "list": list(COLOURS),
    "tuple of arrays": tuple(COLOURS.numpy()),
    "pairs": [(image, 4) for image in COLOURS],
    "dicts": [{"mask": image[0], "image": image, "label": 4} for image in COLOURS],
    "channels last": [image.permute(1, 2, 0).numpy() for image in COLOURS],
    "generator": (image for image in COLOURS),
}


@pytest.mark.parametrize("form", SINGLE)
def test_single_images_of_one_size_are_stacked(form):
    source = given.source_of(SINGLE[form], 12)
    assert torch.equal(source.train.images(torch.arange(12)), COLOURS)
    labels = source.train.labels(torch.arange(12)) if form in ("pairs", "dicts") else None
    assert source.train.has_labels == (labels is not None) and (labels is None or labels.tolist() == [4] * 12)


def test_frames_are_refused_with_the_part_that_reads_them():
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.encoder = nn.Linear(900, 900), nn.Sequential(nn.Conv2d(3, 4, 1))

        def forward(self, x):
            return self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    words = r"images.flatten\(0, 1\), and treat the part that reads them, module='encoder'"
    with pytest.raises(DecompError, match=words):
        given.source_of(torch.randn(4, 2, 3, 5, 4), 20, network=Video())
    with pytest.raises(DecompError, match="networks on volumes are not treated"):
        given.source_of(torch.randn(4, 2, 3, 5, 4), 20, network=nn.Sequential(nn.Conv3d(2, 4, 1)))


def test_no_more_batches_are_read_than_are_needed():
    read = []

    def endless():
        while True:
            read.append(1)
            yield IMAGES[:6]

    assert len(given.gather(endless(), 15)[0]) == 15 and len(read) == 3


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("digits", "str"),
        (7, "got a whole number"),
        ({"x": 7}, "a batch must hold images .*, got x: int 7"),
        (lambda: IMAGES, "got a function; give what it returns"),
        ([Image.new("RGB", (5, 4))] * 12, "must be tensors or arrays, got an Image; make tensors of them"),
        ([torch.zeros(3, 5, 4), torch.zeros(3, 5, 5)], r"of one shape, got \(3, 5, 4\) and \(3, 5, 5\)"),
        (list(IMAGES), r"got float32 \(2, 5, 4\); stack single images of one size, torch.stack\(images\)"),
        (IMAGES[0], r"\(N, C, H, W\), got \(2, 5, 4\); add the missing axis: images\[:, None\]"),
        (IMAGES[:, :, None], r"got \(20, 2, 1, 5, 4\); networks on volumes are not treated"),
        ([(torch.arange(7), torch.arange(7))], r"got 0: int64 \(7,\), 1: int64 \(7,\)"),
        (np.array([["a"]]), "array of numbers, got one of <U1"),
        ((IMAGES * 10).to(torch.uint8), "floating point"),
        ([], "at least one batch"),
        ([["a", "b"]], r"a batch must hold images \(N, C, H, W\), got \['a', 'b'\]"),
        ([IMAGES[None]], "give single images: frames of videos"),
        ([{"label": IMAGES[:, 0, 0, 0], "image": IMAGES[0]}], r"label: float32 \(20,\), image: float32 \(2, 5, 4\)"),
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
    with pytest.raises(NumericalError, match=r"in 2 of 20 images \(3, 5\); correct them"):
        given.source_of(images, 20)


class Listed(Dataset):
    """Items of a Dataset: a label, then an image."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"label": index, "image": self.images[index]}


def test_images_of_a_dataset_are_drawn_at_random():
    everything = given.source_of(Listed(IMAGES), 20).train.images(torch.arange(20))
    assert not torch.equal(everything, IMAGES) and torch.equal(
        everything.sum((1, 2, 3)).sort()[0], IMAGES.sum((1, 2, 3)).sort()[0]
    )
    drawn = given.source_of(TensorDataset(torch.arange(20), IMAGES), 6).train.images(torch.arange(6))
    assert torch.equal(drawn, everything[:6])
    other = given.source_of(Listed(IMAGES), 20, seed=1).train.images(torch.arange(20))
    assert not torch.equal(other, everything)
    with pytest.raises(DecompError, match="images: an item must hold an image, got"):
        given.source_of(Listed(["a"]), 20)


def test_images_are_resized_and_bad_ones_are_left_out():
    images = IMAGES.clone()
    images[4, 0, 0, 0] = np.nan
    source = given.source_of(images, 20, input_size="10x4", skip_bad=True)
    kept = torch.cat([IMAGES[:4], IMAGES[5:]])
    assert source.input_shape == (2, 10, 4) and source.skipped == ("image 4",)
    wanted = functional.interpolate(kept, (10, 4), mode="bilinear", antialias=True)
    assert torch.allclose(source.train.images(torch.arange(19)), wanted, atol=1e-6)


class Numbered(Dataset):
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.full((1, 4, 4), float(index)), self.labels[index]


def test_class_numbers_beside_images_are_kept_with_them():
    labels = [3 * i % 7 for i in range(30)]
    for images in (Numbered(labels), DataLoader(Numbered(labels), batch_size=8, shuffle=True)):
        source = given.source_of(images, 20)
        indices = source.train.images(torch.arange(20))[:, 0, 0, 0].long()
        assert source.train.labels(torch.arange(20)).tolist() == [labels[i] for i in indices]
        assert source.n_classes == max(labels[i] for i in indices) + 1
    first, second = torch.zeros(2, 1, 4, 4), torch.ones(1, 1, 4, 4)
    batches = [{"label": np.array([1, 2]), "image": first}, {"label": [0], "image": second}]
    assert given.source_of(batches, 9).train.labels(torch.arange(3)).tolist() == [1, 2, 0]


@pytest.mark.parametrize("labels", [[0.5] * 12, [-1] * 12, ["cat"] * 12, [torch.zeros(4, 4)] * 12, [1] * 11 + [None]])
def test_labels_that_are_not_class_numbers_are_not_kept(labels):
    source = given.source_of(Numbered(labels), 12)
    assert not source.train.has_labels and source.n_classes is None and len(source.train) == 12
    assert not given.source_of(torch.zeros(12, 1, 4, 4), 12).train.has_labels
