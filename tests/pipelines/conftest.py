"""What several files of tests need: networks frozen once a file, and an experiment in processes of its own."""

import shutil
from contextlib import contextmanager

import pytest
import torch
from networks import randomise

from decomp.data import models
from decomp.pipelines.run.directory import RunDirectory
from tests.pipelines.digit_runs import NETWORKS, SHAPE, make_run
from tests.pipelines.forked import Stages, results


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    stages = Stages(tmp_path_factory.mktemp("stages"))
    yield stages
    stages.close()


@pytest.fixture(scope="session")
def whole(stages):
    """An uninterrupted run: how each stage ended, and what it all came to."""
    run = stages.folder / "whole"
    return stages.whole(run), results(run)


@contextmanager
def threads(count):
    """So many threads inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """Sums in another order are other bytes; runs are compared byte for byte."""
    with threads(1):
        yield


@pytest.fixture
def two_threads():
    """More than one, where it must make no difference."""
    with threads(2):
        yield


@pytest.fixture
def known_networks(monkeypatch):
    real = models.load_model

    def load(name, **options):
        if name not in NETWORKS:
            return real(name, **options)
        return models.LoadedModel(randomise(NETWORKS[name]()), name, SHAPE, "0" * 64, "random")

    monkeypatch.setattr(models, "load_model", load)


@pytest.fixture(scope="module")
def frozen_runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def run(frozen_runs, tmp_path, request):
    folder, made = frozen_runs
    name = getattr(request, "param", "plain")
    if name not in made:
        made[name] = make_run(folder / name, name).path
    shutil.copytree(made[name], tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")
