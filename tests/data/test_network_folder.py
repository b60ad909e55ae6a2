"""Networks from folders as ``--model``: with their batch normalisations, and what is refused."""

import pytest
import torch
from networks import block
from torch import nn

from decomp.data import models
from decomp.data.formats import network_file
from decomp.data.preprocessing import Preprocessing
from decomp.errors import FileError, UsageError
from decomp.graph.tracing import trace
from decomp.surgery.batchnorm import fold_bn

SHAPE = (3, 8, 8)


def written(path, leaves=(), **options):
    network = trace(block(), leaves=leaves)
    folded = trace(block(), leaves=leaves)
    fold_bn(folded)
    return network_file.save(folded, path, input_shape=SHAPE, unfolded=network, leaves=leaves, **options)


def test_a_folder_gives_its_network_with_the_batch_normalisations_and_its_image_size(tmp_path):
    loaded = models.load_model(str(written(tmp_path / "net")))
    images = torch.randn(2, *SHAPE)
    assert torch.equal(loaded.module(images), block()(images)) and loaded.input_shape == SHAPE
    assert sum(isinstance(part, nn.BatchNorm2d) for part in loaded.module.modules()) == 2
    assert loaded.weights_name == "as in the folder" and loaded.fixed_size


def test_a_folder_without_normalisations_gives_the_folded_network(tmp_path):
    network = trace(block())
    fold_bn(network)
    network_file.save(network, tmp_path / "net", input_shape=SHAPE)
    loaded = models.load_model(str(tmp_path / "net"))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in loaded.module.modules())


def test_the_preprocessing_of_its_images_is_remembered(tmp_path):
    record = Preprocessing((8, 8), (10, 10), (0.5,), (0.25,), stretch=True).to_json()
    loaded = models.load_model(str(written(tmp_path / "net", meta={"preprocessing": record})))
    assert (
        loaded.preprocessing.mean == (0.5,) and loaded.preprocessing.resize == (10, 10) and loaded.preprocessing.stretch
    )
    assert loaded.preprocessing.origin == "as recorded with the network"
    assert models.load_model(str(written(tmp_path / "other"))).preprocessing is None


def test_its_own_precision_is_remembered(tmp_path):
    loaded = models.load_model(str(written(tmp_path / "net", meta={"dtype": "float16"})))
    assert loaded.dtype == torch.float16 and next(loaded.module.parameters()).dtype == torch.float32


def test_a_run_directory_names_its_most_advanced_network(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    for part in ("original", "pruned"):
        written(tmp_path / part)
    with pytest.raises(UsageError, match=f"is a run directory; name one of its networks: --model {tmp_path}/pruned"):
        models.load_model(str(tmp_path))


def test_a_broken_part_names_the_command_that_writes_it_again(tmp_path):
    folder = written(tmp_path / "pruned")
    (folder / network_file.WITH_BATCHNORM / "weights.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match="does not match its structure.json .*; run prune with --redo"):
        models.load_model(str(folder))


def test_another_folder_and_parts_that_only_the_class_builds_are_refused(tmp_path):
    with pytest.raises(FileError, match="is not an emitted network"):
        models.load_model(str(tmp_path))
    with pytest.raises(UsageError, match=r"not written as data \(bn1\).*decomp.load\(FOLDER, into=model\)"):
        models.load_model(str(written(tmp_path / "net", leaves=("bn1",))))
