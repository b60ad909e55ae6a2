"""Datasets and DataLoaders: items of every form, seeds of random steps, labels that are listed, read or ignored."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset
from torchvision import transforms

from decomp.data.datasets import Items, open_datasets, splits_in
from decomp.data.image_options import ImageOptions
from decomp.data.items import channels_first
from decomp.data.preprocessing import NetworkInput
from decomp.data.sources import open_source
from decomp.data.transforms import Normalisation
from decomp.errors import DecompError, UsageError

PIXELS = torch.randint(0, 256, (12, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FLOATS = PIXELS / 255
LABELS = torch.arange(12) % 3
ALL = torch.arange(12)


class Own(Dataset):
    """A data set of items made by a function of the index."""

    def __init__(self, item, n=12, **attributes):
        self.item, self.n = item, n
        vars(self).update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.item(index)


def opened(train, options=None, network=None, **parts):
    return open_datasets("mine", {"train": train, **parts}, network or NetworkInput(), options or ImageOptions())


def picture(index):
    return Image.fromarray(PIXELS[index].permute(1, 2, 0).numpy())


PLAIN = ImageOptions(mean=(0.0,), std=(1.0,))
FORMS = {
    "tensors": TensorDataset(FLOATS, LABELS),
    "bytes": TensorDataset(PIXELS, LABELS),
    "tuple": Own(lambda i: (FLOATS[i], int(LABELS[i]))),
    "label first": Own(lambda i: (LABELS[i], FLOATS[i])),
    "dict of several": Own(
        lambda i: {"id": f"{i}", "label": np.int64(LABELS[i]), "image": FLOATS[i].numpy(), "box": [1, 2]}
    ),
    "channels last": Own(lambda i: (FLOATS[i].permute(1, 2, 0).numpy(), LABELS[i])),
    "pictures": Own(lambda i: (picture(i), int(LABELS[i]))),
    "arrays of bytes": Own(lambda i: {"image": np.array(picture(i)), "label": int(LABELS[i])}),
    "loader": DataLoader(TensorDataset(FLOATS, LABELS), batch_size=5, shuffle=True),
    "loader of dicts": DataLoader(Own(lambda i: {"label": LABELS[i], "img": FLOATS[i]}), batch_size=4),
    "own collate": DataLoader(
        Own(lambda i: (picture(i), int(LABELS[i]))),
        collate_fn=lambda items: {
            "y": torch.tensor([label for _, label in items]),
            "x": torch.stack([transforms.functional.to_tensor(image) for image, _ in items]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_labels(form):
    source = opened(FORMS[form], PLAIN if form in ("pictures", "arrays of bytes") else None)
    assert source.input_shape == (3, 6, 5) and len(source.train) == 12 and source.train.has_labels
    assert torch.allclose(source.train.images(ALL), FLOATS, atol=1e-6)
    order = torch.tensor([7, 0, 11])
    images, labels = next(iter(source.train.batches(order, 3)))
    assert torch.allclose(images, FLOATS[order], atol=1e-6) and labels.tolist() == LABELS[order].tolist()
    assert source.labels_ignored is None and source.digest() == opened(FORMS[form], PLAIN).digest()


def test_the_sampler_of_a_loader_decides_which_items_there_are():
    loader = DataLoader(TensorDataset(FLOATS, LABELS), sampler=SubsetRandomSampler([8, 2, 5]))
    source = opened(loader)
    assert torch.equal(source.train.images([0, 1, 2]), FLOATS[[8, 2, 5]])
    assert source.train.labels([0, 1, 2]).tolist() == LABELS[[8, 2, 5]].tolist()
    subset = opened(Subset(TensorDataset(FLOATS, LABELS), [4, 3]))
    assert subset.train.labels([0, 1]).tolist() == [1, 0] and subset.n_classes == 2


def test_listed_labels_are_taken_without_reading_items():
    read = []

    def item(index):
        read.append(index)
        return FLOATS[index], int(LABELS[index])

    source = opened(Own(item, targets=LABELS.tolist(), classes=["a", "b", "c", "d"]))
    before = len(read)
    assert source.train.labels(ALL).tolist() == LABELS.tolist() and len(read) == before
    assert (source.n_classes, source.class_names) == (4, ("a", "b", "c", "d"))
    # A list that says otherwise than the first item is not the labels.
    assert opened(Own(item, targets=[2] * 12)).train.labels([1]).tolist() == [1]
    assert opened(Own(item)).n_classes is None


def test_random_steps_are_drawn_once_and_anew_in_training():
    shift = transforms.RandomCrop((6, 5), padding=2)
    source = opened(Own(lambda i: (shift(FLOATS[i]), int(LABELS[i]))))
    assert torch.equal(source.train.images(ALL), source.train.images(ALL.flip(0)).flip(0))
    drawn = [next(iter(source.train.batches([3], 1, augment_seed=seed)))[0] for seed in range(8)]
    assert len({tuple(image.flatten().tolist()) for image in drawn}) > 2
    assert "its random steps drawn once for each image; in training its random steps drawn anew" in source.preprocessing
    assert opened(TensorDataset(FLOATS)).preprocessing == "as the data set gives them; in training the same"


def test_pictures_without_a_transform_get_the_options_and_the_usual():
    pictures = Own(lambda i: (picture(i), int(LABELS[i])))
    source = opened(pictures, ImageOptions(mean=(0.5,), std=(0.25,), resize=(5,), crop=(4,)))
    usual = transforms.Compose(
        [transforms.Resize(5), transforms.CenterCrop(4), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
    )
    assert torch.allclose(source.train.images(ALL), torch.stack([usual(picture(i)) for i in range(12)]), atol=1e-6)
    grey = opened(pictures, network=NetworkInput((1, 6, 5)))
    assert grey.train.images([0]).shape == (1, 1, 6, 5)
    again = open_datasets(
        "mine", {"train": pictures}, NetworkInput(source.input_shape), ImageOptions(), source.prepared
    )
    assert torch.equal(again.train.images(ALL), source.train.images(ALL))


def test_test_splits_mean_and_std():
    source = opened(
        TensorDataset(PIXELS, LABELS), test=TensorDataset(PIXELS[:2], LABELS[:2]), mean=0.5, std=[0.25, 0.5, 1]
    )
    std = torch.tensor([0.25, 0.5, 1])[:, None, None]
    assert torch.allclose(source.test.images([0, 1]), (FLOATS[:2] - 0.5) / std, atol=1e-6)
    assert source.train.images([0]).shape == (1, 3, 6, 5) and source.n_classes == 3
    assert opened(TensorDataset(FLOATS), network=NetworkInput((1, 12, 10))).train.images([0]).shape == (1, 1, 12, 10)


@pytest.mark.parametrize(
    ("label", "words"),
    [(lambda i: FLOATS[i, :1] > 0, "bool (1, 6, 5)"), (lambda i: i / 2, "float 0.0"), (lambda i: f"c{i}", "str c0")],
)
def test_labels_that_are_no_class_numbers_are_ignored_and_described(label, words):
    source = opened(Own(lambda i: {"image": FLOATS[i], "label": label(i)}))
    assert source.labels_ignored == words and not source.train.has_labels and source.train.labels([0]) is None


def test_a_label_that_is_none_among_class_numbers_is_one_line():
    source = opened(Own(lambda i: (FLOATS[i], i if i < 5 else "dog")))
    assert source.train.labels([1, 4]).tolist() == [1, 4]
    with pytest.raises(DecompError, match="every label must be a class number from 0, got str dog in item 7"):
        source.train.labels([7])


class Endless(IterableDataset):
    def __iter__(self):
        yield FLOATS[0]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Endless(), "must be read by index .*, got an Endless; collect its images"),
        (DataLoader(Endless()), "must be read by index"),
        (Own(lambda i: (FLOATS[i], 0), n=0), "must hold images, got none"),
        (Own(lambda i: ("a.png", 0)), r"an item must hold an image, got .'a.png', 0."),
        (Own(lambda i: (FLOATS, 0)), "give single images"),
        (Own(lambda i: 1 / 0), "its code raised ZeroDivisionError"),
        (Own(lambda i: (FLOATS[i, :, i % 2 :], 0)), "all images must be of one shape, got 3×6×5 float32 and 3×5×5"),
    ],
)
def test_what_cannot_be_read_is_one_line(train, words):
    with pytest.raises(DecompError, match=words) as caught:
        opened(train).train.images(ALL)
    assert "\n" not in str(caught.value)


def spoilt(index):
    """Item 0 has no image, item 3 NaN, item 5 an infinite value."""
    if index == 0:
        raise OSError("truncated")
    return FLOATS[index].clone().index_fill_(0, torch.tensor(1), {3: np.nan, 5: np.inf}.get(index, 0)), int(
        LABELS[index]
    )


def test_skip_bad_leaves_out_items_that_cannot_be_read_or_hold_nan():
    parts = {"train": Own(spoilt, targets=LABELS, classes=["a", "b", "c"]), "test": TensorDataset(FLOATS, LABELS)}
    source = open_datasets("mine", parts, NetworkInput(), ImageOptions(), skip_bad=True)
    good = [index for index in range(12) if index not in (0, 3, 5)]
    assert source.skipped == ("train item 0", "train item 3", "train item 5") and source.class_names == ("a", "b", "c")
    images = source.train.images(torch.arange(9))
    assert torch.equal(images, torch.stack([spoilt(index)[0] for index in good]))
    assert source.train.labels(torch.arange(9)).tolist() == LABELS[good].tolist() and len(source.test) == 12


def test_skip_bad_with_no_item_left_is_one_line():
    with pytest.raises(UsageError, match="must hold images that can be read, got 12 items that cannot be; leave"):
        open_datasets("mine", {"train": Own(lambda i: 1 / 0)}, NetworkInput(), ImageOptions(), skip_bad=True)


def test_options_for_pictures_are_refused_for_tensors():
    with pytest.raises(DecompError, match="--crop: is for image files and for data sets of pictures, got mine, whose"):
        opened(TensorDataset(FLOATS), ImageOptions(crop=(4,)))


def test_forms_of_results():
    one, two = TensorDataset(FLOATS), DataLoader(TensorDataset(FLOATS))
    assert splits_in(one) == {"train": one} and splits_in((one, two)) == {"train": one, "test": two}
    assert splits_in({"train": two, "val": one, "mean": 0.5, "std": None}) == {"train": two, "test": one, "mean": 0.5}
    assert splits_in((FLOATS, LABELS)) is None and splits_in({"train": FLOATS}) is None
    assert channels_first(FLOATS[0].permute(1, 2, 0)).shape == (3, 6, 5) and channels_first(FLOATS[0, 0]).shape == (
        1,
        6,
        5,
    )
    assert len(Items("mine", two)) == 12


def test_a_function_may_return_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "pixels = torch.arange(2 * 9 * 8).reshape(2, 1, 9, 8) / 100\n"
        "def both():\n    test = TensorDataset(pixels[:1], torch.tensor([1]))\n"
        "    return TensorDataset(pixels, torch.tensor([1, 0])), DataLoader(test)\n"
    )
    source = open_source("sets.py:both")
    assert torch.equal(source.test.images([0])[0, 0], torch.arange(72).reshape(9, 8) / 100)
    assert source.test.labels([0]).tolist() == [1] and source.n_classes == 2


RUN = NetworkInput((3, 6, 5), normalisation=Normalisation(255.0, (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)))


def test_bytes_and_pictures_are_normalised_as_those_of_a_run_and_floats_are_as_they_are():
    wanted = RUN.normalisation.shift(FLOATS.clone())
    for form in ("bytes", "pictures"):
        for parts in ({}, {"mean": 0.5, "std": 0.5}):  # of the set's own network
            images = opened(FORMS[form], network=RUN, **parts).train.images(ALL)
            torch.testing.assert_close(images, wanted, atol=1e-5, rtol=1e-5)
        images = opened(FORMS[form], PLAIN, RUN).train.images(ALL)
        torch.testing.assert_close(images, FLOATS, atol=1e-6, rtol=1e-5)
    assert torch.equal(opened(FORMS["tensors"], network=RUN).train.images(ALL), FLOATS)
    images = opened(FORMS["tensors"], network=RUN, mean=0.5, std=0.5).train.images(ALL)
    torch.testing.assert_close(images, 2 * FLOATS - 1, atol=1e-6, rtol=1e-5)


def test_random_steps_of_an_item_are_drawn_by_its_number():
    split, order = opened(Own(lambda i: torch.rand(3, 6, 5) + i)).train, torch.tensor([4, 4, 2])

    def shown(**options):
        return torch.cat([images for images, _ in split.batches(order, 2, augment_seed=1, **options)])

    assert torch.equal(shown()[0], shown()[1]) and torch.equal(shown(), shown(numbers=order))
    others = shown(numbers=torch.tensor([4, 16, 2]))
    assert torch.equal(others[[0, 2]], shown()[[0, 2]]) and not torch.equal(others[0], others[1])
