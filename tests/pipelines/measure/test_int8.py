"""8-bit files of networks: calibrated on fitted images, compared on held-out ones, timed in turn."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from decomp.data.formats.frozen_file import FrozenFile
from decomp.errors import DecompError
from decomp.pipelines.measure import int8
from tests.pipelines.small_runs import make_run, network

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason='needs pip install "decomp[export]"',
)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    with FrozenFile(make_run(tmp_path_factory.mktemp("int8") / "run", n_images=60).frozen) as opened:
        yield opened


def test_calibration_sees_fitted_images_alone_and_the_comparison_the_others(frozen, tmp_path, monkeypatch):
    read, seen = FrozenFile.images, {"quantise": [], "closeness": []}
    quantise, closeness, now = int8.quantised.quantise, int8._closeness, []

    def images(self, start, stop):
        if now:
            seen[now[-1]].append((start, stop))
        return read(self, start, stop)

    def within(name, function):
        def called(*arguments):
            now.append(name)
            try:
                return function(*arguments)
            finally:
                now.pop()

        return called

    monkeypatch.setattr(FrozenFile, "images", images)
    monkeypatch.setattr(int8.quantised, "quantise", within("quantise", quantise))
    monkeypatch.setattr(int8, "_closeness", within("closeness", closeness))
    found = int8.write(network(8, 0), tmp_path / "a.onnx", "{}", frozen)
    assert seen == {"quantise": [(0, 32), (32, 54)], "closeness": [(54, 60)]}
    assert 0 < found.relative < 0.01
    assert "on 6 held-out calibration images, beside the network in float32: outputs differ by" in found.words
    assert "one image in ONNX Runtime, " in found.words and "rounds in turn)" in found.words


def test_the_ratio_of_times_is_that_of_single_rounds(monkeypatch):
    times = {"float32": [2.0, 4.0, 3.0], "int8": [1.0, 1.0, 1.0]}
    assert int8._time_words(times, 2) == (
        "one image in ONNX Runtime, 2 threads: float32 3 ms, 8 bits 1 ms, 3.00x as fast (2.00–4.00, 3 rounds in turn)"
    )


def test_a_network_that_8_bits_ruin_is_warned_of(frozen, tmp_path):
    ruined = copy.deepcopy(network(8, 0))
    with torch.no_grad():  # a common offset that is far larger than what tells images apart
        ruined.get_submodule("7").weight.mul_(1e-4)
        ruined.get_submodule("7").bias.copy_(torch.linspace(-900, 900, 10))
    found = int8.write(ruined, tmp_path / "a.onnx", "{}", frozen)
    assert found.relative > int8.FAR and "warning: with 8 bits the outputs differ by" in found.words


def test_other_precisions_are_refused(frozen, tmp_path):
    half = nn.Sequential(nn.Conv2d(1, 2, 1)).half()
    with pytest.raises(DecompError, match="onnx-int8: is made from a network in float32, got torch.float16; export"):
        int8.write(half, tmp_path / "a.onnx", "{}", frozen)
