"""A frozen and surveyed run of a network from the zoo, copied for each test."""

import shutil
from functools import partial

import pytest

from decomp.pipelines.run.directory import RunDirectory
from decomp.pipelines.stages.decompose import decompose
from decomp.pipelines.stages.freeze import freeze
from tests.pipelines import pretended_clock
from tests.pipelines.digit_runs import Collected, make_run, planned


@pytest.fixture(scope="session")
def surveyed(tmp_path_factory):
    path = tmp_path_factory.mktemp("surveyed") / "run"
    freeze(path, model="zoo:vgg-digits", data="digits", n_images=200, reporter=Collected())
    decompose(path, speedup=2, plan_only=True, reporter=Collected())
    run = RunDirectory.open(path)
    run.plan_json.unlink()
    run.update_config("decompose", None)
    return run


@pytest.fixture
def vgg_run(surveyed, tmp_path):
    shutil.copytree(surveyed.path, tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


@pytest.fixture
def blocks_run(frozen_runs, known_networks, tmp_path):
    """A surveyed run of a network of three residual blocks, without a plan."""
    folder, made = frozen_runs
    if "surveyed blocks" not in made:
        run = make_run(folder / "surveyed blocks", "blocks", n_images=100)
        planned(run)
        run.plan_json.unlink()
        run.update_config("decompose", None)
        made["surveyed blocks"] = run.path
    shutil.copytree(made["surveyed blocks"], tmp_path / "run")
    return RunDirectory.open(tmp_path / "run")


@pytest.fixture
def machine(monkeypatch):
    """A function that makes the clock one of a machine whose times follow a formula."""
    return partial(pretended_clock.install, monkeypatch)
