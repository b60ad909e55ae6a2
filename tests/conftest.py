"""The checkout is what is tested, also by the processes that tests start, from whatever folder they are started."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CHECKOUT = str(Path(__file__).resolve().parent.parent)

if CHECKOUT not in sys.path:
    sys.path.insert(0, CHECKOUT)
os.environ["DECOMP_KNOWN_TIMES"] = "off"  # times of pretended machines are not for the user's cache
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(config, items):
    """Tests marked slow take minutes: they run when they are asked for by ``-m``."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item):
    """Tests that break something say what, for the table of benchmarks/faults.py; the number by ``record_property``."""
    marker = item.get_closest_marker("fault")
    if marker is not None:
        item.user_properties += zip(("fault", "how"), marker.args)


@pytest.fixture(scope="session", autouse=True)
def given_images_alone():
    """Mixtures of few images are recorded where a test asks for them; most are about the images they give."""
    from decomp.pipelines.run import calibration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "RECORDED_IMAGES", 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def blocks_as_fitted():
    """Blocks are refined where a test asks for it by a number of steps; no steps are no refinement."""
    from decomp.pipelines.decomposition import refine_blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine_blocks, "STEPS", 0)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers in every run, alone or among others."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network file, in which commands are given."""
    from command_line import NETWORK  # not before the checkout is on the path

    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(NETWORK)
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def frozen(place):
    """A run with frozen points of the small network."""
    from command_line import decomp_command

    result = decomp_command(*"freeze --model net.py:build --data digits --run runs/a --images 150 --points 5".split())
    assert result.code == 0, result.err
    return "runs/a"
