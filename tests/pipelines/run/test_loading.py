"""Networks of a run: the frozen points belong to the original network, and name no code of the run directory."""

import pytest
import torch

from decomp.data.formats import network_file
from decomp.data.formats.digests import digest_file
from decomp.data.formats.frozen_file import FrozenWriter
from decomp.data.given import source_of
from decomp.errors import FileError
from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.run.loading import open_frozen
from tests.pipelines.small_runs import SHAPE, network


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    network_file.save(network(4, 0), run.original_dir, input_shape=SHAPE)
    return run


def freeze(run, **meta):
    """Write the frozen file as the freeze stage does, ``data`` as the description of a source."""
    images = torch.zeros(10, *SHAPE)
    source = {**source_of(images, 10).describe(), "name": meta.pop("data", "digits")}
    meta = {"model": "zoo:vgg-digits", "data": source, **meta}
    meta.setdefault("network", digest_file(run.original_dir / "structure.json"))
    with FrozenWriter(run.frozen, meta=meta, n_images=10, input_shape=SHAPE) as writer:
        writer.write_images(0, images)


def test_the_frozen_points_of_the_original_network_are_opened(run):
    freeze(run)
    frozen, original = open_frozen(run)
    assert frozen.n_images == 10 and original(frozen.images()).shape == (10, 10)
    assert (frozen.model_name, frozen.source_name) == ("zoo:vgg-digits", "digits")


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_frozen_file_that_names_code_inside_the_run_directory_is_refused(run, key):
    freeze(run, **{key: f"{run.path / 'layers' / '..' / 'own.py'}:build"})
    with pytest.raises(FileError, match=f"code in a run directory is not executed, and its {key} is such code"):
        open_frozen(run)


@pytest.mark.parametrize("key", ["model", "data"])
def test_code_outside_the_run_directory_may_be_named(run, key):
    code = f"{run.path.parent / 'own.py'}:build"
    freeze(run, **{key: code})
    with open_frozen(run)[0] as frozen:
        assert code in str(frozen.meta)


def test_frozen_points_of_another_network_are_refused(run):
    freeze(run, network="0" * 64)
    with pytest.raises(FileError, match="was frozen from the network 000000000000, got "):
        open_frozen(run)


def test_frozen_points_other_than_those_of_the_record_are_refused(run):
    freeze(run)
    run.update_config("freeze", {"frozen": "f" * 64})
    with pytest.raises(FileError, match="must be the points ffffffffffff that run.json names"):
        open_frozen(run)


def test_a_run_without_frozen_points_names_the_stage_to_run(run):
    with pytest.raises(FileError, match=r"frozen\.h5: is missing; run freeze into"):
        open_frozen(run)
