"""Precision of float32 on a GPU; the settings are read and written on any machine."""

import pytest
import torch
from torch import nn

from decomp.runtimes.compiled import Compiled
from decomp.runtimes.precision import as_set_outside, exact_float32, in_words
from decomp.runtimes.runtime import conditions
from decomp.runtimes.timing import latencies

CPU = torch.device("cpu")


def settings():
    cudnn = torch.backends.cudnn
    conv = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return conv, torch.get_float32_matmul_precision()


EXACT = ("ieee" if hasattr(torch.backends.cudnn, "conv") else False, "highest")


class Noting(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, images):
        self.seen.add(settings())
        return images


@pytest.fixture(params=["highest", "high"])
def outside(request):
    torch.set_float32_matmul_precision(request.param)
    yield settings()
    torch.set_float32_matmul_precision("highest")


def test_convolutions_and_products_are_exact_within_and_as_before_afterwards(outside):
    with exact_float32():
        assert settings() == EXACT != outside
    assert settings() == outside
    with pytest.raises(ZeroDivisionError), exact_float32():
        _ = 1 / 0
    assert settings() == outside


def test_times_are_measured_as_the_user_has_set_pytorch(outside):
    network = Noting()

    @exact_float32()
    def stage():
        network(torch.zeros(1))
        with exact_float32():  # a stage within a stage
            latencies({"": network}, (1, 3), CPU, 2)
            assert settings() == EXACT
        assert settings() == EXACT

    stage()
    assert network.seen == {EXACT, outside} and settings() == outside
    with as_set_outside():  # outside of any stage nothing changes
        assert settings() == outside


def test_networks_are_compiled_as_the_user_has_set_pytorch(outside, monkeypatch):
    network = Noting()
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    with exact_float32():
        compiled = Compiled().prepare(network, torch.zeros(1))
    kept = compiled.__closure__[0].cell_contents
    assert kept.seen == {outside}


def test_the_precision_of_a_measurement_is_that_of_the_device_and_of_the_settings(outside):
    one = Compiled()
    with exact_float32():
        assert in_words("cpu") == conditions(one)["precision"] == "float32"
        words = conditions(one, "cuda")["precision"]
    if outside[0] in ("tf32", True):
        assert words == "float32, convolutions" + (" and products" if outside[1] == "high" else "") + " in TF32"
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert in_words("cuda") == ("float32, products in TF32" if outside[1] == "high" else "float32")
    finally:
        torch.backends.cudnn.allow_tf32 = before
