"""Augmentation by counter: its statistics, its independence of everything but (seed, index), and exact pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from decomp.data import transforms
from decomp.data.transforms import Augmentation, Normalisation, adapt, check_shape, crop, draw
from decomp.errors import UsageError


def test_draws_are_uniform_for_every_seed_and_stream():
    # chi-squared with 4 degrees of freedom; 33 is its 1 - 1e-6 quantile
    for seed in (0, 1, 2, -5, 2**70):
        for stream in range(3):
            counts = torch.bincount(draw(seed, torch.arange(50_000), stream, 5), minlength=5).double()
            assert ((counts - 10_000) ** 2 / 10_000).sum() < 33


@pytest.mark.parametrize(("first", "second"), [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (0, 1)), ((7, 1), (7, 2))])
def test_neighbouring_seeds_and_streams_are_independent(first, second):
    # The joint distribution of two draws over 5 x 5 cells: chi-squared with 24 degrees of freedom, 1 - 1e-6 quantile 75
    index = torch.arange(50_000)
    a, b = (draw(seed, index, stream, 5) for seed, stream in (first, second))
    counts = torch.bincount(a * 5 + b, minlength=25).double()
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 75


def test_neighbouring_indices_are_independent():
    values = draw(3, torch.arange(50_001), 0, 5)
    counts = torch.bincount(values[1:] * 5 + values[:-1], minlength=25).double()
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 75


@settings(max_examples=30, deadline=None)
@given(st.integers(-(2**80), 2**80), st.permutations(range(20)), st.integers(1, 7))
def test_a_draw_depends_on_seed_and_index_alone(seed, order, size):
    whole = draw(seed, torch.arange(20), 1, 1000)
    parts = torch.cat([draw(seed, part, 1, 1000) for part in torch.tensor(order).split(size)])
    assert torch.equal(parts, whole[torch.tensor(order)])


def test_each_image_may_have_its_own_number_of_outcomes():
    limits = torch.tensor([1, 2, 50, 1000]).repeat(5000)
    values = draw(0, torch.arange(20_000), 0, limits)
    for limit in (1, 2, 50, 1000):
        of_limit = values[limits == limit]
        assert (of_limit.min(), of_limit.max()) == (0, limit - 1)


@pytest.mark.parametrize("large", [0, 1 << 13], ids=["image by image", "together"])
def test_crop_takes_the_window_and_mirrors_it(large, monkeypatch):
    monkeypatch.setattr(transforms, "LARGE", large)
    image = torch.arange(20).reshape(1, 1, 4, 5)
    images = image.repeat(2, 2, 1, 1)
    cut = crop(images, torch.tensor([1, 2]), torch.tensor([2, 0]), (2, 3), torch.tensor([False, True]))
    assert cut[0, 0].tolist() == [[7, 8, 9], [12, 13, 14]]
    assert cut[1, 1].tolist() == [[12, 11, 10], [17, 16, 15]]
    assert cut.is_contiguous() and images.equal(image.repeat(2, 2, 1, 1))
    none = torch.zeros(0, dtype=torch.int64)
    assert crop(images[:0], none, none, (2, 3), none.bool()).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_large_images_are_cut_as_small_ones_are(kind):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (9, 3, 70, 60), generator=generator).to(kind)
    assert images[:1].numel() >= transforms.LARGE
    top, left = (torch.randint(0, 5, (9,), generator=generator) for _ in range(2))
    mirror = torch.arange(9) % 2 == 0
    found = crop(images, top, left, (66, 56), mirror)
    for one, image, y, x, turned in zip(found, images, top.tolist(), left.tolist(), mirror.tolist()):
        wanted = image[:, y : y + 66, x : x + 56].numpy()
        assert np.array_equal(one.numpy(), wanted[:, :, ::-1] if turned else wanted)


def test_an_augmented_image_is_one_of_the_possible_ones_and_all_of_them_occur():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (1, 2, 6, 7), dtype=torch.uint8, generator=generator)
    padded = F.pad(image, (2, 2, 2, 2))
    possible = {}
    for top in range(5):
        for left in range(5):
            window = padded[0, :, top : top + 6, left : left + 7]
            possible[window.numpy().tobytes()] = (top, left, False)
            possible[window.flip(2).numpy().tobytes()] = (top, left, True)
    assert len(possible) == 50
    out = Augmentation(pad=2, flip=True)(image.repeat(5000, 1, 1, 1), torch.arange(5000), seed=4)
    seen = [possible[item.numpy().tobytes()] for item in out]  # a KeyError here is an impossible image
    counts = np.array([seen.count(outcome) for outcome in set(seen)])
    assert len(counts) == 50
    # chi-squared with 49 degrees of freedom, 1 - 1e-6 quantile
    assert ((counts - 100) ** 2 / 100).sum() < 112


def test_no_flip_means_no_flip():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1:4] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    out = Augmentation(pad=1)(image.repeat(200, 1, 1, 1), torch.arange(200), seed=0)
    rising = [item[item > 0].tolist() for item in out]
    assert all(values == [1, 2, 3] for values in rising)


def test_adapting_channels():
    grey = torch.rand(2, 1, 3, 4)
    assert torch.equal(adapt(grey, (3, 3, 4)), torch.cat([grey] * 3, 1))
    colour = torch.zeros(1, 3, 1, 3)
    colour[0, 0, 0, 0] = colour[0, 1, 0, 1] = colour[0, 2, 0, 2] = 1.0
    assert adapt(colour, (1, 1, 3)).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_adapting_size_keeps_the_mean_when_halving_and_makes_no_moire():
    # Antialiasing: the finest checkerboard becomes grey; plain bilinear sampling would alias it.
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    small = adapt(board.float()[None, None], (1, 8, 8))
    assert small.shape == (1, 1, 8, 8)
    assert (small[..., 1:-1, 1:-1] - 0.5).abs().max() < 0.02


def test_normalisation_on_other_channels_commutes_with_adapting():
    one, three = Normalisation(1.0, (0.4,), (0.2,)), Normalisation(1.0, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    grey, colour = torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3, 3)
    repeated = one.on_channels(3).shift(adapt(grey, (3, 3, 3)))
    assert torch.equal(repeated, adapt(one.shift(grey.clone()), (3, 3, 3)))
    # with equal deviations, luminance of normalised equals normalised luminance
    luminance = three.on_channels(1).shift(adapt(colour, (1, 3, 3)))
    assert torch.allclose(luminance, adapt(three.shift(colour.clone()), (1, 3, 3)), atol=1e-6)


@pytest.mark.parametrize("wanted", [(1, 28), (1, 0, 28), (1, 28, -2), (1.0, 28, 28), "128"])
def test_shapes_that_are_none(wanted):
    with pytest.raises(UsageError, match="three positive whole numbers"):
        check_shape("digits", (1, 8, 8), wanted)


def test_channel_counts_that_cannot_be_made():
    assert check_shape("x", (4, 8, 8), (4, 16, 16)) == (4, 16, 16)
    for native, wanted in ((1, 4), (4, 3), (3, 2)):
        with pytest.raises(UsageError, match=f"images of {native} channels.*got a model of {wanted} channels"):
            check_shape("x", (native, 8, 8), (wanted, 8, 8))
