"""The frozen file: exact round trips, whole or not at all, and damage that is noticed."""

import h5py
import numpy as np
import pytest
import torch

from decomp.data.formats.frozen_file import FrozenFile, FrozenWriter
from decomp.errors import FileError, NumericalError

N_IMAGES, N_POINTS = 23, 3
META = {"seed": 7, "model": "zoo:é", "nested": {"list": [1, 2.5, None]}}


def contents():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(N_IMAGES, 2, 5, 6, generator=generator)
    grids = {
        size: torch.stack([torch.randint(0, side, (N_IMAGES, N_POINTS), generator=generator) for side in size], 2).int()
        for size in ((5, 6), (3, 3))
    }
    layers = {
        "features.0": ((5, 6), torch.randn(N_IMAGES, N_POINTS, 4, generator=generator)),
        "block/conv": ((3, 3), torch.randn(N_IMAGES, N_POINTS, 7, generator=generator)),
        ".": ((3, 3), torch.randn(N_IMAGES, N_POINTS, 1, generator=generator)),
    }
    return images, grids, layers


def write(path, batch=4, drawn=None, meta=META):
    images, grids, layers = contents()
    with FrozenWriter(path, meta=meta, n_images=N_IMAGES, input_shape=(2, 5, 6)) as writer:
        writer.drawn = drawn
        for size, positions in grids.items():
            writer.declare_grid(f"{size[0]}x{size[1]}", size, positions)
        for name, (size, responses) in layers.items():
            writer.declare_layer(name, f"{size[0]}x{size[1]}", responses.shape[2])
        for start in range(0, N_IMAGES, batch):
            writer.write_images(start, images[start : start + batch])
            for name, (_, responses) in layers.items():
                writer.write_responses(name, start, responses[start : start + batch])
    return images, grids, layers


def read_all(path):
    with FrozenFile(path) as frozen:
        parts = [frozen.images(), *(frozen.positions(frozen.grid_of(name)) for name in frozen.layers)]
        parts += [frozen.responses(name) for name in frozen.layers]
        sizes = [frozen.grid_size(frozen.grid_of(name)) for name in frozen.layers]
        return frozen.meta, frozen.layers, sizes, [part.numpy().tobytes() for part in parts]


@pytest.mark.parametrize("batch", [1, 4, 23])
def test_what_was_written_comes_back_bit_for_bit(tmp_path, batch):
    images, grids, layers = write(tmp_path / "f.h5", batch)
    with FrozenFile(tmp_path / "f.h5") as frozen:
        assert frozen.meta == META
        assert (frozen.n_images, frozen.input_shape) == (N_IMAGES, (2, 5, 6))
        assert frozen.layers == ["features.0", "block/conv", "."]
        assert torch.equal(frozen.images(3, 20), images[3:20])
        for name, (size, responses) in layers.items():
            key = frozen.grid_of(name)
            assert frozen.grid_size(key) == size
            assert torch.equal(frozen.positions(key), grids[size]) and frozen.positions(key).dtype == torch.int32
            assert torch.equal(frozen.responses(name, 5, 9), responses[5:9])
            assert frozen.responses(name, 5, 9).dtype == torch.float32
        with pytest.raises(IndexError):
            frozen.images(20, 24)


def test_the_indices_of_the_images_come_back_and_are_no_part_of_the_digest(tmp_path):
    drawn = list(range(2 * N_IMAGES, 0, -2))
    write(tmp_path / "with.h5", drawn=drawn)
    write(tmp_path / "without.h5")
    with FrozenFile(tmp_path / "with.h5") as one, FrozenFile(tmp_path / "without.h5") as other:
        assert one.drawn == drawn and other.drawn is None
        assert one.content == other.content


def test_images_larger_than_a_chunk_and_many_layers_round_trip(tmp_path):
    images = torch.arange(3 * 3 * 256 * 256, dtype=torch.float32).reshape(3, 3, 256, 256)
    names = [f"stage.{i}.a_rather_long_name_of_a_convolution" * 10 for i in range(300)]  # more than 64 KiB of names
    with FrozenWriter(tmp_path / "f.h5", meta={}, n_images=3, input_shape=(3, 256, 256)) as writer:
        writer.declare_grid("g", (1, 1), torch.zeros(3, 1, 2, dtype=torch.int32))
        writer.write_images(0, images)
        for i, name in enumerate(names):
            writer.declare_layer(name, "g", 1)
            writer.write_responses(name, 0, torch.full((3, 1, 1), float(i)))
    with FrozenFile(tmp_path / "f.h5") as frozen:
        assert torch.equal(frozen.images(1, 2), images[1:2])
        assert frozen.layers == names
        assert frozen.responses(names[257], 2, 3).item() == 257.0


def test_responses_lie_in_chunks_of_whole_images_with_checksums(tmp_path):
    write(tmp_path / "f.h5")
    with h5py.File(tmp_path / "f.h5") as file:
        datasets = []
        file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
        assert len(datasets) == 2 + 2 + 3
        for dataset in datasets:
            assert dataset.fletcher32
            assert dataset.chunks[1:] == dataset.shape[1:]


def test_an_exception_leaves_the_old_file_and_no_part(tmp_path):
    write(tmp_path / "f.h5")
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with FrozenWriter(tmp_path / "f.h5", meta={}, n_images=2, input_shape=(1, 2, 2)) as writer:
            writer.write_images(0, torch.zeros(2, 1, 2, 2))
            raise KeyboardInterrupt
    assert (tmp_path / "f.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


def test_the_final_name_appears_only_at_the_commit(tmp_path):
    writer = FrozenWriter(tmp_path / "f.h5", meta={}, n_images=1, input_shape=(1, 1, 1))
    writer.write_images(0, torch.ones(1, 1, 1, 1))
    assert not (tmp_path / "f.h5").exists()
    writer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["f.h5"]


def test_a_part_left_by_a_killed_process_is_no_obstacle(tmp_path):
    (tmp_path / "f.h5.part").write_bytes(b"half of a file")
    write(tmp_path / "f.h5")
    assert read_all(tmp_path / "f.h5")[0] == META


def test_a_file_with_images_missing_is_not_committed(tmp_path):
    with pytest.raises(FileError, match=r"conv: 2 of 5 images were never written"):
        with FrozenWriter(tmp_path / "f.h5", meta={}, n_images=5, input_shape=(1, 1, 1)) as writer:
            writer.write_images(0, torch.zeros(5, 1, 1, 1))
            writer.declare_grid("g", (1, 1), torch.zeros(5, 1, 2))
            writer.declare_layer("conv", "g", 1)
            writer.write_responses("conv", 1, torch.zeros(3, 1, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_the_layer_and_the_image(tmp_path, value):
    responses = torch.zeros(4, 1, 2)
    responses[2, 0, 1] = value
    with pytest.raises(NumericalError, match=r"conv5: .*image 12"):
        with FrozenWriter(tmp_path / "f.h5", meta={}, n_images=20, input_shape=(1, 1, 1)) as writer:
            writer.declare_grid("g", (1, 1), torch.zeros(20, 1, 2))
            writer.declare_layer("conv5", "g", 2)
            writer.write_responses("conv5", 10, responses)


def test_positions_outside_the_grid_and_blocks_that_do_not_fit_are_refused(tmp_path):
    with FrozenWriter(tmp_path / "f.h5", meta={}, n_images=2, input_shape=(1, 4, 9)) as writer:
        with pytest.raises(ValueError, match="outside the 4x9 grid"):
            writer.declare_grid("g", (4, 9), torch.tensor([[[3, 8]], [[4, 0]]]))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write_images(1, torch.zeros(2, 1, 4, 9))
        with pytest.raises(ValueError, match="does not fit"):
            writer.write_images(0, torch.zeros(2, 1, 9, 4))
        writer.write_images(0, torch.zeros(2, 1, 4, 9))


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "f.h5"
    write(path)
    whole, bytes_before = read_all(path), path.read_bytes()
    rng = np.random.default_rng(0)
    n_noticed = 0
    data = bytes_before.find(contents()[0].numpy().tobytes()[:64])
    assert data > 0
    places = [data, data + 1, *rng.integers(0, len(bytes_before), 300).tolist()]
    for place in places:
        damaged = bytearray(bytes_before)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            # unused space in the file may flip without anybody's harm: the content must then be the same
            assert read_all(path) == whole, f"byte {place} flipped unnoticed"
        except FileError as error:
            n_noticed += 1
            assert "run freeze again" in str(error) and "\n" not in str(error)
        else:
            assert place not in places[:2]
    assert n_noticed >= 10


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.95, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    path = tmp_path / "f.h5"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if keep == -1 else whole[: int(keep * len(whole))])
    with pytest.raises(FileError, match="run freeze again"):
        read_all(path)


def test_mixtures_are_recorded_behind_the_images_and_are_none_of_them(tmp_path):
    images, _, layers = write(tmp_path / "f.h5", meta={**META, "n_mixtures": 5})
    with FrozenFile(tmp_path / "f.h5") as frozen:
        assert (frozen.n_images, frozen.n_recorded) == (N_IMAGES - 5, N_IMAGES)
        assert torch.equal(frozen.images(), images[:-5])
        assert torch.equal(frozen.images(N_IMAGES - 5, N_IMAGES), images[-5:])
        assert torch.equal(frozen.responses("block/conv", 20, N_IMAGES), layers["block/conv"][1][20:])
        assert len(frozen.positions(frozen.grid_of("block/conv"))) == N_IMAGES
    write(tmp_path / "plain.h5")
    versions = []
    for name in ("f.h5", "plain.h5"):
        with h5py.File(tmp_path / name) as file:
            versions.append(int(file.attrs["version"]))
    # An earlier version of this program refuses the first file, and reads the second one.
    assert versions == [4, 3]


def test_missing_foreign_and_newer_files_are_told_apart(tmp_path):
    with pytest.raises(FileError, match="run freeze first"):
        FrozenFile(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("a letter to a friend")
    with pytest.raises(FileError, match="not HDF5.*run freeze again"):
        FrozenFile(tmp_path / "text.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1, 2, 3]
    with pytest.raises(FileError, match="not a frozen file of this program"):
        FrozenFile(tmp_path / "foreign.h5")
    write(tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5", "r+") as file:
        file.attrs["version"] = 5
    with pytest.raises(FileError, match="version 3 and 4 can be read, got version 5; run freeze again"):
        FrozenFile(tmp_path / "new.h5")
