"""8-bit ONNX files: the numbers that they hold, the metadata, and the images that set the ranges."""

import importlib.util

import pytest
import torch
from torch import nn

from decomp.data.formats.exported import FORMATS
from decomp.data.formats.quantised import load, quantise

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason='needs pip install "decomp[export]"',
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).eval()


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("int8") / "whole.onnx")
    FORMATS["onnx"].write(network, torch.randn(3, 1, 6, 6), path, '{"a": 1}', ())
    return path


def images(n=40, scale=1.0):
    return scale * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_weights_have_8_bits_with_a_scale_for_each_filter_and_metadata_is_kept(network, whole, tmp_path):
    import onnx
    from onnx import numpy_helper

    path = str(tmp_path / "small.onnx")
    quantise(whole, path, [images()], '{"b": 2}')
    stored = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}
    weights = [value for value in stored.values() if value.dtype == "int8" and value.ndim == 4]
    assert [value.shape for value in weights] == [(6, 1, 3, 3)]
    scales = [value for value in stored.values() if value.dtype == "float32" and value.shape == (6,)]
    wanted = network[0].weight.detach().abs().amax((1, 2, 3)) / 127
    assert any(torch.allclose(torch.from_numpy(value.copy()), wanted, rtol=0.01) for value in scales)
    run, text = load(path, 1)
    assert text == '{"b": 2}'
    with torch.no_grad():
        exact = network(images())
    (got,) = run(images())
    error = (got - exact).square().mean() / exact.var()
    assert 0 < error < 1e-3  # not the float network itself, and close to it


def test_ranges_come_from_the_calibration_images(network, whole, tmp_path):
    narrow, wide = str(tmp_path / "narrow.onnx"), str(tmp_path / "wide.onnx")
    quantise(whole, narrow, [images(scale=0.1)], "{}")
    quantise(whole, wide, [images()], "{}")
    with torch.no_grad():
        exact = network(images())
    errors = [float((load(path, 1)[0](images())[0] - exact).square().mean()) for path in (narrow, wide)]
    assert errors[0] > 100 * errors[1]  # larger values were cut off
