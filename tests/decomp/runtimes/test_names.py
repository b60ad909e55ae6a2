"""Names and requirements of runtimes."""

import pytest

from decomp.errors import DecompError, UsageError
from decomp.runtimes import names
from decomp.runtimes.eager import LAYOUTS


def test_the_layouts_are_those_of_the_eager_runtime():
    assert tuple(LAYOUTS) == names.LAYOUTS


def test_a_runtime_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert names.lacking("onnxruntime") == ("onnxruntime",) and names.lacking("openvino") == ()
    names.require_installed("openvino")
    with pytest.raises(DecompError) as caught:
        names.require_installed("onnxruntime")
    expected = 'onnxruntime: this runtime needs onnxruntime, not installed; pip install "decomp[onnx]".'
    assert str(caught.value) == expected


def test_each_extra_of_a_runtime_is_one_of_the_package():
    setup = (names.__file__.rsplit("/decomp/", 1)[0]) + "/setup.py"
    with open(setup, encoding="utf-8") as file:
        text = file.read()
    for needs in names.RUNTIMES.values():
        assert not needs.extra or f'"{needs.extra}": [' in text


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="^runtime: must be one of eager, compile, onnxruntime, openvino, got 'onx"):
        names.require_installed("onxruntime")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_layout_or_device_that_a_runtime_does_not_take_is_refused(name):
    names.require_supported(name, "contiguous", "cpu")
    names.require_supported("compile", "channels-last", "cuda")
    with pytest.raises(DecompError, match=f"^{name}: .*layout contiguous and .* got channels-last; choose the layout"):
        names.require_supported(name, "channels-last", "cpu")
    with pytest.raises(DecompError, match=f"^{name}: .* on cpu only, got the device cuda; choose the device cpu"):
        names.require_supported(name, "contiguous", "cuda")
