"""Small data sets in the files of MNIST, written for tests."""

import gzip

import numpy as np
import torch


def idx(array):
    """An array as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder, *, packed, n_train=20, n_test=7):
    """Four IDX files as Fashion-MNIST and MNIST have them; returns the training images and labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, n)
    for name, array in arrays.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"]


def all_images(split):
    return split.images(torch.arange(len(split)))
