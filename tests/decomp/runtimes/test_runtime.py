"""Conditions of a measurement that a runtime decides."""

import torch

from decomp.runtimes.compiled import Compiled
from decomp.runtimes.eager import Eager
from decomp.runtimes.runtime import conditions


def test_the_conditions_name_runtime_version_threads_layout_precision_and_optimisation():
    assert conditions(Eager("channels-last")) == {
        "runtime": "eager", "version": torch.__version__, "threads": torch.get_num_threads(),
        "layout": "channels-last", "precision": "float32", "optimisation": "none",
    }  # fmt: skip


def test_the_threads_are_those_of_torch_in_every_runtime():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert {conditions(one)["threads"] for one in (Eager(), Compiled())} == {before + 1}
    finally:
        torch.set_num_threads(before)
