"""One experiment that several files of tests run from outside, in processes that they may end anywhere."""

import pytest

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
