"""Splits in memory: batches, labels, augmentation by index, and digests."""

import hashlib

import pytest
import torch

from decomp.data import standard
from decomp.data.sources import open_source
from decomp.data.splits import ImageSource, MemorySplit, as_indices, batches_of
from decomp.data.transforms import Augmentation, Normalisation

PIXELS = torch.arange(5 * 2 * 3 * 2, dtype=torch.uint8).reshape(5, 2, 3, 2)
LABELS = torch.tensor([3, 0, 1, 0, 2])
NORMALISATION = Normalisation(10.0, (1.0, 2.0), (0.5, 4.0))


def digits(shape=(1, 8, 8)):
    arrays = standard.digits()
    return MemorySplit(*arrays.train, shape, arrays.normalisation, arrays.augmentation)


def split_of(pixels=PIXELS, labels=LABELS, normalisation=NORMALISATION):
    return MemorySplit(pixels, labels, tuple(pixels.shape[1:]), normalisation, Augmentation(pad=1))


def test_indices_of_any_form_are_one_axis_of_int64():
    for given in ([3, 1], (3, 1), torch.tensor([[3], [1]], dtype=torch.int32)):
        indices = as_indices(given)
        assert indices.dtype == torch.int64 and indices.tolist() == [3, 1]
    assert as_indices(torch.tensor(4)).tolist() == [4]


def test_an_order_is_cut_into_batches_and_an_empty_one_into_none():
    assert [part.tolist() for part in batches_of([4, 2, 2, 0, 1], 2)] == [[4, 2], [2, 0], [1]]
    assert batches_of([], 2) == ()


def test_images_are_scaled_and_then_normalised_by_channel():
    images = split_of().images([4, 1])
    for image, index in zip(images, (4, 1)):
        assert torch.allclose(image[0], (PIXELS[index, 0] / 10 - 1) / 0.5)
        assert torch.allclose(image[1], (PIXELS[index, 1] / 10 - 2) / 4)


def test_labels_follow_the_indices_and_may_be_absent():
    split = split_of()
    assert split.has_labels and split.labels([4, 0, 0]).tolist() == [2, 3, 3]
    bare = split_of(labels=None)
    assert not bare.has_labels and bare.labels([0]) is None
    assert [labels for _, labels in bare.batches([0, 1, 2], 2)] == [None, None]


def test_the_digest_tells_pixels_labels_shape_and_type_apart():
    swapped = PIXELS.clone()
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = PIXELS[0, 0, 0, 1], PIXELS[0, 0, 0, 0]
    splits = [
        split_of(), split_of(pixels=swapped), split_of(labels=LABELS.flip(0)), split_of(labels=None),
        split_of(pixels=PIXELS.reshape(5, 2, 2, 3)), split_of(pixels=PIXELS.view(torch.int8)),
    ]  # fmt: skip
    assert len({split.digest() for split in splits}) == len(splits)
    content = b"torch.uint8 (5, 2, 3, 2)" + PIXELS.numpy().tobytes() + LABELS.numpy().tobytes()
    assert split_of().digest() == hashlib.sha256(content).hexdigest()


def test_the_digest_is_that_of_the_pixels_and_not_of_their_normalisation():
    assert split_of(normalisation=Normalisation(255.0)).digest() == split_of().digest()


def test_a_source_describes_its_training_split_and_counts_both():
    train, test = split_of(), split_of(pixels=PIXELS[:2], labels=None)
    source = ImageSource("mine", (2, 3, 2), 4, None, train, test, NORMALISATION, "shifted", skipped=("a", "b", "c"))
    assert source.describe() == {
        "name": "mine", "input_shape": [2, 3, 2], "n_train": 5, "n_test": 2, "n_classes": 4, "labelled": True,
        "normalisation": {"scale": 10.0, "mean": [1.0, 2.0], "std": [0.5, 4.0]}, "augmentation": "shifted",
        "skipped": 3, "preprocessing": "as they are", "prepared": None, "labels_ignored": None,
        "digest": train.digest(),
    }  # fmt: skip
    assert source.digest("test") == test.digest()
    source.train = test
    assert source.digest() == train.digest()  # computed once
    alone = ImageSource("mine", (2, 3, 2), None, None, test, None, NORMALISATION)
    assert alone.digest("test") is None
    assert (alone.describe()["n_test"], alone.describe()["labelled"]) == (None, False)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 12), (1, 5, 5)])
def test_augmentation_does_not_depend_on_batches_or_order(batch_size, shape):
    split = digits(shape)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    whole = next(iter(split.batches(torch.arange(100), 100, augment_seed=5)))[0]
    parts = list(split.batches(order, batch_size, augment_seed=5))
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[order])
    assert torch.equal(torch.cat([labels for _, labels in parts]), split.labels(order))
    assert not torch.equal(whole, split.images(torch.arange(100)))
    assert not torch.equal(whole, next(iter(split.batches(torch.arange(100), 100, augment_seed=6)))[0])


def test_without_a_seed_batches_are_the_images():
    split = digits()
    order = torch.tensor([5, 2, 9, 2, 11])
    batches = list(split.batches(order, 2))
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images(order))
    assert list(split.batches(torch.tensor([], dtype=torch.int64), 2)) == []


def test_reading_changes_nothing_that_is_kept():
    split = digits()
    before = split.images([0, 1])
    split.images([0, 1]).zero_()
    next(iter(split.batches([0, 1], 2, augment_seed=1)))[0].zero_()
    assert torch.equal(split.images([0, 1]), before)


def test_images_are_augmented_by_their_numbers_which_are_their_indices_by_default():
    split, order = open_source("digits").train, torch.tensor([7, 3, 7, 7, 9])

    def shown(**options):
        return torch.cat([images for images, _ in split.batches(order, 2, augment_seed=1, **options)])

    assert torch.equal(shown(), shown(numbers=order))
    others = shown(numbers=torch.tensor([7, 3, 21, 7, 9]))
    assert torch.equal(others[[0, 1, 3, 4]], shown()[[0, 1, 3, 4]])
    many = split.batches(torch.full((300,), 7), 300, augment_seed=1, numbers=torch.arange(300))
    assert len({image.numpy().tobytes() for image in next(many)[0]}) == 9  # all shifts by at most one pixel
